"""One group is dead: all others go on to the end, and queries are answered all the while."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
import yaml

from headrace.stores import postgres
from tests.whole import corpus
from tests.world import World, wait_for

QUERIES = (
    "SELECT count(*), count(sentiment) FROM posts",
    "SELECT platform, processing_level, records, top_entities FROM platform_metrics",
    "SELECT processing_status, count(*) FROM record_status GROUP BY 1",
    "SELECT platform, stage, ok, pending, coverage FROM coverage",
    "SELECT name, count(*) FROM entity_mentions GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
)


@dataclass
class Asking:
    """How often was asked, how often answered, and what went wrong."""

    asked: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    levels: set[str] = field(default_factory=set)


@contextmanager
def asking(world: World) -> Iterator[tuple[Asking, Asking]]:
    """Asks the database all the while, on a connection of its own and by `headrace sql`."""
    connected, commands = Asking(), Asking()
    done = threading.Event()

    def on_connection() -> None:
        with postgres.connect(world.settings, readonly=True, autocommit=True) as connection:
            while not done.wait(0.02):
                query = QUERIES[connected.asked % len(QUERIES)]
                connected.asked += 1
                try:
                    rows = connection.execute(query.encode()).fetchall()
                except psycopg.Error as error:
                    connected.failures.append(f"{query}: {error}")
                    return
                connected.answered += 1
                if query == QUERIES[0]:
                    connected.records.append(rows[0][0])
                elif query == QUERIES[1]:
                    connected.levels |= {level for _, level, _, _ in rows}

    def by_command() -> None:
        while not commands.asked or not done.is_set():
            commands.asked += 1
            result = world.command("sql", "--json", QUERIES[0], check=False)
            if result.returncode:
                commands.failures.append(result.stderr)
                return
            commands.answered += 1
            commands.records.append(json.loads(result.stdout)[0]["count"])

    threads = [threading.Thread(target=on_connection), threading.Thread(target=by_command)]
    for thread in threads:
        thread.start()
    try:
        yield connected, commands
    finally:
        done.set()
        for thread in threads:
            thread.join(120)


def set_module(world: World, module: str) -> None:
    """What the sentiment group runs from now on."""
    path = world.home / "topics.yaml"
    content = yaml.safe_load(path.read_text())
    content["groups"]["sentiment"]["module"] = module
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def broken(module: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["groups"]["sentiment"]["module"] = module

    return change


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("tests.stages.lacking", "stopped: the model is missing"),
        ("tests.stages.nowhere", "crashed"),
    ],
    ids=["its model is missing", "it cannot be loaded"],
)
def test_sentiment_is_dead(worlds: Callable[..., World], module: str, reason: str) -> None:
    flags = {"processing.batch_size": 50, "processing.retry_seconds": 0.1,
             "processing.retry_max_seconds": 0.2}  # fmt: skip
    world = worlds(flags=flags, change=broken(module)).apply()
    waves = corpus.waves(4, 250)
    newest = {value["id"]: value for value in corpus.revisions(waves)}
    alive = {name for name, value in newest.items() if "deleted" not in value}

    def pending() -> dict[str, int]:
        return dict(world.sql("SELECT stage, sum(pending) FROM coverage GROUP BY 1"))

    supervisor = world.start("run")
    with asking(world) as (connected, commands):
        for number, wave in enumerate(waves):
            corpus.publish(world, wave, number)
        wait_for(
            lambda: (
                world.sql("SELECT count(*) FROM posts") == [(len(alive),)]
                and pending() == {"text": 0, "entities": 0, "sentiment": len(alive)}
            ),
            180,
            lambda: f"{pending()} {world.log_of(supervisor)[-3000:]}",
        )
    assert supervisor.poll() is None
    for asked in (connected, commands):
        assert asked.failures == []
        assert asked.answered == asked.asked > 0  # availability 100 %
    assert connected.answered >= len(QUERIES)
    assert connected.levels == {"early"}, "a figure without sentiment passed for more"
    supervisor.terminate()
    assert supervisor.wait(120) == 0

    ended = world.run(check=False)
    assert ended.returncode == 3
    assert f"waiting: sentiment: {reason}" in ended.stdout
    assert ended.stdout.count("waiting:") == 1
    found = json.loads(world.command("doctor", "--json", check=False).stdout)
    assert all(sums["balanced"] for sums in found["sums"])
    assert {sums["stage"]: sums["pending"] for sums in found["sums"]} == pending()

    set_module(world, "consumers.sentiment.stage")
    world.run()
    assert pending() == dict.fromkeys(["text", "entities", "sentiment"], 0)
    levels = world.sql("SELECT DISTINCT processing_level FROM platform_metrics")
    assert levels == [("full",)]
