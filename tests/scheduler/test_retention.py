"""A group that rests for longer than a broker keeps things by default loses nothing."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from headrace.scheduling.scheduler import Scheduler
from headrace.servers.kafka import SETTINGS
from headrace.stream.clients import Wanted
from tests.stages import groups
from tests.stream.asking import QUICK, outcomes, posted
from tests.world import World, wait_for

# A week of a broker's default is a second here, and the schedule's week and the margin are seconds.
WEEK_MS = "1000"
RESTS = {"reads": ["enriched.words"], "when": "lag >= 100000 or 5 seconds"}
FLAGS = {"scheduler.margin": "295 seconds", "scheduler.look_seconds": 0.2} | QUICK


def test_longer_than_the_defaults_allow(
    worlds: Any, local_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {
        "log.retention.ms": WEEK_MS,
        "log.retention.check.interval.ms": "200",
        "log.initial.task.delay.ms": "100",
    }
    for name, value in quick.items():
        monkeypatch.setitem(SETTINGS, name, value)
    kafka = str(local_server("kafka").address)
    world: World = worlds(
        change=groups(words={}, shout=RESTS),
        flags=FLAGS | {"kafka.bootstrap_servers": kafka},
        platforms=("reddit",),
    )
    file = world.home / "topics.yaml"
    content = yaml.safe_load(file.read_text())
    content["topics"]["enriched.words"]["retention"] = "299 seconds"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    refused = world.command("topics", "apply", check=False)
    assert refused.returncode == 2
    assert "enriched.words: retention 299 seconds is shorter than the 5 minutes" in refused.stderr
    content["topics"]["enriched.words"]["retention"] = "5 minutes"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    world.command("topics", "apply")
    world.apply()  # the tables

    Scheduler(world.settings, world.topology).turn()  # the schedule counts from now
    other = f"{world.project}.status.other"  # kept as long as the broker does by itself
    world.admin.create([Wanted(other, 1, {})])
    world.post(n=30)
    world.run("words")
    for round_ in range(2):
        at = world.admin.ends([(other, 0)])[other, 0]
        producer_of(world).produce(other, b"gone soon")
        producer_of(world).flush(30)
        wait_for(lambda at=at: world.admin.starts([(other, 0)])[other, 0] > at)  # type: ignore[misc]
        world.post(ids=[f"{round_}-{n}" for n in range(10)])
        world.run("words")
    running = world.start("run")
    wait_for(
        lambda: world.sql("SELECT id FROM windows WHERE state = 'done' AND waiting > 0"),
        message=lambda: world.log_of(running),
    )
    names = [*range(30), *(f"{r}-{n}" for r in range(2) for n in range(10))]
    assert outcomes(world, "shout") == posted(*names)
    assert "DATA_LOSS" not in world.log_of(running)


def producer_of(world: World) -> Any:
    world.flush()
    return world._producer
