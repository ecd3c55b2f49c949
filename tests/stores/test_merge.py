"""Whatever the order of arrival, the tables end the same: invariants 2 to 4."""

from __future__ import annotations

import itertools
import random
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.stores import postgres
from tests.stores.conftest import ENTITY, Database, embedded

# Two records, two incarnations of their raw topic; what comes of the second is newer although its
# offsets are smaller.
INCARNATIONS = ("old", "new")


class Event(NamedTuple):
    """An outcome of stage entities; its place in the topic is its number in the list."""

    record: str
    incarnation: int
    root: int
    outcome: str
    input_rank: int
    rank: int


def _events() -> st.SearchStrategy[list[Event]]:
    event = st.builds(
        Event,
        st.sampled_from(["a", "b"]),
        st.integers(0, 1),
        st.integers(0, 3),
        st.sampled_from(["ok", "ok", "drop", "dead", "deferred"]),
        st.integers(0, 1),
        st.integers(1, 2),
    )
    # A revision is a deletion or it is none: of some revisions every outcome is `deleted`.
    gone = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=2)
    return st.tuples(st.lists(event, min_size=1, max_size=10), gone).map(
        lambda drawn: [
            one._replace(outcome="deleted") if (one.incarnation, one.root) in drawn[1] else one
            for one in drawn[0]
        ]
    )


def _expected(events: Sequence[Event]) -> tuple[set[Any], set[Any]]:
    """Rows of outcomes and of mentions, by the words of the design and nothing else."""
    outcomes, mentions = set(), set()
    for record in {event.record for event in events}:
        ordered = sorted(
            (
                ((e.incarnation, e.root), e.input_rank, e.rank, number, e.outcome)
                for number, e in enumerate(events)
                if e.record == record
            )
        )
        *_, last = ordered
        deletions = [one[0] for one in ordered if one[4] == "deleted"]
        served = [
            one for one in ordered if one[4] == "ok" and one[0] > max(deletions, default=(-1, 0))
        ]
        best = served[-1][3] if served else None
        outcomes.add((f"post:reddit:{record}", last[4], last[3], best))
        if best is not None:
            mentions.add((f"post:reddit:{record}", f"name {best}"))
    return outcomes, mentions


def _message(database: Database, number: int, event: Event) -> Message:
    mention = ENTITY | {"name": f"name {number}"}
    return database.outcome(
        event.record,
        event.root,
        "entities",
        event.outcome,
        result={"entities": [mention]},
        input_rank=event.input_rank,
        rank=event.rank,
        offset=number,
        incarnation=INCARNATIONS[event.incarnation],
        at=event.incarnation * 1000 + event.root,
    )


def _found(database: Database) -> tuple[set[Any], set[Any]]:
    outcomes = database.sql(
        "SELECT record_id, outcome, out_offset, CASE WHEN outcome = 'ok' THEN out_offset"
        " ELSE (earlier->'out'->>2)::bigint END FROM outcomes"
    )
    mentions = database.sql("SELECT record_id, name FROM entity_mentions")
    assert len(mentions) == len(set(mentions))
    return set(outcomes), set(mentions)


def _cut(messages: Sequence[Message], cuts: Iterable[int]) -> list[Sequence[Message]]:
    marks = [0, *sorted({cut % (len(messages) + 1) for cut in cuts}), len(messages)]
    return [messages[a:b] for a, b in itertools.pairwise(marks) if a < b]


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_events(), st.randoms(use_true_random=False), st.lists(st.integers(0, 20), max_size=4))
def test_any_order_of_outcomes_ends_the_same(
    database: Database, events: list[Event], chance: random.Random, cuts: list[int]
) -> None:
    database.empty()
    messages = [_message(database, number, event) for number, event in enumerate(events)]
    messages += chance.sample(messages, k=len(messages) // 3)  # redelivered
    chance.shuffle(messages)
    for part in _cut(messages, cuts):
        assert database.write(part) == []
    assert _found(database) == _expected(events)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_events(), st.randoms(use_true_random=False), st.lists(st.integers(0, 20), max_size=4))
