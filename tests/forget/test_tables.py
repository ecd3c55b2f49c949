"""What forgetting does to the rows, and what comes late."""

from __future__ import annotations

from headrace.forget import orders, tables
from headrace.forget.orders import Order, Selection
from tests.stores import graphs
from tests.stores.conftest import Database, embedded


def order_of(database: Database, selection: Selection) -> Order:
    order = orders.make(database.connection, database.topology, selection, purge=False)
    orders.select(database.connection, order)
    return order


def test_nothing_late_brings_a_forgotten_record_back(database: Database) -> None:
    database.write(
        [
            database.raw("a", 1, text="secret", author="ann"),
            database.raw("b", 2, text="stays", author="bob"),
            *(database.outcome("a", 1, stage) for stage in ("sentiment", "entities", "text")),
            database.outcome("a", 1, "embeddings", result=embedded(1.0, 2.0)),
            database.outcome("b", 2, "entities"),
        ]
    )
    order = order_of(database, Selection(ids=("post:reddit:a",)))
    found = {name: n for name, n in tables.found(database.connection, order).items() if n}
    assert found == {"records": 1, "outcomes": 4, "entity_mentions": 1, "vectors": 1}
    database.write([database.raw("a", 5, deleted=True), database.outcome("a", 1, "entities")])
    tables.empty(database.connection, order)
    tables.empty(database.connection, order)

    def stands() -> list[tuple[object, ...]]:
        return database.sql(
            "SELECT outcome, result, reason, earlier, root_offset FROM outcomes"
            " WHERE record_id = 'post:reddit:a'"
        )

    gone = [("deleted", None, None, None, 5)] * 4
    assert stands() == gone
    # The stages come late: first the old revision, which they had not read, then the deletion.
    late = [
        database.raw("a", 2, text="secret", author="ann"),
        database.outcome("a", 1, "sentiment", offset=9_000),
        database.outcome("a", 1, "embeddings", result=embedded(1.0, 2.0), offset=9_001),
        database.outcome("a", 1, "entities", "dead", reason="cannot read secret", offset=9_002),
    ]
    database.write(late)
    assert stands() == gone
    database.write([database.outcome("a", 5, "sentiment", "deleted")])
    assert stands() == gone
    assert database.sql("SELECT version FROM outcomes WHERE stage = 'sentiment'") == [("1",)]
    assert database.sql("SELECT record_id FROM entity_mentions") == [("post:reddit:b",)]
    assert database.sql("SELECT count(*) FROM vectors") == [(0,)]
    # It is published anew, and an outcome of that comes before the record does.
    database.write([
        database.outcome("a", 9, "embeddings", result=embedded(3.0, 4.0)),
        graphs.raw(database, 1, deleted=True),
        graphs.outcome(database, 2),
    ])  # fmt: skip
    order = order_of(database, Selection(ids=("post:reddit:a", graphs.COMMUNITY)))
    tables.empty(database.connection, order)
    assert database.sql("SELECT count(*) FROM vectors") == [(1 + 3,)]
    assert database.sql("SELECT count(*) FROM edges") == [(2,)]
    assert database.sql("SELECT DISTINCT root_id, root_offset FROM nodes") == [
        (graphs.COMMUNITY, 2)
    ]
    assert database.sql("SELECT deleted, text, value FROM records ORDER BY id")[0] == (
        True, None, None,
    )  # fmt: skip


def test_a_name_without_records_goes_and_comes_back_with_the_next_one(database: Database) -> None:
    database.write([database.raw("a", 1, author="ann"), database.raw("b", 2, author="bob")])
    order = order_of(database, Selection(author="ann"))
    assert list(orders.chunks(database.connection, order)) == [["post:reddit:a"]]
    database.write([database.raw("a", 3, deleted=True)])
    tables.authors(database.connection, order)
    assert database.sql("SELECT name FROM dim_author") == [("bob",)]
    assert order.subject and order.subject["gone"] == [["reddit", "ann"]]
    # The same writer, which remembers the id that ann had.
    database.write([database.raw("c", 4, author="ann"), database.raw("d", 5, author="bob")])
    assert database.sql("SELECT author FROM posts ORDER BY id") == [("bob",), ("ann",), ("bob",)]


def test_dead_letters_are_found_by_what_they_say(database: Database) -> None:
    letters = [
        ("post:reddit:a", b'{"id": "post:reddit:a", "text": "secret"}'),
        ("other key", b'{"id": "post:reddit:a", "text": "secret"}'),
        ("post:reddit:x", b'{"id": "post:reddit:x", "author": "a\\u006en", "text": "torn'),
        ("post:reddit:y", b'{"id": "post:reddit:y", "author": "anne"}'),
    ]
    for number, (key, value) in enumerate(letters):
        database.sql(
            'INSERT INTO dead_letters ("group", record_key, topic, partition, "offset", reason, at,'
            " value) VALUES ('text', %s, %s, 0, %s, 'why', now(), %s)",
            key, f"{database.project}.raw.posts.reddit", number, value,
        )  # fmt: skip
    database.write([database.raw("a", 1, author="ann"), database.raw("a", 2, deleted=True)])
    order = order_of(database, Selection(author="ann", platform="reddit"))
    for record in tables.letters_of_nobody(database.connection, order):
        orders.add(database.connection, database.topology, order, record)
    assert list(orders.chunks(database.connection, order)) == [["post:reddit:x"]]
    by_id = order_of(database, Selection(ids=("post:reddit:a",)))
    tables.empty(database.connection, by_id)
    assert [key for (key,) in database.sql("SELECT record_key FROM dead_letters ORDER BY id")] == [
        "post:reddit:x", "post:reddit:y",
    ]  # fmt: skip
    tables.empty(database.connection, order)
    assert database.sql("SELECT record_key FROM dead_letters") == [("post:reddit:y",)]
