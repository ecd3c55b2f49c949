"""Nodes, edges and vectors of personas: what is served is current, whatever the order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.backlog import doctor
from headrace.graph import edge_id, persona_id, record_of
from tests.stores.conftest import Database
from tests.stores.graphs import COMMUNITY, decision, outcome, raw, result, vector


@pytest.fixture(scope="module")
def module_database(databases: Callable[..., Database]) -> Database:
    return databases()


@pytest.fixture
def database(module_database: Database) -> Iterator[Database]:
    yield module_database
    module_database.empty()


def test_names_are_the_same_in_python_and_in_sql(database: Database) -> None:
    for community in (COMMUNITY, "community:reddit:a:b"):
        name = persona_id(community, 12, 3)
        assert name == f"persona:{community.removeprefix('community:')}:12-03"
        assert record_of(name) == community and record_of(community) == community
        assert database.sql("SELECT record_of(%s), record_of(%s)", name, community) == [
            (community, community)
        ]
    for odd in ("persona:", "persona:a", "persona::", "persona:a:", "persona:a:b\n:c", "x:y", ""):
        assert database.sql("SELECT record_of(%s)", odd) == [(record_of(odd),)]


def test_a_community_and_its_personas_can_be_asked_by_sql(database: Database) -> None:
    database.write([raw(database, 3), outcome(database, 3)])
    assert database.sql("SELECT count(*) FROM personas") == [(2,)]
    assert database.sql("SELECT name FROM communities ORDER BY created_at DESC") == [
        ("r/technology",)
    ]
    assert database.sql(
        "SELECT about, tone, themes, personas, created_at <= enriched_at FROM communities"
    ) == [("gadgets ", "dry", ["phones", "law"], 2, True)]
    first = persona_id(COMMUNITY, 1, 1)
    cursor = database.connection.execute("SELECT * FROM personas WHERE id = %s", [first])
    (row,) = cursor.fetchall()
    shown = dict(zip([column.name for column in cursor.description or ()], row, strict=True))
    assert shown.pop("created_at") and shown.pop("updated_at")
    assert shown == {
        "id": first, "community_id": COMMUNITY, "platform": "reddit", "community": "r/technology",
        "name": "Ann ", "age_range": "25-34", "occupation": "Nurse", "interests": ["phones"],
        "goals": ["a good one"], "frustrations": ["prices"], "tone_of_voice": "warm",
        "typical_posts": ["Which one?"], "evidence": ["post:reddit:1"], "set": 1,
        "locked": False, "edited": False, "model": "gpt-test", "version": "1",
    }  # fmt: skip
    assert database.sql(
        "SELECT id, kind, source, target, root_id, root_offset FROM edges ORDER BY source"
    ) == [
        (edge_id("member_of", name, COMMUNITY), "member_of", name, COMMUNITY, COMMUNITY, 3)
        for name in (first, persona_id(COMMUNITY, 1, 2))
    ]
    assert database.sql(
        "SELECT record_id, space, stage, dimensions, root_offset FROM vectors ORDER BY record_id"
    ) == [
        (name, "m-2", "personas", 2, 3) for name in (COMMUNITY, first, persona_id(COMMUNITY, 1, 2))
    ]
    # What nodes and vectors hold stands nowhere else.
    ((kept,),) = database.sql("SELECT result FROM outcomes")
    assert kept == {
        "set": 1, "changed": False, "model": "gpt-test", "kept": [],
        "vectors": {"model": "m", "dimensions": 2},
        "personas": [first, persona_id(COMMUNITY, 1, 2)],
    }  # fmt: skip


def test_a_set_follows_another_and_stays_as_history(database: Database) -> None:
    first = persona_id(COMMUNITY, 1, 1)
    database.write([raw(database, 3), outcome(database, 3, result(say="old"))])
    # The file grew: the same set under a newer revision.
    database.write([raw(database, 4), outcome(database, 4, result(say="old"))])
    assert database.sql("SELECT DISTINCT root_offset, superseded_at FROM nodes") == [(4, None)]
    # A new set, in which the first is kept, made of the same revision.
    ids = [first, persona_id(COMMUNITY, 2, 1)]
    database.write([outcome(database, 4, result(set=2, say="new", ids=ids))])
    assert database.sql("SELECT id, name, set FROM personas ORDER BY id") == [
        (first, "Ann new", 2), (ids[1], "Ann new", 2),
    ]  # fmt: skip
    assert database.sql(
        "SELECT id, name, set, superseded_at = '2026-11-21T09:00:00.123Z' FROM persona_history"
    ) == [(persona_id(COMMUNITY, 1, 2), "Ann old", 1, True)]
    assert database.sql("SELECT source FROM edges WHERE superseded_at IS NULL ORDER BY 1") == [
        (one,) for one in ids
    ]
    assert database.sql("SELECT record_id FROM vectors ORDER BY 1") == [
        (one,) for one in (COMMUNITY, *ids)
    ]
    # Dead and dropped take nothing away, a late answer about an older revision changes nothing.
    before = database.sql("SELECT id, name, superseded_at, row_version FROM nodes ORDER BY id")
    database.write([outcome(database, 5, what="dead"), outcome(database, 6, what="drop")])
    database.write([outcome(database, 3, result(set=3, say="late"))])
    now = database.sql("SELECT id, name, superseded_at, row_version FROM nodes ORDER BY id")
    assert now == before
    # The record is deleted: nobody sees its personas, and when the stage has said so, they go.
    database.write([raw(database, 7, deleted=True)])
    assert database.sql("SELECT count(*) FROM personas") == [(0,)]
    assert database.sql("SELECT count(*) FROM persona_history") == [(0,)]
    database.write([outcome(database, 7, what="deleted")])
    database.write([outcome(database, 6, result(set=3, say="late"))])
    for table in ("nodes", "edges", "vectors"):
        assert database.sql(f"SELECT count(*) FROM {table}") == [(0,)]


def test_decisions_are_laid_over_and_hold_for_later_sets(database: Database) -> None:
    first, second = (persona_id(COMMUNITY, 1, place) for place in (1, 2))
    database.write([decision(database, first, "edit", {"occupation": "Judge", "name": "Bea"})])
    database.write([raw(database, 3), outcome(database, 3)])
    database.write([decision(database, second, "hide", True)])
    database.write([decision(database, first, "lock", True)])
    shown = "SELECT id, name, occupation, interests, edited, locked FROM personas ORDER BY id"
    assert database.sql(shown) == [(first, "Bea", "Judge", ["phones"], True, True)]
    assert database.sql("SELECT personas FROM communities") == [(1,)]
    database.write([outcome(database, 4, result(say="again"))])
    assert database.sql(shown) == [(first, "Bea", "Judge", ["phones"], True, True)]
    # The later position holds, whichever comes first; null takes back, and so does no value at all.
    late = decision(database, first, "edit", {"name": "Eve"}, offset=500)
    early = decision(database, first, "edit", {"name": "Dot"}, offset=400)
    database.write([late])
    database.write([early])
    assert database.sql("SELECT name, occupation FROM personas") == [("Eve", "Nurse")]
    database.write([
        decision(database, second, "hide", None, offset=501),
        database.message("decisions", f"{first}/edit", None, (), 502),
    ])  # fmt: skip
    assert database.sql(shown) == [
        (first, "Ann again", "Nurse", ["phones"], False, True),
        (second, "Ann again", "Nurse", ["phones"], False, False),
    ]
    assert database.sql("SELECT DISTINCT record_id FROM decisions") == [(COMMUNITY,)]


def test_what_is_none_becomes_a_dead_letter(database: Database) -> None:
    strange = result(ids=[persona_id("community:reddit:cooking", 1, 1)])
    twice = result(ids=[persona_id(COMMUNITY, 1, 1)] * 2)
    short = result()
    short["personas"][0]["vector"] = vector(0, 1)
    said = database.write(
        [
            outcome(database, 1, strange),
            outcome(database, 1, twice),
            outcome(database, 1, short),
            outcome(database, 1, parts=("personas",)),
            decision(database, persona_id(COMMUNITY, 1, 1), "paint", True),
            decision(database, persona_id(COMMUNITY, 1, 1), "edit", True),
            decision(database, persona_id(COMMUNITY, 1, 1), "lock", {"name": "x"}),
            database.message("decisions", "a/lock", {"subject": "b", "action": "lock",
                             "value": True, "at": "2026-11-21T10:00:00Z"}),
            database.message("decisions", None, None),
            decision(database, "x", "lock", True),
        ]
    )  # fmt: skip
    other = f"no persona of {COMMUNITY}, or stands there twice"
    assert [one.partition(" is ")[2] for one in said[:2]] == [other, other]
    assert [one.partition(":")[0] for one in said[2:]] == [
        "the vector of persona",
        "an outcome of personas is whole, it has no parts",
        "its key is not <subject>/<action>",
        "it does not fit its schema",
        "it does not fit its schema",
        "its key is not <subject>/<action>",
        "its key is not <subject>/<action>",
    ]
    assert database.sql("SELECT count(*) FROM dead_letters WHERE \"group\" = 'postgres'") == [(9,)]
    assert database.sql("SELECT subject FROM decisions") == [("x",)]
    assert database.sql("SELECT count(*) FROM nodes") == [(0,)]


def test_each_change_is_marked_for_search(database: Database) -> None:
    def marked() -> set[str]:
        rows = database.sql("DELETE FROM search_dirty RETURNING record_id")
        return {record for (record,) in rows}

    first, second = (persona_id(COMMUNITY, 1, place) for place in (1, 2))
    database.sql("DELETE FROM search_dirty")
    database.write([outcome(database, 3)])
    assert marked() == {COMMUNITY, first, second}
    database.write([decision(database, first, "lock", True)])
    assert marked() == {first}
    database.write([outcome(database, 3, result(set=2))])
    new = {persona_id(COMMUNITY, 2, place) for place in (1, 2)}
    assert marked() == {COMMUNITY, first, second} | new
    database.write([raw(database, 4, deleted=True)])
    assert marked() == {COMMUNITY} | new
    database.write([outcome(database, 4, what="deleted")])
    assert marked() == {COMMUNITY, first, second} | new


def test_what_is_served_by_halves_is_found(database: Database) -> None:
    def faults() -> list[str]:
        return [finding.what for finding in doctor._graph(database.connection)]

    database.write([raw(database, 3), outcome(database, 3, result(count=50))])
    database.write([outcome(database, 3, result(set=2)), outcome(database, 4, what="dead")])
    assert faults() == []
    first, second = (persona_id(COMMUNITY, 2, place) for place in (1, 2))
    database.sql("UPDATE nodes SET superseded_at = now() WHERE id = %s", first)
    assert faults() == [
        "1 edges are served although a node of theirs is not", "1 communities are served by halves"
    ]  # fmt: skip
    database.sql("DELETE FROM nodes WHERE id = %s", second)
    database.sql("DELETE FROM outcomes")
    assert faults() == [
        "1 edges stand without a node at one end",
        "1 edges are served although a node of theirs is not",
        "1 nodes are served without an answer of their stage",
    ]


def test_ordinary_batches_ask_nothing_more(database: Database) -> None:
    """Of stages without graphs no statement looks at nodes, edges or decisions."""
    store = database.store(database.connection)
    batch = store.read([database.raw("a", 1), database.outcome("a", 1)])
    store.resolve(database.connection, batch)
    asked: list[str] = []

    class Listening:
        def execute(self, query: Any, *rest: Any) -> Any:
            asked.append(query.decode() if isinstance(query, bytes) else str(query))
            return database.connection.execute(query, *rest)

        def __getattr__(self, name: str) -> Any:
            return getattr(database.connection, name)

    with database.connection.transaction():
        store.write(Listening(), batch)  # type: ignore[arg-type]
    assert asked and not [one for one in asked if "nodes" in one or "decisions" in one]


# -- whatever the order


class Event(NamedTuple):
    """An outcome; its place in the topic is its number in the list."""

    community: str
    root: int
    set: int
    keeps: bool
    outcome: str
    rank: int


COMMUNITIES = ("community:reddit:a", "community:reddit:b")


def _events() -> st.SearchStrategy[list[Event]]:
    event = st.builds(
        Event,
        st.sampled_from(COMMUNITIES),
        st.integers(0, 3),
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from(["ok", "ok", "ok", "drop", "dead"]),
        st.integers(1, 2),
    )
    # A revision is a deletion or it is none: of some revisions every outcome is `deleted`.
    gone = st.sets(st.integers(0, 3), max_size=2)
    return st.tuples(st.lists(event, min_size=1, max_size=8), gone).map(
        lambda drawn: [
            one._replace(outcome="deleted") if one.root in drawn[1] else one for one in drawn[0]
        ]
    )


def _ids(event: Event) -> list[str]:
    ids = [persona_id(event.community, event.set, place) for place in (1, 2)]
    if event.keeps and event.set > 1:
        ids[0] = persona_id(event.community, 1, 1)
    return ids


def _expected(events: Sequence[Event]) -> set[tuple[str, str]]:
    """Ids and names of what is current, by the words of the design and nothing else."""
    current = set()
    for community in COMMUNITIES:
        own = [(e.root, e.rank, n, e) for n, e in enumerate(events) if e.community == community]
        deleted = max((root for root, *_, e in own if e.outcome == "deleted"), default=-1)
        served = [one for one in own if one[3].outcome == "ok" and one[0] > deleted]
        if served:
            _, _, number, event = max(served, key=lambda one: one[:3])
            current.add((community, "r/technology"))
            current |= {(name, f"Ann {number}") for name in _ids(event)}
    return current


_ROWS = (
    "SELECT id, kind, name, properties::text, root_offset, rank, superseded_at IS NULL,"
    " platform_id FROM nodes ORDER BY id",
    "SELECT id, source, target, root_offset, superseded_at IS NULL FROM edges ORDER BY id",
    "SELECT record_id, space, vector, root_offset FROM vectors ORDER BY record_id, space",
)


def _arrive(database: Database, events: Sequence[Event], cuts: Sequence[Sequence[int]]) -> Any:
    database.empty()
    for part in cuts:
        database.write(
            [
                outcome(
                    database,
                    events[n].root,
                    result(events[n].community, events[n].set, str(n), _ids(events[n])),
                    community=events[n].community,
                    what=events[n].outcome,
                    rank=events[n].rank,
                    offset=n,
                )
                for n in part
            ]
        )
    return [database.sql(query) for query in _ROWS]


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_order_of_arrival_ends_the_same(database: Database, data: st.DataObject) -> None:
    events = data.draw(_events())
    again = data.draw(st.lists(st.integers(0, len(events) - 1), max_size=2))  # redelivered
    order = data.draw(st.permutations([*range(len(events)), *again]))
    cut = data.draw(st.integers(1, len(order)))
    batches = [order[first : first + cut] for first in range(0, len(order), cut)]
    nodes, edges, vectors = rows = _arrive(database, events, batches)
    current = {(row[0], row[2]) for row in nodes if row[6]}
    assert current == _expected(events)
    assert {row[0] for row in vectors} == {name for name, _ in current}
    assert {row[1] for row in edges if row[4]} == {n for n, _ in current} - {*COMMUNITIES}
    assert {row[1] for row in edges} <= {row[0] for row in nodes}
    # What is history was served once, and no deletion has come for it.
    deleted = {
        community: max((e.root for e in events if e[0::4] == (community, "deleted")), default=-1)
        for community in COMMUNITIES
    }
    assert all(row[4] > deleted[record_of(row[0])] for row in nodes)
    # However the messages are cut into batches: history is the same, too.
    assert _arrive(database, events, [[number] for number in order]) == rows
    assert database.sql(
        "SELECT count(*) FROM nodes WHERE superseded_at IS NULL AND kind = 'persona'"
    ) == [(len([1 for name, _ in current if name not in COMMUNITIES]),)]


def test_every_order_of_two_sets_and_a_deletion(database: Database) -> None:
    events = [
        Event(COMMUNITIES[0], 0, 1, False, "ok", 1),
        Event(COMMUNITIES[0], 1, 1, False, "deleted", 1),
        Event(COMMUNITIES[0], 2, 2, True, "ok", 1),
        Event(COMMUNITIES[0], 3, 2, True, "dead", 1),
    ]
    ends = {str(_arrive(database, events, [order])) for order in itertools.permutations(range(4))}
    assert len(ends) == 1
