"""Whatever is killed or frozen, and whenever: each record has one outcome, the lag ends at 0."""

import os
import re
import signal

import pytest

from tests.stages import groups
from tests.stages.crashing import MOMENTS
from tests.stream.asking import lag, outcomes, posted, readers, state
from tests.world import World, wait_for

pytestmark = pytest.mark.crash

# The classic protocol lets a client say how soon it is given up.
SOON = {
    "kafka.group_protocol": "classic",
    "kafka.session_timeout_ms": 3000,
    "kafka.client": {"heartbeat.interval.ms": 500},
    "kafka.transaction_timeout_ms": 4000,
    "processing.retry_seconds": 0.1,
    "processing.retry_max_seconds": 0.5,
}
BATCH = {"batch": {"records": 20, "milliseconds": 100}}


def post(world, name, count):
    world.post(ids=[f"{name}-{number}" for number in range(count)])


def crashing(folder, *moments, **options):
    given = {"folder": str(folder), "moments": list(moments), **options}
    return groups(words={"module": "tests.stages.crashing", "options": given, **BATCH})


def all_of(**counts):
    return posted(*(f"{name}-{n}" for name, count in counts.items() for n in range(count)))


def test_a_worker_killed_at_any_moment_of_a_commit(worlds, tmp_path):
    world = worlds(change=crashing(tmp_path, *MOMENTS), flags=SOON)
    post(world, "a", 200)
    result = world.run("words", "--only")
    assert result.stderr.count("killed by signal 9") == len(MOMENTS)
    assert outcomes(world) == all_of(a=200)
    assert lag(world) == 0


def test_one_of_two_members_is_killed(worlds):
    world = worlds(change=groups(words=BATCH), flags={"processing.retry_seconds": 0.1})
    post(world, "a", 100)
    supervisor = world.start("run", "words", "--workers", "2")
    wait_for(lambda: len(readers(world)) == 2)
    post(world, "b", 300)
    started = re.findall(r"started worker=\S+ pid=(\d+)", world.log_of(supervisor))
    os.kill(int(started[0]), signal.SIGKILL)
    post(world, "c", 300)
    wait_for(lambda: lag(world) == 0)
    assert outcomes(world) == all_of(a=100, b=300, c=300)
    wait_for(lambda: len(readers(world)) == 2)
    post(world, "d", 50)
    wait_for(lambda: lag(world) == 0)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
    assert outcomes(world) == all_of(a=100, b=300, c=300, d=50)


@pytest.mark.parametrize("moment", ["at work", "offsets sent"])
def test_a_frozen_worker_comes_back(worlds, tmp_path, moment):
    """Another takes its partitions over meanwhile; what it held then it may not commit. Later it
    gets them again, and reads them."""
    world = worlds(change=crashing(tmp_path, moment, signal="STOP"), flags=SOON)
    post(world, "a", 100)
    frozen = world.start_worker("words")
    wait_for((tmp_path / "0").exists)
    wait_for(lambda: state(frozen.pid) == "T")
    other = world.start_worker("words")
    wait_for(lambda: lag(world) == 0)
    assert outcomes(world) == all_of(a=100)
    os.kill(frozen.pid, signal.SIGCONT)
    post(world, "b", 100)
    wait_for(lambda: lag(world) == 0)
    # Inside a transaction it was fenced for good and ends; else it joins again.
    if moment == "offsets sent":
        assert frozen.wait(60) == 5
        frozen = world.start_worker("words")
    wait_for(lambda: len(readers(world)) == 2)
    other.send_signal(signal.SIGTERM)
    assert other.wait(60) == 0
    post(world, "c", 100)
    wait_for(lambda: lag(world) == 0, message=lambda: world.log_of(frozen))
    assert frozen.poll() is None
    assert outcomes(world) == all_of(a=100, b=100, c=100)


def test_the_broker_is_killed(local_server, postgres, tmp_path):
    """It goes down between the work and the commit; the worker outlives that, or starts again."""
    broker = local_server("kafka")
    world = World(
        tmp_path, broker.address, postgres, change=crashing(tmp_path, "at work", signal="STOP"),
        flags=SOON,
    )  # fmt: skip
    try:
        post(world, "a", 100)
        supervisor = world.start("run", "words", "--only")
        wait_for((tmp_path / "0").exists)
        worker = int((tmp_path / "0").read_text())
        broker.kill()
        os.kill(worker, signal.SIGCONT)
        wait_for(lambda: "brokers are down" in world.log_of(supervisor))
        broker.start()
        post(world, "b", 100)
        wait_for(lambda: lag(world) == 0, timeout=120, message=lambda: world.log_of(supervisor))
        assert outcomes(world) == all_of(a=100, b=100)
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
    finally:
        world.drop()
