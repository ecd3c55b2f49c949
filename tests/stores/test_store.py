"""What the store keeps of messages, and what people see of it."""

from __future__ import annotations

import struct
from typing import Any, cast

import psycopg
import pytest

from headrace.stores.dimensions import Dimension
from headrace.vectors import as_published
from tests.stores.conftest import Database, embedded

ODD = "tab\there, line\nend, \\N back\\slash, \r, emoji 🐙👩‍👩‍👧, עברית, \u2028 'quoted' \"too\""

SLOW = ("embeddings", "sentiment_ml")  # semantic as shipped


def test_content_comes_back_as_it_was(database: Database) -> None:
    message = database.raw(
        "odd\\id", 1, text=ODD, title=ODD, author=ODD, community="Dr. Oetker & Co",
        url="https://x.org/?a=\\", created_at="2013-08-01T12:00:00Z", lang="en",
        metrics={"score": -3, "likes": 1.5}, labels={"a": ODD}, parent_id="p1",
    )  # fmt: skip
    assert database.write([message]) == []
    row = database.sql(
        "SELECT id, text, title, author, community, url, created_at::text, metrics, labels->>'a',"
        " parent_id, run FROM posts"
    )
    assert row == [
        (
            "post:reddit:odd\\id", ODD, ODD, ODD, "Dr. Oetker & Co", "https://x.org/?a=\\",
            "2013-08-01 12:00:00+00", {"score": -3, "likes": 1.5}, ODD, "p1", "r1",
        )
    ]  # fmt: skip
    assert database.sql("SELECT value FROM records") == [((message.value() or b"").decode(),)]
    assert database.sql("SELECT slug FROM dim_community") == [("dr.-oetker-co",)]


def test_messages_that_are_none_become_dead_letters(database: Database) -> None:
    good = database.raw("good", 1)
    outcome = database.outcome("x", 1)
    lineage = cast(Any, outcome.headers())
    bad = {
        "NUL character": database.raw("nul", 2, author="a\0b"),
        "not JSON": database.message("raw.posts.reddit", "k", b'{"id": "post:'),
        "no value": database.message("raw.posts.reddit", "k", None),
        "not the record's id": database.message("raw.posts.reddit", b"\xff\0", good.value()),
        "does not fit": database.message("raw.posts.reddit", "k", {"some": "thing"}),
        "no header hr": database.message("enriched.sentiment", "post:reddit:x", outcome.value()),
        "cannot be read": database.message(
            "enriched.sentiment", "post:reddit:x", outcome.value(), [("hr", b"1;2;3")]
        ),
        "hr cannot": database.message(
            "enriched.sentiment",
            "post:reddit:x",
            outcome.value(),
            [("hr", b"A:0:1:2;r;0;1;;t\\Nt\tt:0:1")],
        ),
        "stage: ": database.message("enriched.text", "post:reddit:x", outcome.value(), lineage),
        "no dead letter": database.message("text.dlt", "k", b"v"),
        "names a topic": database.message(
            "postgres.redo", "k", b"{}", [("hr", b"A:0:1:2;r;0;0;;nobody.s:0:1")]
        ),
    }
    reasons = database.write([*bad.values(), good])
    assert len(reasons) == len(bad), reasons
    rows = database.sql(
        'SELECT reason, topic, partition, "offset", value FROM dead_letters'
        " WHERE \"group\" = 'postgres' ORDER BY id"
    )
    for (reason, *_, value), (words, message) in zip(rows, bad.items(), strict=True):
        assert words in reason
        assert value == message.value()
    assert rows[0][1:4] == (bad["NUL character"].topic(), 0, 2)
    assert rows[-1][1:4] == ("nobody.s", 0, 1), "it is noted where it stood first"
    assert database.sql("SELECT id FROM records") == [("post:reddit:good",)]
    database.write([*bad.values()])
    assert database.sql("SELECT count(*) FROM dead_letters") == [(len(bad),)]


