"""Personas can be searched as records can, and leave the index as they leave PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Message

from headrace import decisions
from headrace.backlog import doctor
from headrace.decisions import Decision
from headrace.forget import orders, sending, tables
from headrace.forget.orders import Selection
from headrace.graph import persona_id
from headrace.models import embedding
from headrace.search import collections
from headrace.search.query import Filters, Searcher
from headrace.search.versions import key
from headrace.snapshots import creation, resetting, restoring
from headrace.snapshots import forget as forget_in_snapshots
from headrace.stream import topics
from tests.search.conftest import Search
from tests.stores.conftest import Database, databases
from tests.stores.graphs import COMMUNITY, decision, outcome, raw, result

__all__ = ["databases"]  # a fixture of tests/stores

FIRST, SECOND, NINTH = (persona_id(COMMUNITY, 1, place) for place in (1, 2, 9))


class Pictured(Search):
    """A store that is handed its messages, and a projector; without Kafka."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)  # type: ignore[arg-type]
        self.database = database
        space = embedding.space_of(self.settings.embeddings)
        model, _, dimensions = space.rpartition("-")
        self.space = (model, int(dimensions))

    def take(self, *messages: Message) -> None:
        assert self.database.write(messages) == []
        self.project()

    def personas(self) -> dict[str, dict[str, Any]]:
        return self.objects("RedditPersona")

    def in_order(self) -> None:
        """Weaviate shows what PostgreSQL has, and the graph holds together."""
        compared = self.compare()
        assert (compared.apart, compared.unknown) == (0, 0), compared
        with self.connection() as own:
            assert list(doctor._graph(own)) == []

    @property
    def serving(self) -> Any:
        """The collection that holds the personas."""
        project = self.database.project
        (found,) = self.names()[f"{project[0].upper()}{project[1:]}_RedditPersona"]
        return self.client.collections.use(found)


@pytest.fixture
def pictured(
    databases: Callable[..., Database], search_flags: dict[str, Any]
) -> Iterator[Pictured]:
    made = Pictured(databases(**search_flags))
    yield made
    made.close()


def test_a_community_is_51_objects(pictured: Pictured) -> None:
    database = pictured.database
    pictured.take(raw(database, 1, description="All about it"))
    assert len(pictured.objects("RedditCommunity")) == 1
    answer = result(say="one", count=50, space=pictured.space)
    answer["personas"][0]["occupation"] = "Nurse practitioner"
    pictured.take(outcome(database, 1, answer))
    ((name, shown),) = pictured.objects("RedditCommunity").items()
    assert name == COMMUNITY and shown["personas_status"] == "ok"
    assert shown["text"] == "All about it\ngadgets one\nThemes: phones; law"
    assert pictured.object(COMMUNITY, "RedditCommunity").vector["default"][0] == 1
    assert len(pictured.personas()) == 50
    one = pictured.personas()[FIRST]
    assert (one["title"], one["kind"], one["platform"]) == ("Ann one", "persona", "reddit")
    assert (one["community"], one["community_key"]) == ("r/technology", "technology")
    assert one["text"] == (
        "Nurse practitioner, 25-34\nTone: warm\nInterests: phones\nWants: a good one"
        "\nTroubled by: prices\nPosts: Which one?"
    )
    assert pictured.object(FIRST, "RedditPersona").vector["default"][1] == 1
    pictured.in_order()
    with Searcher(pictured.settings) as searcher:
        (hit,) = searcher.search("practitioner", "keyword", Filters(kinds=("persona",)))
    assert (hit.id, hit.title, hit.community) == (FIRST, "Ann one", "r/technology")


