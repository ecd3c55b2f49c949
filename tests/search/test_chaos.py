"""Projector, store, Weaviate and PostgreSQL killed in turn while records come in."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable

import orjson

from headrace import decisions, servers
from headrace.backlog import lag
from headrace.graph import persona_id
from headrace.search import compare, marks
from headrace.stores import postgres as stored
from headrace.stores import weaviate as stores
from headrace.stream.wire import Lineage, Position, Revision
from tests.stores.graphs import result
from tests.world import World, wait_for

ROUNDS = int(os.environ.get("HEADRACE_TEST_CHAOS_ROUNDS", "4"))


def test_in_the_end_both_are_equal(
    worlds: Callable[..., World], local_server: Callable[..., servers.LocalServer]
):
    weaviate, postgres = local_server("weaviate"), local_server("postgres")
    assert weaviate.address is not None and postgres.address is not None
    world = worlds(
        flags={
            "weaviate.url": str(weaviate.address),
            "weaviate.grpc_port": weaviate.address.ports["grpc"],
            "postgres.dsn": str(postgres.address),
            "processing.retry_max_seconds": 2.0,
        }
    )
    world.apply()
    draw = random.Random(5)
    victims: dict[str, subprocess.Popen[bytes]] = {}

    def kill(name: str) -> None:
        if name == "weaviate":
            weaviate.kill()
            weaviate.start()
        elif name == "postgres":
            postgres.kill()
            postgres.start()
        else:
            os.kill(victims[name].pid, signal.SIGKILL)
            victims[name].wait(30)
            victims[name] = world.start_worker("search" if name == "search" else "postgres")

    def written() -> int:
        return int(world.sql("SELECT last_value FROM search_written_id_seq")[0][0])

    victims["search"] = world.start_worker("search")
    victims["store"] = world.start_worker("postgres")
    stage = world.start_worker("text")
    jars = "community:reddit:jars"
    world.publish([
        {"id": jars, "kind": "community", "platform": "reddit", "name": "jars", "slug": "jars",
         "posts": 1, "best_posts": []},
    ])  # fmt: skip
    place = 'SELECT topic_id, partition, "offset", appended FROM records WHERE id = %s'
    (revision,) = wait_for(lambda: world.sql(place, [jars]))
    topic = world.topology.topic("raw.communities").name
    lineage = Lineage(
        Revision(*revision), "", 0, 1, (), Position(topic, revision[1], revision[2])
    ).pack()  # fmt: skip

    def new_set(number: int) -> None:
        """Of 50 personas, of which somebody hides one."""
        value = {
            "id": jars, "kind": "community", "platform": "reddit", "stage": "personas",
            "outcome": "ok", "version": "1", "at": "2026-11-21T09:00:00Z",
            "result": result(jars, number, f"of {number}", count=50),
        }  # fmt: skip
        world.send("enriched.personas", jars, orjson.dumps(value), {"hr": lineage})
        decisions.decide(world.settings, persona_id(jars, number, 7), "hide", True)

    for turn in range(ROUNDS):
        new_set(turn + 1)
        world.post(n=100, ids=[f"{turn}-{n}" for n in range(100)], texts=[f"turn {turn} words"])
        world.post(n=50, ids=[str(n) for n in range(50)], texts=[f"again {turn}"])
        world.delete(f"post:reddit:{turn}")
        if turn % 2:  # in the middle of its work
            seen = written()
            wait_for(lambda seen=seen: written() > seen, message="the projector works")
        kill(("search", "weaviate", "postgres", "store")[turn % 4])
        kill(draw.choice(("search", "store")))

    def done() -> bool:
        groups = lag.read(world.settings, ["text", "postgres"])
        return all(group.caught_up for group in groups) and marks.left(world.settings) == 0

    wait_for(done, timeout=180, message=lambda: world.log_of(victims["search"])[-2000:])
    assert stage.poll() is None
    with (
        stored.connect(world.settings, autocommit=True) as connection,
        stores.connect(world.settings) as client,
    ):

        def equal() -> bool:
            found = compare.everything(connection, client, world.settings)
            assert found.records == ROUNDS * (100 + 50) + 50 + 1  # posts, personas, one community
            return (found.apart, found.unknown) == (0, 0) and marks.left(world.settings) == 0

        # What Weaviate lost in its last crash the projector finds when it looks again, or doctor.
        wait_for(equal, timeout=120, message=lambda: world.log_of(victims["search"])[-2000:])
    assert world.sql("SELECT count(*), max(set), count(DISTINCT set) FROM personas") == [
        (49, ROUNDS, 1)
    ]
