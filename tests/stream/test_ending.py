"""How workers end: by signals, under a deadline, with their supervisor."""

import re
import signal

import pytest

from tests.stages import groups
from tests.stream.asking import lag, outcomes, posted, readers, state
from tests.world import wait_for


@pytest.fixture
def hold(tmp_path):
    folder = tmp_path / "hold"
    folder.mkdir()
    (folder / "hold").touch()
    return folder


def test_a_signal_drains(worlds, hold):
    world = worlds(change=groups(words={"options": {"hold": str(hold)}, "batch": {"records": 10}}))
    world.post(n=100)
    worker = world.start_worker("words")
    wait_for((hold / "reached").exists)
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in world.log_of(worker))
    (hold / "hold").unlink()
    assert worker.wait(60) == 0
    done = outcomes(world)
    assert set(done.values()) == {1}
    assert 100 - sum(done.values()) == lag(world)  # the batch is whole, and nothing after it
    assert sum(done.values()) <= 10


def test_a_second_signal_ends_at_once(worlds, hold):
    world = worlds(change=groups(words={"options": {"hold": str(hold)}}))
    world.post(n=100)
    worker = world.start_worker("words")
    wait_for((hold / "reached").exists)
    worker.send_signal(signal.SIGINT)
    wait_for(lambda: "draining" in world.log_of(worker))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 128 + signal.SIGTERM
    assert outcomes(world) == {}


def test_draining_has_a_deadline(worlds, hold):
    world = worlds(
        change=groups(words={"options": {"hold": str(hold)}}),
        flags={"processing.drain_seconds": 0.5},
    )
    world.post(n=100)
    supervisor = world.start("run", "words")
    wait_for((hold / "reached").exists)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
    assert "step=draining" in world.log_of(supervisor)
    assert outcomes(world) == {}


def test_workers_end_with_their_supervisor(worlds):
    world = worlds(change=groups(words={}))
    world.post(n=10)
    supervisor = world.start("run", "words")
    wait_for(lambda: lag(world) == 0)
    pid = int(re.search(r"started worker=words pid=(\d+)", world.log_of(supervisor))[1])
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not world.admin.members(f"{world.project}.words"))
    wait_for(lambda: state(pid) is None)


def test_workers_of_two_data_folders_leave_each_other_alone(worlds, tmp_path):
    """Each finds slot 0 free in its own folder."""
    world = worlds(change=groups(words={}))
    one, other = (
        world.start_worker("words", HEADRACE_DATA_DIR=str(tmp_path / name)) for name in "ab"
    )
    wait_for(lambda: len(readers(world)) == 2, message=lambda: world.log_of(other))
    world.post(n=200)
    wait_for(lambda: lag(world) == 0)
    assert one.poll() is None and other.poll() is None
    assert outcomes(world) == posted(*range(200))


def test_a_slot_is_held_by_one(worlds):
    world = worlds(change=groups(words={}))
    world.apply()
    worker = world.start_worker("words", "--slot", "3")
    wait_for(lambda: world.admin.members(f"{world.project}.words"))
    second = world.command("worker", "words", "--slot", "3", check=False)
    assert second.returncode == 2
    assert f"slot 3 of {world.project}.words is taken" in second.stderr
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
