"""Groups with a schedule as they are run: in windows, through kills, and on redo outside them."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.stream import wire
from tests.stages import groups
from tests.stream.asking import QUICK, lag, outcomes, posted, readers, state
from tests.world import World, wait_for

LOOKS = {"scheduler.look_seconds": 0.2} | QUICK
BY_LAG = {"when": "lag >= 80 or 7 days"}
NEVER = {"when": 'cron "0 0 29 2 *"'}


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    folder = tmp_path / "hold"
    folder.mkdir()
    return folder


def states(world: World) -> list[str]:
    return [row[0] for row in world.sql("SELECT state FROM windows ORDER BY id")]


def shown(world: World, group: str = "words") -> dict[str, Any]:
    told = json.loads(world.command("schedule", "--json").stdout)
    return next(row for row in told["rows"] if row["group"] == group)


def test_a_group_runs_to_the_end_of_its_window_and_leaves(worlds: Any) -> None:
    world = worlds(change=groups(words=BY_LAG), flags=LOOKS, platforms=("reddit",))
    world.post(ids=[f"a{n}" for n in range(20)])
    running = world.start("run")
    wait_for(lambda: world.sql("SELECT since FROM schedules"))
    wait_for(lambda: shown(world)["reason"] == "lag 20 of 80")
    assert "started worker" not in world.log_of(running)
    world.post(ids=[f"b{n}" for n in range(60)])
    wait_for(lambda: "done" in states(world))
    wait_for(lambda: not readers(world))
    world.post(ids=["later"])
    assert outcomes(world) == posted(*(f"a{n}" for n in range(20)), *(f"b{n}" for n in range(60)))
    wait_for(lambda: not world.admin.members(f"{world.project}.words"))
    told = json.loads(world.command("lag", "--json").stdout)[0]
    assert (told["state"], told["lag"]) == ("SCHEDULED", 1)
    assert told["reason"].startswith("next 2")
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
    assert states(world) == ["done"]
    assert world.log_of(running).count("started worker") == 1
    assert "no scheduler runs" in world.command("schedule").stdout


def test_kills_in_the_middle_of_a_window(worlds: Any, hold: Path) -> None:
    """The worker first, then everything: it goes on, and each record has one outcome."""
    options = {"options": {"hold": str(hold)}, "batch": {"records": 25}}
    world = worlds(change=groups(words=BY_LAG | options), flags=LOOKS, platforms=("reddit",))
    (hold / "hold").touch()
    world.post(n=100)
    running = world.start("run")
    wait_for((hold / "reached").exists)
    pids = lambda: re.findall(r"started worker=words pid=(\d+)", world.log_of(running))  # noqa: E731
    os.kill(int(pids()[0]), signal.SIGKILL)
    wait_for(lambda: len(pids()) == 2, message="its successor")
    running.kill()
    running.wait()
    with suppress(ProcessLookupError):
        os.kill(int(pids()[1]), signal.SIGKILL)
    wait_for(lambda: state(int(pids()[1])) is None)
    (hold / "hold").unlink()
    again = world.start("run")
    wait_for(lambda: states(world) == ["done"], message=lambda: world.log_of(again))
    wait_for(lambda: not readers(world))
    assert outcomes(world) == posted(*range(100))
    assert lag(world) == 0


def test_redo_outside_a_window(worlds: Any) -> None:
    change = groups(words=NEVER | {"nice": 3})
    world = worlds(change=change, flags=LOOKS, platforms=("reddit",))
    (value,) = world.post(ids=["a"])
    (message,) = world.read("raw.posts.reddit", 1)
    worker = world.start_worker("words")
    place = wire.Position(message.topic(), message.partition(), message.offset())
    topic_id = world.admin.topic_ids([message.topic()])[message.topic()]
    moment = wire.Revision(topic_id, place.partition, place.offset, message.timestamp()[1])
    header = wire.Lineage(moment, "r1", 0, 0, (), place).pack()
    world.send("words.redo", value["id"], message.value(), {wire.HEADER: header})
    wait_for(lambda: len(world.read("enriched.words")) == 1, message=lambda: world.log_of(worker))
    wait_for(lambda: not world.admin.members(f"{world.project}.words"))
    world.send("words.redo", value["id"], message.value(), {wire.HEADER: header})
    world.read("enriched.words", 2)
    raw = {(message.topic(), part): 0 for part in range(2)}
    assert world.admin.committed(f"{world.project}.words", raw) == {}, "the schedule stands"
    wait_for(lambda: not world.admin.members(f"{world.project}.words"))
    assert state(worker.pid) is not None, "it waits by itself for what comes"
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)
    assert os.getpriority(os.PRIO_PROCESS, worker.pid) == nice
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, world.log_of(worker)


def test_a_platform_of_its_own_hours(worlds: Any) -> None:
    """As containers do it: a scheduler and a worker that reads what is due, each by itself."""
    world = worlds(change=groups(words={}), flags=LOOKS)
    own = "processing: {batch_processing: {words: {schedule: lag >= 10 or 7 days}}}\n"
    (world.home / "config" / "platforms" / "youtube.yaml").write_text(own)
    world.post(n=3)
    world.post("youtube", n=3)
    done = world.command("run", "--until-caught-up")
    assert "SCHEDULED: words runs lag >= 10 or 7 days on youtube" in done.stdout
    assert outcomes(world) == posted(0, 1, 2)
    scheduler, worker = world.start("scheduler"), world.start_worker("words")
    world.post("youtube", ids=[f"b{n}" for n in range(7)])
    wait_for(lambda: states(world) == ["done"], message=lambda: world.log_of(worker))
    assert sum(outcomes(world).values()) == 13
    reads = lambda: {  # noqa: E731
        topic.partition("raw.posts.")[2]
        for member in world.admin.members(f"{world.project}.words")
        for topic, _ in member.partitions
    }
    wait_for(lambda: reads() == {"reddit", ""})  # and its redo
    for process in (scheduler, worker):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, world.log_of(process)


def test_batch_mode_opens_everything_now(worlds: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        rarely = {"reads": ["enriched.words"], "when": "lag >= 1000000 or 20 days"}
        groups(words=NEVER, shout=rarely)(content)
        content["modes"] = {"fast": [], "full": "all", "batch": ["words", "shout"]}

    world = worlds(change=change, flags=LOOKS)
    world.post(n=40)
    world.post("youtube", n=40)
    done = world.command("run", "--mode", "batch", "--until-caught-up")
    assert "opens windows now: words, shout" in done.stdout
    assert "caught up in" in done.stdout
    assert len(outcomes(world, "shout")) == 80, "readers come after their writers"
    assert set(states(world)) == {"done"}
    again = world.command("run", "--mode", "batch", "--until-caught-up")
    assert "caught up in" in again.stdout
    assert sum(outcomes(world).values()) == 80


def test_a_named_group_runs_whatever_its_schedule_says(worlds: Any) -> None:
    world = worlds(change=groups(words=NEVER), flags=LOOKS)
    world.post(n=10)
    assert "words: 10 ok" in world.run("words").stdout
    assert states(world) == []