def test_they_leave_the_index_as_they_leave_the_tables(pictured: Pictured) -> None:
    database = pictured.database
    pictured.take(raw(database, 1), outcome(database, 1, result(count=9, space=pictured.space)))
    pictured.take(
        decision(database, FIRST, "edit", {"occupation": "Astronaut"}),
        decision(database, NINTH, "hide", True),
    )
    assert len(pictured.personas()) == 8 and NINTH not in pictured.personas()
    assert pictured.personas()[FIRST]["text"].startswith("Astronaut, 25-34\n")
    pictured.in_order()
    pictured.take(decision(database, NINTH, "hide", None))
    assert len(pictured.personas()) == 9
    # Another set: the older ones go, but for what is kept, which stays as it was edited.
    ids = [FIRST, *(persona_id(COMMUNITY, 2, place) for place in range(1, 9))]
    pictured.take(outcome(database, 1, result(set=2, ids=ids, space=pictured.space)))
    assert pictured.personas().keys() == set(ids)
    assert pictured.personas()[FIRST]["text"].startswith("Astronaut, 25-34\n")
    pictured.in_order()
    # What Weaviate loses is found again, and what nobody knows goes.
    pictured.serving.data.delete_by_id(key(FIRST))
    assert pictured.compare().apart == 1
    pictured.project()
    pictured.serving.data.insert({"record_id": SECOND, "row_version": 1}, uuid=key(SECOND))
    pictured.serving.data.insert({"record_id": "persona:x:y:1-01"}, uuid=key("persona:x:y:1-01"))
    compared = pictured.compare()
    assert (compared.apart, compared.unknown) == (1, 1)
    pictured.project()
    pictured.in_order()
    # Made anew it holds the same.
    before = pictured.personas()
    with pictured.connection() as own, own.transaction():
        collections.begin_rebuild(own, pictured.client, pictured.settings)
    pictured.project()
    assert pictured.personas() == before and pictured.serving.name.endswith("_v2")
    pictured.in_order()
    # The community is deleted: they go with it before the stage comes to that, and after.
    pictured.take(raw(database, 2, deleted=True))
    assert pictured.personas() == {} == pictured.objects("RedditCommunity")
    pictured.in_order()
    pictured.take(outcome(database, 2, what="deleted"))
    assert pictured.personas() == {}
    pictured.in_order()
    # A stage that begins anew.
    pictured.take(raw(database, 3), outcome(database, 3, result(space=pictured.space)))
    assert pictured.personas().keys() == {FIRST, SECOND}
    resetting.take_back(database.connection, pictured.settings, ["personas"], [COMMUNITY])
    assert database.sql("SELECT count(*) FROM nodes") == [(0,)]
    assert database.sql("SELECT count(*) FROM vectors") == [(0,)]
    pictured.project()
    assert pictured.personas() == {}
    pictured.in_order()


def test_they_are_kept_and_forgotten_with_their_community(pictured: Pictured, kafka: str) -> None:
    settings = pictured.settings.model_copy(
        update={"kafka": pictured.settings.kafka.model_copy(update={"bootstrap_servers": kafka})}
    )
    database, other = pictured.database, "persona:reddit:other:1-01"
    answer = result(say="secret", space=pictured.space)
    pictured.take(raw(database, 1), outcome(database, 1, answer))

    # What was decided is told by the topic, the newest of each.
    topics.ensure(settings, database.topology)
    decisions.decide(settings, FIRST, "edit", {"occupation": "Secretary"}, "ann")
    decisions.decide(settings, FIRST, "edit", {"occupation": "Secret agent"}, "ann")
    decisions.decide(settings, SECOND, "lock", True, "ann")
    decisions.decide(settings, SECOND, "lock", None, "ann")
    decisions.decide(settings, other, "hide", True)
    standing = decisions.standing(settings)
    assert standing.keys() == {(FIRST, "edit"), (other, "hide")}
    edit = standing[FIRST, "edit"]
    assert edit == Decision({"occupation": "Secret agent"}, edit.at, "ann")
    pictured.take(
        decision(database, FIRST, "edit", edit.value), decision(database, other, "hide", True)
    )
    shown = "SELECT id, name, occupation FROM personas ORDER BY id"
    told = [(FIRST, "Ann secret", "Secret agent"), (SECOND, "Ann secret", "Nurse")]
    assert database.sql(shown) == told

    creation.create(settings, "one")
    database.empty()
    restoring.restore(settings, "one")
    assert database.sql(shown) == told
    pictured.project()
    assert pictured.personas().keys() == {FIRST, SECOND}
    pictured.in_order()

    assert database.write([raw(database, 2, deleted=True)]) == []
    with pictured.connection() as own:
        order = orders.make(own, database.topology, Selection(ids=(COMMUNITY,)), purge=False)
        found = tables.found(own, order)
        assert (found["nodes"], found["decisions"]) == (3, 1)
        assert tables.marked(own, order) == 3
        tables.empty(own, order)
        topic = database.topology.topic("decisions").name
        assert sending.decided(own, settings, topic, order).keys() == {(topic, 0)}
        assert sending.decided(own, settings, topic, order) == {}
        pictured.project()
        assert tables.marked(own, order) == 0
    assert decisions.standing(settings).keys() == {(other, "hide")}
    for table in ("nodes", "edges", "vectors"):
        assert database.sql(f"SELECT count(*) FROM {table}") == [(0,)]
    assert database.sql("SELECT subject FROM decisions") == [(other,)]
    assert pictured.personas() == {} == pictured.objects("RedditCommunity")
    pictured.in_order()
    # record, outcome, three vectors, three nodes, two edges, and what was decided
    assert forget_in_snapshots(settings, [COMMUNITY], dry_run=True) == {"one": 11}
    anew = forget_in_snapshots(settings, [COMMUNITY], anew=[COMMUNITY], dry_run=True)
    assert anew == {"one": 10}
    assert forget_in_snapshots(settings, [COMMUNITY]) == {"one": 11}
