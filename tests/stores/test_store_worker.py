"""The store's worker on real servers: positions, fences, refused batches."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

from confluent_kafka.admin import AdminClient

from headrace.stream import clients
from headrace.stream.faults import Exit
from tests.stores.waiting import caught_up, stored
from tests.world import World, wait_for


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


def test_a_refused_revision_leaves_its_record_dead_not_pending(world: World) -> None:
    """Its stages have answered the refused revision, which never becomes a row."""
    world.post(ids=["kept", "both"], texts=["fine"])
    world.run("text")
    world.post(ids=["kept"], texts=["fine\0"])
    world.post(ids=["both"], texts=["fine\0"])
    world.post(ids=["both"], texts=["better"])
    world.run("text")
    query = "SELECT record_id, status, reason FROM stage_status WHERE stage = 'text' ORDER BY 1"
    both, kept = world.sql(query)
    assert both == ("post:reddit:both", "ok", None)
    assert kept[:2] == ("post:reddit:kept", "dead") and "NUL" in kept[2]
    assert world.sql("SELECT text FROM posts WHERE id LIKE '%kept'") == [("fine",)]
    found = json.loads(world.command("doctor", "--json", check=False).stdout)
    assert [s["dead"] for s in found["sums"] if s["stage"] == "text"] == [1]
    assert all(s["balanced"] for s in found["sums"])


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


def test_a_database_that_was_made_anew_gets_everything_again(world: World) -> None:
    world.post(n=10)
    worker = world.start_worker("postgres")
    wait_for(stored(world, 10), message=lambda: world.log_of(worker))
    wait_for(lambda: caught_up(world))
    world.sql("TRUNCATE records, offsets")
    world.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
        [f"headrace postgres {world.project}"],
    )
    world.post(ids=["late"])
    assert worker.wait(60) == Exit.FENCED, world.log_of(worker)
    another = world.start_worker("postgres")
    wait_for(stored(world, 11), message=lambda: world.log_of(another))


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