def test_whatever_a_message_says_its_letter_can_be_written(database: Database) -> None:
    huge = 10**30
    for header in (
        f"A:0:1:2;r;0;0;;{'t' * 9000}:{huge}:{huge}".encode(),
        b"A:0:1:2;r;0;0;;t\0:1:1",
        b"\xff\0;;;",
        b"",
        b"10**17 ms",
    ):
        names = [("hr", header), ("na\0me", b"\0")]
        at = 10**17 if header.endswith(b"ms") else None  # a time past every calendar's end
        message = database.message("postgres.redo", b"\0\xff", b"\0", names, at=at)
        buried = database.store(database.connection).bury(message, "E", "reason \0" * 999)
        with database.connection.transaction():
            database.store(database.connection).write(database.connection, buried, again=True)
    assert database.sql("SELECT count(*) FROM dead_letters WHERE topic LIKE '%.postgres.redo'") == [
        (5,)
    ]


def test_dead_letters_of_stages_count_once(database: Database) -> None:
    headers = {
        "topic": "p.raw.posts.reddit", "partition": "1", "offset": "7", "connector.name": "text",
        "exception.class.name": "ValueError", "exception.message": "no text\0",
    }  # fmt: skip
    packed = [(f"__connect.errors.{name}", text.encode()) for name, text in headers.items()]
    letters = [
        database.message("text.dlt", "post:reddit:a", b"\xff\0raw", packed, at=at) for at in (5, 9)
    ]
    again = database.message("text.dlt", "post:reddit:a", b"\xff\0raw", packed, at=5)
    assert database.write(letters) == database.write([again]) == []
    assert database.sql(
        'SELECT "group", record_key, topic, partition, "offset", reason, exception, value,'
        " extract(epoch FROM at)::bigint FROM dead_letters"
    ) == [
        ("text", "post:reddit:a", "p.raw.posts.reddit", 1, 7, "no text\ufffd", "ValueError",
         b"\xff\0raw", 1_700_000_000)
    ]  # fmt: skip


def test_deletion_takes_content_and_nothing_late_brings_it_back(database: Database) -> None:
    database.write(
        [database.raw("a", 1, author="someone"), database.outcome("a", 1, "entities"),
         database.outcome("a", 1)]
    )  # fmt: skip
    assert database.sql("SELECT count(*) FROM entity_mentions") == [(1,)]
    gone = [
        database.raw("a", 5, deleted=True),
        database.outcome("a", 5, "entities", "deleted"),
        database.outcome("a", 5, "sentiment", "deleted"),
    ]
    late = [
        database.raw("a", 3, text="late"),
        database.outcome("a", 3, "entities"),
        database.outcome("a", 3, rank=9),
    ]
    assert database.write(gone) == database.write(late) == []
    assert database.sql(
        "SELECT id, kind, deleted, text, value, author_id, native_id, created_at FROM records"
    ) == [("post:reddit:a", "post", True, None, None, None, None, None)]
    assert database.sql("SELECT DISTINCT outcome, result, earlier FROM outcomes") == [
        ("deleted", None, None)
    ]
    for view in ("posts", "entities", "served", "record_status", "coverage", "entity_mentions"):
        assert database.sql(f"SELECT count(*) FROM {view}") == [(0,)], view
    # Only a revision after the deletion does.
    database.write([database.raw("a", 6, text="back"), database.outcome("a", 6, "entities")])
    assert database.sql("SELECT text, ingested_at < updated_at FROM posts") == [("back", True)]
    assert database.sql("SELECT name, records FROM entities") == [("Apple", 1)]


def test_a_result_is_served_until_a_later_one_comes(database: Database) -> None:
    seen = "SELECT sentiment, sentiment_stale FROM posts"
    database.write([database.raw("a", 1)])
    assert database.sql(seen) == [(None, None)]
    database.write([database.outcome("a", 1)])
    assert database.sql(seen) == [("positive", False)]
    # The same revision dead by a later attempt, then a new revision dropped.
    database.write([database.outcome("a", 1, outcome="dead", rank=2)])
    assert database.sql(seen) == [("positive", False)]
    database.write([database.raw("a", 2), database.outcome("a", 2, outcome="drop")])
    assert database.sql(seen) == [("positive", True)]
    assert database.sql("SELECT facet, rank, stale FROM served") == [("sentiment", 1, True)]
    negative = {"label": "negative", "score": -1, "confidence": 1, "language": "en"}
    database.write([database.outcome("a", 2, rank=3, result=negative)])
    assert database.sql(seen) == [("negative", False)]


