"""How groups start, wait, stop and end."""

import re
import signal
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import orjson
import pytest

from headrace.stream.commands import choose
from headrace.stream.remaining import in_order
from tests.stages import groups
from tests.world import wait_for

QUICK = {"processing.retry_seconds": 0.1, "processing.retry_max_seconds": 0.2}


def ids(world, short="enriched.words"):
    return Counter(value["id"] for value in world.values(short))


def posted(count):
    return Counter({f"post:reddit:{number}": 1 for number in range(count)})


def lag(world, group="words"):
    group = world.topology.group(group)
    parts = [(t.name, n) for t in (*group.reads, group.redo) for n in range(t.partitions)]
    done = world.admin.committed(group.name, parts)
    return sum(end - done.get(part, 0) for part, end in world.admin.ends(parts).items())


@pytest.fixture
def hold(tmp_path):
    folder = tmp_path / "hold"
    folder.mkdir()
    (folder / "hold").touch()
    return folder


def test_lag_is_zero_behind_markers(worlds):
    world = worlds(change=groups(words={}, shout={"reads": ["enriched.words"]}))
    world.post(n=500)
    result = world.run()
    assert "caught up in" in result.stdout
    assert "words: 500 ok" in result.stdout
    assert lag(world) == lag(world, "shout") == 0
    assert ids(world, "enriched.shout") == posted(500)
    again = world.run()
    assert "words: nothing to do" in again.stdout


def test_batches_are_cut_by_count_and_bytes(worlds):
    small = {"batch": {"records": 7, "bytes": 4_000_000, "milliseconds": 500}}
    light = {"batch": {"records": 100_000, "bytes": 20_000, "milliseconds": 500}}
    world = worlds(change=groups(words=small, shout=light))
    world.post(n=300, texts=["x" * 1000])
    world.run("--only", "words", "shout")
    records = {"words": [], "shout": []}
    for event in world.values("status"):
        records[event["group"]].append(event["records"])
    assert sum(records["words"]) == sum(records["shout"]) == 300
    assert max(records["words"]) == 7
    assert len(records["shout"]) >= 5


@pytest.mark.parametrize("limits", [{"count": 20, "share": 1.0}, {"share": 0.3, "of_at_least": 50}])
def test_too_many_dead_letters_stop_a_group(worlds, limits):
    world = worlds(
        change=groups(
            words={"dead_letters": limits, "batch": {"records": 100, "milliseconds": 500}},
            shout={},
        ),
        flags=QUICK,
    )
    world.post(n=200, texts=["fine", "!raise"])
    result = world.run(check=False)
    assert result.returncode == 3
    assert re.search(r"waiting: words: stopped: .*dead letters.*ValueError", result.stdout)
    assert "shout" not in result.stdout.partition("waiting:")[2]
    assert world.read("words.dlt") == []  # nothing of the batch stays
    assert ids(world) == {}
    assert lag(world) == 200
    assert lag(world, "shout") > 0 or ids(world, "enriched.shout") == posted(200)
    worker = world.start_worker("words")
    assert worker.wait(60) == 4
    assert "Mend the cause" in world.log_of(worker)


def test_a_stage_that_asks_to_wait_stays_a_member(worlds, tmp_path):
    wait = tmp_path / "wait"
    wait.write_text("retry")
    world = worlds(change=groups(words={"options": {"wait": str(wait)}}), flags=QUICK)
    world.post(n=50)
    worker = world.start_worker("words", HEADRACE_PROCESSING__METRICS_PORT="0")
    url = wait_for(lambda: re.search(r"http://\S+/metrics", world.log_of(worker)))[0]

    def health():
        try:
            with urllib.request.urlopen(url.replace("metrics", "health")) as answer:
                return orjson.loads(answer.read())["state"]
        except urllib.error.URLError:
            return None

    wait_for(lambda: health() == "retrying")
    assert world.admin.members(f"{world.project}.words")
    wait.write_text("pause")
    wait_for(lambda: health() == "paused")
    assert ids(world) == {}
    wait.unlink()
    wait_for(lambda: lag(world) == 0)
    assert ids(world) == posted(50)

    def measured():
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        return 'outcome="ok"} 50.0' in text and "kafka_consumergroup_lag{" in text

    wait_for(measured)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_paused_group_is_named(worlds, tmp_path):
    wait = tmp_path / "wait"
    wait.write_text("pause")
    world = worlds(
        change=groups(words={"options": {"wait": str(wait)}}, shout={}),
        flags=QUICK,
    )
    world.post(n=20)
    result = world.run(check=False)
    assert result.returncode == 3
    assert "waiting: words: paused: the budget is spent" in result.stdout
    assert ids(world, "enriched.shout") == posted(20)


def test_what_must_be_mended_is_not_started_again(worlds):
    world = worlds(change=groups(words={"module": "tests.stages.lacking"}), flags=QUICK)
    world.post(n=5)
    result = world.run(check=False)
    assert result.returncode == 3
    assert "waiting: words: stopped: the model is missing" in result.stdout
    assert world.start_worker("words").wait(60) == 2


def test_a_stage_that_cannot_be_loaded_is_given_up(worlds):
    world = worlds(change=groups(words={"module": "tests.stages.nowhere"}, shout={}), flags=QUICK)
    world.post(n=5)
    result = world.run(check=False)
    assert result.returncode == 3
    assert re.search(r"waiting: words: crashed \d+ times in a row", result.stdout)
    assert ids(world, "enriched.shout") == posted(5)


def test_a_signal_drains(worlds, hold):
    world = worlds(change=groups(words={"options": {"hold": str(hold)}, "batch": {"records": 10}}))
    world.post(n=100)
    worker = world.start_worker("words")
    wait_for((hold / "reached").exists)
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: "draining" in world.log_of(worker))
    (hold / "hold").unlink()
    assert worker.wait(60) == 0
    done = ids(world)
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
    assert ids(world) == {}


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
    assert ids(world) == {}


def test_workers_end_with_their_supervisor(worlds):
    world = worlds(change=groups(words={}))
    world.post(n=10)
    supervisor = world.start("run", "words")
    wait_for(lambda: lag(world) == 0)
    pid = int(re.search(r"started worker=words pid=(\d+)", world.log_of(supervisor))[1])
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: not world.admin.members(f"{world.project}.words"))
    wait_for(lambda: not _alive(pid))


def test_lost_data_is_said_and_the_rest_is_read(worlds):
    world = worlds(change=groups(words={}))
    world.post(n=40)
    parts = [(f"{world.project}.raw.posts.reddit", n) for n in range(2)]
    world.admin.alter_offsets(f"{world.project}.words", dict.fromkeys(parts, 1_000_000))
    result = world.run()
    assert result.stderr.count("DATA_LOSS") == 2
    assert ids(world) == posted(40)


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


def test_a_named_stage_brings_its_stores(worlds):
    topology = worlds().topology
    shorts = lambda *chosen: [group.short for group in choose(topology, *chosen)]  # noqa: E731
    assert shorts(["sentiment"], None, False) == ["sentiment", "postgres"]
    assert shorts(["sentiment"], None, True) == ["sentiment"]
    assert shorts([], "full", False) == list(topology.groups)
    order = [group.short for group in in_order(topology, topology.groups.values())]
    assert order.index("postgres") > max(order.index(stage.short) for stage in topology.stages())


def _alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
