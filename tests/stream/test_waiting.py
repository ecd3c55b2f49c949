"""Groups that wait or stop: they hold back nobody else, and say why."""

import os
import re
import signal
import urllib.error
import urllib.request

import orjson

from tests.stages import groups
from tests.stream.asking import QUICK, lag, outcomes, posted
from tests.world import wait_for


def test_whatever_waits_is_named_and_holds_nobody_back(worlds, tmp_path):
    wait = tmp_path / "wait"
    wait.write_text("pause")
    batch = {"batch": {"records": 100, "milliseconds": 500}}
    world = worlds(
        change=groups(
            fine={},
            paused={"options": {"wait": str(wait)}},
            many={"dead_letters": {"count": 20, "share": 1.0}, **batch},
            most={"dead_letters": {"share": 0.3, "of_at_least": 50}, **batch},
            lacking={"module": "tests.stages.lacking"},
            nowhere={"module": "tests.stages.nowhere"},
        ),
        flags=QUICK,
        platforms=("reddit",),
        partitions=1,
    )
    world.post(n=200, texts=["fine", "!raise"])
    result = world.run(check=False)
    assert result.returncode == 3
    assert outcomes(world, "fine") == posted(*range(200))
    waiting = dict(re.findall(r"^waiting: (\w+): (.*)", result.stdout, re.M))
    assert waiting.keys() == {"paused", "many", "most", "lacking", "nowhere"}
    assert waiting["paused"] == "paused: the budget is spent"
    assert re.match(r"stopped: 21 of .*\(count 20\).*ValueError: cannot read", waiting["many"])
    assert re.match(r"stopped: .*\(share 0\.3\)", waiting["most"])
    assert waiting["lacking"] == "stopped: the model is missing: make it with `make model`"
    assert re.match(r"crashed \d+ times in a row", waiting["nowhere"])
    for stopped in ("many", "most"):  # nothing of the batch stays
        assert world.read(f"{stopped}.dlt") == []
        assert outcomes(world, stopped) == {}
        assert lag(world, stopped) == 200
    worker = world.start_worker("many")
    assert worker.wait(60) == 4
    assert "Mend the cause" in world.log_of(worker)
    assert world.start_worker("lacking").wait(60) == 2


def test_what_a_platform_leaves_out_is_named_and_no_failure(worlds):
    world = worlds(change=groups(words={}, shout={"facet": "sentiment"}))
    folder = world.home / "config" / "platforms"
    (folder / "reddit.yaml").write_text(
        "processing: {batch_processing: {words: {enabled: false}}}\n"
    )
    (folder / "youtube.yaml").write_text(
        "processing:\n"
        "  fast_mode: {skip_sentiment: true}\n"
        "  batch_processing: {words: {batch_size: 4}}\n"
    )
    world.post("reddit", n=5)
    world.post("youtube", n=6)
    result = world.command("run", "--mode", "fast", "--until-caught-up")
    assert "DISABLED: words leaves" in result.stdout
    assert "SCHEDULED: shout leaves" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.endswith("s, but for: words (DISABLED), shout (SCHEDULED)")
    assert "words: 6 ok" in result.stdout
    assert "shout: 5 ok" in result.stdout
    assert lag(world, "words") == 5
    batches = [event["records"] for event in world.values("status") if event["group"] == "words"]
    assert max(batches) <= 4 and sum(batches) == 6
    (folder / "reddit.yaml").write_text("")
    full = world.command("run", "--mode", "full", "--until-caught-up")
    assert "shout: 6 ok" in full.stdout and "but for" not in full.stdout
    assert "draining" not in full.stderr, "nobody has asked for it"


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
    assert outcomes(world) == {}
    wait.unlink()
    wait_for(lambda: lag(world) == 0)
    assert outcomes(world) == posted(*range(50))

    def measured():
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        return 'outcome="ok"} 50.0' in text and "kafka_consumergroup_lag{" in text

    wait_for(measured)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_group_may_yield_the_processor_to_others(worlds):
    world = worlds(change=groups(words={"nice": 3}), platforms=("reddit",), partitions=1)
    supervisor = world.start("run", "words")
    wait_for(lambda: re.search(r"started worker=words pid=(\d+)", world.log_of(supervisor)))
    pid = int(re.search(r"started worker=words pid=(\d+)", world.log_of(supervisor))[1])
    own = os.getpriority(os.PRIO_PROCESS, supervisor.pid)
    wait_for(lambda: os.getpriority(os.PRIO_PROCESS, pid) == min(own + 3, 19))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