def test_record_status_tells_how_far_a_record_is(database: Database) -> None:
    def status() -> list[tuple[Any, ...]]:
        return database.sql(
            "SELECT processing_status, text_status, entities_status, sentiment_status,"
            " sentiment_processed_at IS NOT NULL FROM record_status"
        )

    database.write([database.outcome("a", 1)])
    assert status() == [], "an enrichment may come before its record"
    database.write([database.raw("a", 1)])
    assert status() == [("sentiment_complete", "pending", "pending", "ok", True)]
    database.write([database.raw("a", 2)])
    assert status() == [("pending_sentiment", "pending", "pending", "pending", False)]
    database.write([database.outcome("a", 2, outcome="drop"), database.outcome("a", 2, "text")])
    assert status() == [("pending_semantic", "ok", "pending", "dropped", True)]
    database.write([database.outcome("a", 2, "entities", "deferred")])
    assert status() == [("pending_semantic", "ok", "pending", "dropped", True)]
    database.write([database.outcome("a", 2, "entities")])
    assert status() == [("pending_semantic", "ok", "ok", "dropped", True)]
    database.write([database.outcome("a", 2, name, "drop") for name in SLOW])
    assert status() == [("full", "ok", "ok", "dropped", True)]
    database.write([database.outcome("a", 2, "entities", "dead", rank=2)])
    assert status() == [("failed", "ok", "dead", "dropped", True)]


def test_coverage_adds_up_and_levels_follow_it(database: Database) -> None:
    database.write([database.raw(str(n), n, metrics={"score": 2, "views": 9}) for n in range(20)])
    database.write([database.raw("gone", 99, deleted=True)])
    database.write(
        [database.outcome(str(n), n, "text") for n in range(20)]
        + [database.outcome(str(n), n) for n in range(12)]
        + [database.outcome(str(n), n, outcome="drop") for n in range(12, 16)]
        + [database.outcome(str(n), n, outcome="dead") for n in range(16, 18)]
        + [database.outcome("19", 3, outcome="ok", offset=1)]  # of a revision that never was here
    )
    rows = database.sql(
        "SELECT stage, records, ok, dropped, dead, pending, coverage::float FROM coverage"
        " ORDER BY stage"
    )
    assert rows == [
        ("embeddings", 20, 0, 0, 0, 20, 0),
        ("entities", 20, 0, 0, 0, 20, 0),
        ("scores", 20, 0, 0, 0, 20, 0),
        ("sentiment", 20, 12, 4, 2, 2, 0.75),
        ("sentiment_ml", 20, 0, 0, 0, 20, 0),
        ("text", 20, 20, 0, 0, 0, 1),
    ]
    level = "SELECT processing_level FROM platform_metrics"
    assert database.sql(level) == [("early",)]
    database.write([database.outcome(str(n), n, rank=2) for n in range(16, 20)])
    assert database.sql(level) == [("fast",)]
    database.write([database.outcome(str(n), n, "entities") for n in range(19)])
    assert database.sql(level) == [("fast",)]
    database.write([database.outcome(str(n), n, name, "drop") for n in range(20) for name in SLOW])
    assert database.sql(
        "SELECT processing_level, records, engagement, sentiment::float, positive,"
        " top_entities, coverages->'entities' FROM platform_metrics"
    ) == [("full", 20, 40, 0.5, 16, [{"name": "Apple", "type": "brand", "mentions": 19}], 0.95)]


