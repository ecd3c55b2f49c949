"""The store's worker and PostgreSQL killed at any moment: the tables end as if nothing had been."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from headrace import servers
from headrace.stream.wire import Lineage, Position, Revision
from tests.stores.waiting import caught_up
from tests.world import World, wait_for


def enrich(world: World, values: list[dict[str, Any]], root: int, stage: str = "sentiment") -> None:
    """Outcomes as a stage would write them; `root` is the offset of the records' revision."""
    topic = f"{world.project}.raw.posts.reddit"
    revision = Revision(world.admin.topic_ids()[topic], 0, root, 1_700_000_000_000)
    header = Lineage(revision, "r1", 0, 1, (), Position(topic, 0, root)).pack()
    for value in values:
        envelope = {
            "id": value["id"], "kind": "post", "platform": "reddit", "stage": stage,
            "outcome": "drop", "reason": "test", "version": "1", "at": "2026-11-21T09:00:00.000Z",
        }  # fmt: skip
        world.send(
            f"enriched.{stage}", value["id"], orjson.dumps(envelope), {"hr": header}, flush=False
        )
    world.flush()


@pytest.mark.crash
def test_kills_leave_no_trace(worlds: Callable[..., World]) -> None:
    """kill -9 whenever some more is stored, two members at a time: as if nothing had happened."""

    def change(topics: dict[str, Any]) -> None:
        topics["groups"]["postgres"]["batch"] = {"records": 50}

    world = worlds(change=change)
    chance = random.Random(7)
    values = world.post(n=1500, author="someone")
    enrich(world, values, 1)
    world.post(n=700, texts=["second revision"])
    for native in range(0, 300, 3):
        world.delete(f"post:reddit:{native}")
    workers = [world.start_worker("postgres") for _ in range(2)]
    for _ in range(3):
        before = _seen(world)
        try:
            wait_for(lambda before=before: _seen(world) > before or caught_up(world))
        finally:
            victim = workers.pop(chance.randrange(2))
            victim.kill()
            victim.wait()
        workers.append(world.start_worker("postgres"))
    wait_for(lambda: caught_up(world), 120, lambda: world.log_of(workers[-1]))
    _check(world)


@pytest.mark.crash
def test_postgresql_may_be_killed_under_it(
    kafka: str, local_server: Callable[..., servers.LocalServer], tmp_path: Path
) -> None:
    server = local_server("postgres")
    home = tmp_path / "own"
    home.mkdir()

    def change(topics: dict[str, Any]) -> None:
        topics["groups"]["postgres"]["batch"] = {"records": 50}

    flags = {"processing.retry_seconds": 0.1, "processing.retry_max_seconds": 0.5}
    world = World(home, kafka, str(server.address), flags=flags, change=change)
    try:
        values = world.post(n=1500, author="someone")
        worker = world.start_worker("postgres")
        for step in range(3):
            wait_for(
                lambda step=step: _seen(world) > 300 * step, message=lambda: world.log_of(worker)
            )
            server.kill()
            server.start()
            if step == 0:
                enrich(world, values, 1)
                world.post(n=700, texts=["second revision"])
                for native in range(0, 300, 3):
                    world.delete(f"post:reddit:{native}")
        wait_for(lambda: caught_up(world), 120, lambda: world.log_of(worker))
        assert worker.poll() is None, "the worker itself goes on"
        _check(world)
    finally:
        world.drop()


@pytest.mark.crash
def test_it_waits_for_a_database_that_is_away_when_it_starts(
    kafka: str, local_server: Callable[..., servers.LocalServer], tmp_path: Path
) -> None:
    server = local_server("postgres")
    flags = {"processing.retry_seconds": 0.1, "processing.retry_max_seconds": 0.5}
    world = World(tmp_path, kafka, str(server.address), flags=flags)
    try:
        world.post(n=10)
        server.kill()
        worker = world.start_worker("postgres")
        wait_for(
            lambda: world.log_of(worker).count("cannot start yet") > 6,
            message=lambda: world.log_of(worker),
        )
        assert "PostgreSQL at 127.0.0.1:" in world.log_of(worker)
        server.start()
        wait_for(lambda: _seen(world) >= 10, message=lambda: world.log_of(worker))
        assert worker.poll() is None
        assert "Traceback" not in world.log_of(worker)
    finally:
        world.drop()


def _seen(world: World) -> int:
    """Messages stored by now."""
    return int(world.sql("SELECT coalesce(sum(next), 0)::bigint FROM offsets")[0][0])


def _check(world: World) -> None:
    """What 1500 posts, 700 second revisions and 100 deletions leave, told without the store."""
    expected = {}
    for native in range(1500):
        deleted = native < 300 and native % 3 == 0
        text = "second revision" if native < 700 else "The new phone is great, I love it"
        expected[f"post:reddit:{native}"] = (deleted, None if deleted else text)
    rows = world.sql("SELECT id, deleted, text FROM records")
    assert {row[0]: row[1:] for row in rows} == expected
    assert world.sql("SELECT count(*), count(DISTINCT record_id), min(reason) FROM outcomes") == [
        (1500, 1500, "test")
    ]
    assert world.sql("SELECT count(*) FROM dead_letters") == [(0,)]
    assert world.sql("SELECT sum(ok + dropped + dead + pending) = sum(records) FROM coverage") == [
        (True,)
    ]
