"""A group that rests for longer than a broker keeps things by default loses nothing."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from headrace.servers.kafka import SETTINGS
from headrace.stream import clients
from headrace.stream.clients import Wanted
from tests.stages import groups
from tests.stream.asking import QUICK, outcomes, posted
from tests.world import World, wait_for

# A week of a broker's default is a second here, and the schedule's week and the margin are seconds.
WEEK_MS = "1000"
RESTS = {"reads": ["enriched.words"], "when": "lag >= 100000 or 5 seconds"}
FLAGS = {"scheduler.margin": "295 seconds", "scheduler.look_seconds": 0.2} | QUICK


def test_longer_than_the_defaults_allow(
    local_server: Any, worlds: Any, monkeypatch: pytest.MonkeyPatch
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
    told = json.loads(world.command("doctor", "--json", check=False).stdout)
    assert [f["check"] for f in told["findings"] if "299 seconds" in f["what"]] == ["retention"]
    content["topics"]["enriched.words"]["retention"] = "5 minutes"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    world.command("topics", "apply")
    world.apply()  # the tables

    running = world.start("run")  # words is always on, shout rests
    other = f"{world.project}.status.other"  # kept as long as the broker does by itself
    world.admin.create([Wanted(other, 1, {})])
    world.post(n=30)
    producer = Producer(clients.producer_conf(world.settings))
    producer.produce(other, b"gone soon")
    assert producer.flush(60) == 0
    wait_for(lambda: world.admin.starts([(other, 0)])[other, 0] == 1, message="nothing expires")
    world.post(ids=[f"b{n}" for n in range(10)])
    everything = posted(*range(30), *(f"b{n}" for n in range(10)))
    wait_for(
        lambda: outcomes(world, "shout") == everything,
        timeout=120,
        message=lambda: world.log_of(running),
    )
    assert "DATA_LOSS" not in world.log_of(running)
    opened = world.sql("SELECT opened_at FROM windows ORDER BY opened_at")
    first = world.sql("SELECT since FROM schedules")
    rests = [b[0] - a[0] for a, b in pairwise([*first, *opened])]
    assert rests and min(rests) >= timedelta(seconds=5), "longer than the broker's week each time"