def test_communities_count_what_is_stored(database: Database) -> None:
    value = {
        "id": "community:reddit:technology", "kind": "community", "platform": "reddit",
        "name": "Technology", "slug": "technology", "posts": 500, "best_posts": [],
    }  # fmt: skip
    database.write(
        [
            database.message("raw.communities", value["id"], value),
            database.raw("a", 1, community="technology", author="x"),
            database.raw("b", 2, community="Technology", author="y"),
        ]
    )
    assert database.sql(
        "SELECT slug, name, id, posts, authors, (published_counts->>'posts')::int FROM communities"
    ) == [("technology", "Technology", value["id"], 2, 2, 500)]
    assert database.sql("SELECT count(*) FROM posts") == [(2,)]


def test_receipts_become_runs(database: Database) -> None:
    def receipt(state: str, offset: int) -> Any:
        value = {
            "type": "run", "run": "r1", "state": state, "started_at": "2026-11-21T09:00:00Z",
            "platform": "reddit", "kind": "posts", "files": [], "records": 3, "rejected": 1,
            "offsets": {}, "starts": {},
        }  # fmt: skip
        return database.message("runs", "r1", value, offset=offset)

    assert database.write([receipt("done", 2)]) == database.write([receipt("running", 1)]) == []
    assert database.sql("SELECT run, state, records, rejected, receipt->>'kind' FROM runs") == [
        ("r1", "done", 3, 1, "posts")
    ]


def test_redo_is_stored_as_of_its_first_place(database: Database) -> None:
    raw, outcome = database.raw("a", 7, text="seven"), database.outcome("a", 7, rank=4, offset=3)
    project = database.project
    root = f"{database.topic_id(f'{project}.raw.posts.reddit')}:0:7:1700000000007"

    def redone(message: Any, input_rank: int, place: str) -> Any:
        header = f"{root};r1;{input_rank};0;;{place}".encode()
        return database.message("postgres.redo", message.key(), message.value(), [("hr", header)])

    again = redone(raw, 0, f"{project}.raw.posts.reddit:0:7")
    envelope = redone(outcome, 4, f"{project}.enriched.sentiment:0:3")
    database.sql("INSERT INTO redo (\"group\", record_id) VALUES ('sentiment', 'post:reddit:a')")
    assert database.write([database.raw("a", 8, text="eight")]) == []
    assert database.write([again, envelope]) == []
    assert database.sql('SELECT text, "offset", topic FROM records') == [
        ("eight", 8, f"{project}.raw.posts.reddit")
    ]
    assert database.sql("SELECT rank, root_offset, out_offset FROM outcomes") == [(4, 7, 3)]
    assert database.sql("SELECT count(*) FROM redo") == [(0,)], "the outcome clears it"


