"""The store's worker on real servers: positions, fences, refused batches, kills."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka.admin import AdminClient

from headrace import servers
from headrace.stream import clients
from headrace.stream.faults import Exit
from headrace.stream.wire import Lineage, Position, Revision
from tests.world import World, wait_for


def stored(world: World, rows: int) -> Callable[[], bool]:
    return lambda: world.sql("SELECT count(*) FROM records") == [(rows,)]


def caught_up(world: World) -> bool:
    """PostgreSQL has everything, and Kafka's copy of the positions says so too."""
    group = world.topology.group("postgres")
    partitions = [
        (topic.name, number)
        for topic in (*group.reads, group.redo)
        for number in range(topic.partitions)
    ]
    ends = world.admin.ends(partitions, stable=True)
    ids = world.admin.topic_ids()
    mirrored = world.admin.committed(group.name, partitions)
    rows = world.sql(
        "SELECT topic, partition, topic_id, next FROM offsets WHERE \"group\" = 'postgres'"
    )
    ours = {(topic, part): following for topic, part, uid, following in rows if ids[topic] == uid}
    busy = {partition: end for partition, end in ends.items() if end > 0}
    return busy.items() <= ours.items() and busy.items() <= mirrored.items()


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


def test_only_the_guilty_become_dead_letters(world: World) -> None:
    good = world.post(n=40)
    # What passes the schema and only PostgreSQL refuses: a day that does not exist.
    world.post(ids=["bad1"], created_at="2013-02-31T12:00:00Z")
    world.post(ids=["nul"], texts=["a\0b"])
    world.send("raw.posts.reddit", "garbage", b"\xff{")
    world.post(ids=["bad2"], created_at="2013-13-01T12:00:00Z")
    more = world.post(n=40, platform="youtube")
    worker = world.start_worker("postgres")
    wait_for(lambda: caught_up(world), message=lambda: world.log_of(worker))
    found = {row[0] for row in world.sql("SELECT id FROM records")}
    assert found == {value["id"] for value in good + more}
    letters = world.sql("SELECT record_key, reason FROM dead_letters ORDER BY record_key")
    assert [key for key, _ in letters] == [
        "garbage", "post:reddit:bad1", "post:reddit:bad2", "post:reddit:nul",
    ]  # fmt: skip
    assert "date/time" in letters[1][1]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == Exit.DONE, world.log_of(worker)


def test_too_many_dead_letters_stop_the_group(worlds: Callable[..., World]) -> None:
    def change(topics: dict[str, Any]) -> None:
        topics["groups"]["postgres"]["dead_letters"] = {"count": 5}

    world = worlds(change=change)
    for number in range(9):
        world.send("raw.posts.reddit", str(number), b"no json", flush=False)
    world.flush()
    worker = world.start_worker("postgres")
    assert worker.wait(60) == Exit.LIMIT, world.log_of(worker)
    # What passes the limit is not committed; a batch before it may be.
    assert world.sql("SELECT count(*) <= 5 FROM dead_letters") == [(True,)]


def test_a_worker_that_was_overtaken_stores_nothing_and_ends(world: World) -> None:
    world.post(n=10)
    worker = world.start_worker("postgres")
    wait_for(stored(world, 10), message=lambda: world.log_of(worker))
    wait_for(lambda: caught_up(world))
    world.sql("UPDATE offsets SET next = next + 1")  # as another worker would have
    world.post(ids=[f"late{number}" for number in range(10)])
    assert worker.wait(60) == Exit.FENCED, world.log_of(worker)
    assert stored(world, 10)()


def test_positions_come_from_postgresql(world: World) -> None:
    """Kafka's copy may say what it likes."""
    world.post(n=10)
    group = world.topology.group("postgres")
    topic = world.topology.topic("raw.posts.reddit")
    ends = world.admin.ends([(topic.name, number) for number in range(topic.partitions)])
    world.admin.alter_offsets(group.name, ends)
    first = world.start_worker("postgres")
    wait_for(stored(world, 10), message=lambda: world.log_of(first))
    first.kill()
    first.wait()
    second = world.start_worker("postgres")
    wait_for(lambda: caught_up(world), message=lambda: world.log_of(second))


def test_a_topic_made_anew_starts_from_its_beginning(world: World) -> None:
    world.post(n=30)
    first = world.start_worker("postgres")
    wait_for(lambda: caught_up(world), message=lambda: world.log_of(first))
    first.terminate()
    assert first.wait(60) == Exit.DONE
    topic = world.topology.topic("raw.posts.reddit")
    client = AdminClient(clients.base_conf(world.settings))
    client.delete_topics([topic.name])[topic.name].result(30)
    wait_for(lambda: topic.name not in world.admin.topics())
    from headrace.stream import topics

    wait_for(lambda: _made(world, topics, topic.name))
    world.post(ids=["5", "new"], texts=["of the new topic"])
    second = world.start_worker("postgres")
    wait_for(stored(world, 31), message=lambda: world.log_of(second))
    wait_for(lambda: caught_up(world), message=lambda: world.log_of(second))
    rows = world.sql("SELECT id FROM records WHERE text = 'of the new topic' ORDER BY id")
    assert rows == [("post:reddit:5",), ("post:reddit:new",)], "the newer incarnation wins"


def _made(world: World, topics: Any, name: str) -> bool:
    topics.ensure(world.settings, world.topology, world.admin)
    return name in world.admin.topics()


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
    for _ in range(4):
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
