"""Personas can be searched as records can, and leave the index as they leave PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from headrace import decisions
from headrace.backlog import doctor
from headrace.decisions import Decision
from headrace.forget import orders, sending, tables
from headrace.forget.orders import Selection
from headrace.graph import persona_id
from headrace.models import embedding
from headrace.search.versions import key
from headrace.snapshots import creation, restoring
from headrace.snapshots import forget as forget_in_snapshots
from headrace.snapshots.resetting import _DELETES, _MARK_NODES
from headrace.stream.wire import Lineage, Position, Revision
from headrace.vectors import packed
from tests.forget.conftest import Workers
from tests.search.conftest import Search

COMMUNITY = "community:reddit:technology"
FIRST = persona_id(COMMUNITY, 1, 1)


def community(search: Search) -> None:
    search.world.publish(
        [
            {
                "id": COMMUNITY, "kind": "community", "platform": "reddit", "name": "r/technology",
                "slug": "technology", "posts": 3, "best_posts": [],
                "description": "All about it",
            }
        ]
    )  # fmt: skip


def answer(
    search: Search, *, set: int = 1, ids: Sequence[str] = (), what: str = "ok", say: str = "phones"
) -> None:
    """What the stage says of the newest revision that is stored, 50 personas by default."""
    space = embedding.space_of(search.settings.embeddings)
    model, _, dimensions = space.rpartition("-")

    def vector(number: int) -> str:
        numbers = np.zeros(int(dimensions), "<f4")
        numbers[number] = 1
        return packed(numbers.tobytes())

    world = search.world
    ((topic_id, partition, offset, appended),) = world.sql(
        'SELECT topic_id, partition, "offset", appended FROM records WHERE id = %s', [COMMUNITY]
    )
    topic = world.topology.topic("raw.communities").name
    lineage = Lineage(
        Revision(topic_id, partition, offset, appended), "r1", 0, 1, (),
        Position(topic, partition, offset),
    )  # fmt: skip
    value: dict[str, Any] = {
        "id": COMMUNITY, "kind": "community", "platform": "reddit", "stage": "personas",
        "outcome": what, "version": "1", "at": "2026-11-21T09:00:00Z",
    }  # fmt: skip
    if what == "ok":
        names = ids or [persona_id(COMMUNITY, set, place) for place in range(1, 51)]
        value["result"] = {
            "set": set, "changed": False, "model": "gpt-test", "kept": [],
            "vectors": {"model": model, "dimensions": int(dimensions)},
            "community": {
                "name": "r/technology", "about": "Gadgets and their makers", "tone": "dry",
                "themes": ["right to repair"], "vector": vector(100),
            },
            "personas": [
                {
                    "id": name, "name": f"Ann {place}", "age_range": "25-34",
                    "occupation": "Nurse" if place == 1 else "Clerk", "interests": [say],
                    "goals": ["a good one"], "frustrations": ["prices"], "tone_of_voice": "warm",
                    "typical_posts": ["Which one?"], "evidence": ["post:reddit:1"],
                    "vector": vector(place),
                }
                for place, name in enumerate(names, 1)
            ],
        }  # fmt: skip
    headers = {"hr": lineage.pack()}
    world.send("enriched.personas", COMMUNITY, orjson.dumps(value), headers)


@pytest.fixture
def stored(search: Search) -> Iterator[Workers]:
    """The store at work in this process."""
    workers = Workers(search.world.apply(), "postgres")
    yield workers
    workers.close()


def catch_up(search: Search, stored: Workers) -> None:
    stored.catch_up()
    search.project()


def personas(search: Search) -> dict[str, dict[str, Any]]:
    return search.objects("RedditPersona")


def in_order(search: Search) -> None:
    """Weaviate shows what PostgreSQL has, and the graph holds together."""
    compared = search.compare()
    assert (compared.apart, compared.unknown) == (0, 0), compared
    with search.connection() as own:
        assert list(doctor._graph(own)) == []


def test_a_community_is_51_objects(search: Search, stored: Workers) -> None:
    world = search.world
    community(search)
    catch_up(search, stored)
    assert len(search.objects("RedditCommunity")) == 1
    answer(search)
    catch_up(search, stored)
    ((name, shown),) = search.objects("RedditCommunity").items()
    assert name == COMMUNITY and shown["personas_status"] == "ok"
    told = "All about it\nGadgets and their makers\nThemes: right to repair"
    assert shown["text"] == told
    assert search.object(COMMUNITY, "RedditCommunity").vector["default"][100] == 1
    assert len(personas(search)) == 50
    one = personas(search)[FIRST]
    assert (one["title"], one["kind"], one["platform"]) == ("Ann 1", "persona", "reddit")
    assert (one["community"], one["community_key"]) == ("r/technology", "technology")
    assert one["text"] == (
        "Nurse, 25-34\nTone: warm\nInterests: phones\nWants: a good one\nTroubled by: prices"
        "\nPosts: Which one?"
    )
    assert search.object(FIRST, "RedditPersona").vector["default"][1] == 1
    in_order(search)
    asked = ("search", "nurse", "--kind", "persona", "--mode", "keyword", "--json")
    (hit,) = json.loads(world.command(*asked).stdout)
    assert (hit["id"], hit["title"], hit["community"]) == (FIRST, "Ann 1", "r/technology")

    # What people decide holds, in PostgreSQL and here.
    settings = search.settings
    hidden, second = persona_id(COMMUNITY, 1, 9), persona_id(COMMUNITY, 1, 2)
    decisions.decide(settings, FIRST, "edit", {"occupation": "Astronaut"}, "ann")
    decisions.decide(settings, second, "lock", True, "ann")
    decisions.decide(settings, hidden, "hide", True)
    decisions.decide(settings, second, "lock", None, "ann")
    standing = decisions.standing(settings)
    assert set(standing) == {(FIRST, "edit"), (hidden, "hide")}
    found = standing[FIRST, "edit"]
    assert found == Decision({"occupation": "Astronaut"}, found.at, "ann")
    catch_up(search, stored)
    assert len(personas(search)) == 49 and hidden not in personas(search)
    assert personas(search)[FIRST]["text"].startswith("Astronaut, 25-34\n")
    assert world.sql("SELECT count(*) FROM personas") == [(49,)]
    in_order(search)

    # Another set: the older ones leave the index, but for what is kept.
    answer(search, set=2, ids=[FIRST, *(persona_id(COMMUNITY, 2, n) for n in range(1, 50))])
    catch_up(search, stored)
    assert len(personas(search)) == 50 and second not in personas(search)
    assert personas(search)[FIRST]["text"].startswith("Astronaut, 25-34\n")
    in_order(search)
    # What Weaviate loses is found again, and what nobody knows goes.
    collection = search.client.collections.use(search.names()[_alias(search)][0])
    collection.data.delete_by_id(key(FIRST))
    collection.data.insert({"record_id": second, "row_version": 1}, uuid=key(second))
    assert search.compare().apart == 2
    search.project()
    in_order(search)
    # Made anew it holds the same.
    before = personas(search)
    world.command("search", "rebuild")
    assert personas(search) == before and search.names()[_alias(search)][0].endswith("_v2")
    in_order(search)

    # The community is deleted: they go with it, before the stage comes to that and after.
    world.delete(COMMUNITY)
    catch_up(search, stored)
    assert personas(search) == {} == search.objects("RedditCommunity")
    in_order(search)
    answer(search, what="deleted")
    catch_up(search, stored)
    assert world.sql("SELECT count(*) FROM nodes") == [(0,)]
    assert world.sql("SELECT count(*) FROM vectors") == [(0,)]
    assert personas(search) == {}
    in_order(search)


def _alias(search: Search) -> str:
    project = search.world.project
    return f"{project[0].upper()}{project[1:]}_RedditPersona"


def test_they_are_kept_reset_and_forgotten_with_their_community(
    search: Search, stored: Workers
) -> None:
    world, settings = search.world, search.settings
    ids = [FIRST, persona_id(COMMUNITY, 1, 2)]
    community(search)
    stored.catch_up()
    answer(search, ids=ids, say="a secret")
    decisions.decide(settings, FIRST, "edit", {"occupation": "Secret agent"})
    decisions.decide(settings, "persona:reddit:other:1-01", "hide", True)
    catch_up(search, stored)
    shown = "SELECT id, occupation, interests FROM personas ORDER BY id"
    told = [(FIRST, "Secret agent", ["a secret"]), (ids[1], "Clerk", ["a secret"])]
    assert world.sql(shown) == told

    # Back from a snapshot, after a clean run of the stage was begun.
    creation.create(settings, "one")
    for statement in (_MARK_NODES, *_DELETES):
        world.sql(statement, {"stages": ["personas"], "ids": [COMMUNITY]})
    assert world.sql("SELECT count(*) FROM nodes") == [(0,)]
    assert world.sql("SELECT count(*) FROM vectors") == [(0,)]
    search.project()
    assert personas(search) == {}
    stored.close()
    restoring.restore(settings, "one")
    stored.__init__(world, "postgres")  # type: ignore[misc]
    search.project()
    assert world.sql(shown) == told and personas(search).keys() == set(ids)
    in_order(search)

    # Forgotten: tables, topic, search and snapshots.
    world.delete(COMMUNITY)
    with search.connection() as own:
        order = orders.make(own, world.topology, Selection(ids=(COMMUNITY,)), purge=False)
        assert tables.found(own, order) == {
            "records": 1, "outcomes": 1, "entity_mentions": 0, "vectors": 1, "scores": 0,
            "nodes": 3, "decisions": 1, "redo": 0,
        } | {name: 0 for name in tables.found(own, order) if name.startswith("llm")}  # fmt: skip
        stored.catch_up()
        assert tables.marked(own, order) == 3
        tables.empty(own, order)
        topic = world.topology.topic("decisions").name
        assert sending.decided(own, settings, topic, order).keys() == {(topic, 0)}
        assert sending.decided(own, settings, topic, order) == {}
        for table in ("nodes", "edges", "vectors"):
            assert world.sql(f"SELECT count(*) FROM {table}") == [(0,)]
        assert world.sql("SELECT subject FROM decisions") == [("persona:reddit:other:1-01",)]
        search.project()
        assert tables.marked(own, order) == 0
    assert personas(search) == {} == search.objects("RedditCommunity")
    assert decisions.standing(settings).keys() == {("persona:reddit:other:1-01", "hide")}
    catch_up(search, stored)  # the store reads that they are taken out
    assert world.sql("SELECT count(*) FROM decisions WHERE value::text ~ 'Secret'") == [(0,)]
    # record, outcome, three vectors, three nodes, two edges, what was decided
    assert forget_in_snapshots(settings, [COMMUNITY], dry_run=True) == {"one": 11}
    anew = forget_in_snapshots(settings, [COMMUNITY], anew=[COMMUNITY], dry_run=True)
    assert anew == {"one": 10}
    assert forget_in_snapshots(settings, [COMMUNITY]) == {"one": 11}
    in_order(search)