class Counting:
    """A connection that counts the statements it is asked."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.statements: list[str] = []

    def execute(self, query: Any, parameters: Any = None) -> Any:
        words = query if isinstance(query, str) else query.as_string(self.connection)
        self.statements.append(words.split()[0])
        return self.connection.execute(query, parameters)


def _authors() -> Dimension:
    return Dimension("dim_author", {"platform_id": "smallint", "name": "text"})


def test_names_take_two_statements_however_many(database: Database) -> None:
    counting = Counting(database.connection)
    connection = cast(psycopg.Connection, counting)
    authors = _authors()
    rows = {(1, f"author {number} é🐙\\") for number in range(3000)}
    authors.resolve(connection, rows)
    assert counting.statements == ["SELECT", "INSERT"]
    authors.resolve(connection, rows)
    assert counting.statements == ["SELECT", "INSERT"], "known names are not asked for"
    authors.resolve(connection, rows | {(2, "author 1 é🐙\\")})
    assert counting.statements == ["SELECT", "INSERT"] * 2
    other = _authors()
    other.resolve(connection, rows)
    assert counting.statements == ["SELECT", "INSERT"] * 2 + ["SELECT"]
    assert len({other[row] for row in rows}) == 3000
    assert all(other[row] == authors[row] for row in rows)


def test_two_workers_give_a_name_one_id(database: Database) -> None:
    """The other inserts between our select and our insert."""
    row = (1, "met by two")
    with database.connect() as second:

        class Late(Counting):
            def execute(self, query: Any, parameters: Any = None) -> Any:
                found = super().execute(query, parameters)
                if self.statements == ["SELECT"]:
                    theirs.resolve(second, {row})
                return found

        theirs, ours = _authors(), _authors()
        ours.resolve(cast(psycopg.Connection, Late(database.connection)), {row})
        assert ours[row] == theirs[row]


@pytest.mark.parametrize("names", [0, 1, 500])
def test_a_batch_resolves_each_dimension_at_once(database: Database, names: int) -> None:
    messages = [
        database.raw(
            str(n), n, author=f"{names} a{n}", community=f"{names} c{n}", run=f"{names}{n}"
        )
        for n in range(names)
    ]
    store = database.store(database.connection)
    counting = Counting(database.connection)
    store.resolve(cast(psycopg.Connection, counting), store.read(messages))
    # platform, author, community and run, at most twice each; and whether names were taken out
    assert len(counting.statements) <= (9 if names else 0)


def test_a_vector_lies_by_record_and_space_and_not_in_the_result(database: Database) -> None:
    first = embedded(0.5, -0.25)
    assert (
        database.write([database.raw("a", 1), database.outcome("a", 1, "embeddings", result=first)])
        == []
    )
    other = embedded(1, 2, 3, model="large")
    assert database.write([database.outcome("a", 1, "embeddings", result=other, rank=2)]) == []
    rows = "SELECT space, dimensions, vector, rank, root_offset FROM vectors ORDER BY space"
    small, large = struct.pack("<2f", 0.5, -0.25), struct.pack("<3f", 1, 2, 3)
    assert database.sql(rows) == [("large-3", 3, large, 2, 1), ("m-2", 2, small, 1, 1)]
    ((result,),) = database.sql("SELECT result FROM outcomes WHERE stage = 'embeddings'")
    assert result == {"clean": "some text", "model": "large", "dimensions": 3}
    assert as_published(result, large) == other

    database.write([database.raw("a", 2), database.outcome("a", 2, "embeddings", "drop")])
    assert len(database.sql(rows)) == 2, "a drop takes nothing away"
    database.write([database.outcome("a", 2, "embeddings", result=first, rank=3)])
    assert database.sql(rows) == [("m-2", 2, small, 3, 2)], "a newer revision replaces all spaces"
    database.write([database.outcome("a", 5, "embeddings", "deleted")])
    database.write([database.outcome("a", 4, "embeddings", result=first)])
    assert database.sql(rows) == []


def test_a_vector_that_is_none_is_a_dead_letter(database: Database) -> None:
    good = database.outcome("a", 1, "embeddings", result=embedded(1, 2))
    short = database.outcome("b", 1, "embeddings", result=embedded(1, 2) | {"dimensions": 3})
    odd = database.outcome("c", 1, "embeddings", result=embedded(1, 2) | {"vector": "abc"})
    reasons = database.write([short, good, odd])
    assert reasons[0] == "its vector cannot be read: it does not hold 3 numbers"
    assert len(reasons) == 2
    assert database.sql("SELECT record_id FROM vectors") == [("post:reddit:a",)]


def test_the_higher_provider_of_a_facet_is_served(database: Database) -> None:
    def mood() -> list[tuple[Any, ...]]:
        return database.sql("SELECT sentiment, sentiment_stale FROM posts")

    database.write([database.raw("a", 1), database.outcome("a", 1, "sentiment")])
    assert mood() == [("positive", False)]
    database.write([database.outcome("a", 1, "sentiment_ml", rank=2, input_rank=1)])
    assert mood() == [("negative", False)]
    database.write([database.raw("a", 2), database.outcome("a", 2, "sentiment")])
    assert mood() == [("positive", False)], "a newer revision's lower rank wins"
    database.write([database.outcome("a", 2, "sentiment_ml", "drop", rank=2, input_rank=1)])
    assert mood() == [("positive", False)]
    assert database.sql("SELECT stage, stale FROM served WHERE facet = 'sentiment'") == [
        ("sentiment", False)
    ]