def test_any_order_of_vectors_ends_with_that_of_what_is_served(
    database: Database, events: list[Event], chance: random.Random, cuts: list[int]
) -> None:
    database.empty()
    messages = [
        database.outcome(
            event.record, event.root, "embeddings", event.outcome, result=embedded(number, 1),
            input_rank=event.input_rank, rank=event.rank, offset=number,
            incarnation=INCARNATIONS[event.incarnation], at=event.incarnation * 1000 + event.root,
        )
        for number, event in enumerate(events)
    ]  # fmt: skip
    messages += chance.sample(messages, k=len(messages) // 3)  # redelivered
    chance.shuffle(messages)
    for part in _cut(messages, cuts):
        assert database.write(part) == []
    served = {(record, best) for record, _, _, best in _expected(events)[0] if best is not None}
    found = database.sql(
        "SELECT record_id, vector, root_offset, root_topic_id, version FROM vectors"
    )
    roots = {(number, event.root, INCARNATIONS[event.incarnation])
             for number, event in enumerate(events)}  # fmt: skip
    numbers = {(record, struct.unpack("<2f", vector)[0]) for record, vector, *_ in found}
    assert numbers == served
    for _, vector, *root, version in found:
        assert (int(struct.unpack("<2f", vector)[0]), *root) in roots and version == "1"


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 20), max_size=4),
)
def test_the_newest_revision_of_a_record_stands(
    database: Database,
    revisions: list[tuple[str, bool]],
    chance: random.Random,
    cuts: list[int],
) -> None:
    database.empty()
    messages, expected = [], {}
    for offset, (native, deleted) in enumerate(revisions):
        fields: dict[str, Any] = {"deleted": True} if deleted else {"text": f"text {offset}"}
        messages.append(database.raw(native, offset, **fields))
        text = None if deleted else f"text {offset}"
        expected[f"post:reddit:{native}"] = (offset, deleted, text, deleted)
    chance.shuffle(messages)
    for part in _cut(messages, cuts):
        assert database.write(part) == []
    rows = database.sql('SELECT id, "offset", deleted, text, value IS NULL FROM records')
    assert {row[0]: row[1:] for row in rows} == expected


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.sampled_from(["whole", "x", "y", "xy"]), st.integers(1, 2)),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 20), max_size=4),
)
def test_parts_merge_into_the_whole(
    database: Database,
    written: list[tuple[str, int]],
    chance: random.Random,
    cuts: list[int],
) -> None:
    database.empty()
    stage = "entities"  # one whose schema lets further properties pass
    messages = []
    for number, (what, rank) in enumerate(written):
        names = ("x", "y") if what == "whole" else tuple(what)
        result: dict[str, Any] = {"entities": [], **dict.fromkeys(names, number)}
        parts = () if what == "whole" else names
        messages.append(
            database.outcome("a", 0, stage, result=result, parts=parts, rank=rank, offset=number)
        )
    expected: dict[str, Any] = {}
    for _, number, what in sorted((rank, n, what) for n, (what, rank) in enumerate(written)):
        if what == "whole":
            expected = {"entities": [], "x": number, "y": number}
        else:
            expected |= dict.fromkeys(what, number)
    chance.shuffle(messages)
    for part in _cut(messages, cuts):
        assert database.write(part) == []
    assert database.sql("SELECT result FROM outcomes") == [(expected,)]


def test_what_fails_of_a_part_or_after_it_leaves_what_is_served(database: Database) -> None:
    database.empty()
    stage = "entities"
    whole = {"entities": [], "x": 1}

    offsets = itertools.count(1)

    def come(outcome: str, parts: tuple[str, ...] = (), **result: Any) -> list[Any]:
        message = database.outcome(
            "a", 0, stage, outcome, result=result or None, parts=parts, offset=next(offsets)
        )
        assert database.write([message]) == []
        return database.sql("SELECT outcome, coalesce(result, earlier->'result') FROM outcomes")

    assert come("ok", **whole) == [("ok", whole)]
    assert come("dead", ("y",)) == [("ok", whole)]
    assert come("ok", ("y",), entities=[], y=2) == [("ok", whole | {"y": 2})]
    assert come("deferred", ("z",)) == [("ok", whole | {"y": 2})]
    assert come("drop", ("z",)) == [("ok", whole | {"y": 2})]
    assert come("dead") == [("dead", whole | {"y": 2})]
    assert come("ok", **whole) == [("ok", whole)]


def test_two_writers_in_opposite_orders_agree(database: Database) -> None:
    """They meet on every row: whoever comes second merges into what the first has written."""
    messages = [
        database.outcome(str(n), root, "entities", "ok" if root % 2 else "dead", offset=root)
        for root in range(4)
        for n in range(50)
    ]
    database.connection  # noqa: B018 the tables
    failures: list[BaseException] = []
    begin = threading.Barrier(2)

    def work(part: Sequence[Message]) -> None:
        try:
            with database.connect() as connection:
                store = database.store(connection)
                begin.wait(30)
                for start in range(0, len(part), 20):
                    batch = store.read(part[start : start + 20])
                    store.resolve(connection, batch)

                    def transaction(batch: Any = batch) -> None:
                        with connection.transaction():
                            store.write(connection, batch)

                    postgres.again(transaction, tries=50)
        except (psycopg.Error, AssertionError, threading.BrokenBarrierError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in (messages, messages[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    rows = database.sql(
        "SELECT count(*), min(outcome), min(out_offset), min((SELECT count(*) FROM entity_mentions"
        " m WHERE m.record_id = o.record_id)), min(earlier::text) FROM outcomes o"
    )
    assert rows == [(50, "ok", 3, 1, None)]
    assert database.sql("SELECT count(*) FROM entity_mentions") == [(50,)]
