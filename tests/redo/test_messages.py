"""Messages made from the tables are those that were published; old answers clear no order."""

from __future__ import annotations

from typing import Any

import orjson

from headrace.redo import choosing
from headrace.redo.messages import Maker
from headrace.stream.wire import Lineage, Position, Revision
from tests.stores.conftest import Database, database, databases, embedded, shared_database

__all__ = ["database", "databases", "shared_database"]  # fixtures


def made(database: Database, stage: str) -> list[Any]:
    group = database.topology.group(stage)
    ids = ["post:reddit:a", "post:reddit:b", "post:reddit:c"]
    return list(Maker(database.connection, database.topology, group, {}).records(ids))


def test_a_record_goes_as_it_was_published(database: Database) -> None:
    raw = database.raw("a", 7, text="seven", extra={"b": 1.0, "a": ["é"]})
    database.write([raw, database.raw("b", 8), database.raw("b", 9, deleted=True)])
    (message,) = made(database, "sentiment")
    assert (message.key, message.value) == (raw.key(), raw.value())
    topic = f"{database.project}.raw.posts.reddit"
    revision = Revision(database.topic_id(topic), 0, 7, 1_700_000_000_007)
    was = Lineage(revision, "r1", 0, 0, (), Position(topic, 0, 7))
    assert [Lineage.unpack(dict(message.headers)["hr"])] == [was]


def test_an_outcome_goes_with_its_vector_and_its_rank(database: Database) -> None:
    vector = embedded(0.25, -1.5, 3.0)
    result = {**vector, "large": 1e22}
    sent = database.outcome("a", 7, "embeddings", result=result, rank=3, offset=40)
    dropped = database.outcome("c", 9, "embeddings", "drop", offset=41)
    database.write([database.raw("a", 7), database.raw("b", 8), database.raw("c", 9)])
    database.write([sent, dropped])
    ok, drop = made(database, "sentiment_ml")
    assert orjson.loads(ok.value) == orjson.loads(sent.value() or b"")
    assert orjson.loads(drop.value) == orjson.loads(dropped.value() or b"")
    lineage = Lineage.unpack(dict(ok.headers)["hr"])
    published = Lineage.unpack(dict(sent.headers() or [])["hr"])
    assert (lineage.revision, lineage.run) == (published.revision, "r1")
    assert (lineage.input_rank, lineage.rank) == (3, 0)
    assert str(lineage.input) == f"{database.project}.enriched.embeddings.reddit:0:40"


def test_letters_of_a_topic_that_was_made_anew(database: Database) -> None:
    """Its places come again, with other messages; and smaller ones are no earlier."""
    topic = f"{database.project}.raw.posts.reddit"

    def dies(key: str, value: bytes, at: int) -> None:
        where = {"topic": topic, "partition": "0", "offset": "3", "exception.message": "why"}
        headers = [(f"__connect.errors.{name}", said.encode()) for name, said in where.items()]
        database.write([database.message("sentiment.dlt", key, value, headers, at=at)])

    told = "SELECT record_key, value, deaths, dismissed_at IS NULL, redriven_at FROM dead_letters"
    dies("a", b"one", 1)
    dies("a", b"one", 2)
    database.sql("UPDATE dead_letters SET dismissed_at = now()")
    dies("a", b"one", 1)  # read once more
    assert database.sql(told) == [("a", b"one", 2, False, None)]
    dies("b", b"two", 3)
    assert database.sql(told) == [("b", b"two", 1, True, None)]
    dies("post:reddit:z", b"three", 100)
    for at, state in ((99, "open"), (101, "superseded")):
        database.write([database.raw("z", 2, at=at)])
        assert database.sql("SELECT state FROM letters") == [(state,)]
        database.sql("TRUNCATE records")


def test_only_an_answer_to_the_order_clears_it(database: Database) -> None:
    topic_id = database.topic_id(f"{database.project}.enriched.sentiment")
    (order,) = database.sql(
        'INSERT INTO redo_orders ("group", kind, reason, ends)'
        " VALUES ('sentiment', 'upgrade', '', %s::jsonb) RETURNING id",
        orjson.dumps({topic_id: {"0": 10}}).decode(),
    )[0]
    database.sql(
        'INSERT INTO redo ("group", record_id, order_id, state)'
        " VALUES ('sentiment', 'post:reddit:a', %s, 'sending')",
        order,
    )
    count = "SELECT count(*) FROM redo WHERE \"group\" = 'sentiment'"
    database.write([database.outcome("a", 7, offset=9)])
    assert database.sql(count) == [(1,)]
    # The answer is of a lower rank than what stands, and in one batch with it.
    database.write(
        [database.outcome("a", 7, rank=5, offset=8), database.outcome("a", 7, rank=1, offset=12)]
    )
    assert database.sql(count) == [(0,)]
    assert database.sql("SELECT rank FROM outcomes") == [(5,)]


def test_a_letter_of_a_part_comes_back_as_that_part(database: Database) -> None:
    """And is open until the result has the part, though the record's outcome is ok."""
    topic, result = f"{database.project}.raw.posts.reddit", {"relevance": 1}
    raw, whole = database.raw("a", 7), database.outcome("a", 7, "scores", result=result)
    database.write([raw, whole])
    part = database.outcome("a", 7, "scores", "dead", parts=("novelty",))
    where = {"topic": topic, "partition": "0", "offset": "7", "exception.message": "why"}
    headers = [(f"__connect.errors.{name}", said.encode()) for name, said in where.items()]
    headers += [(name, content) for name, content in part.headers() or []]  # type: ignore[misc]
    letter = database.message("scores.dlt", "post:reddit:a", raw.value(), headers)
    database.write([part, letter])
    assert database.sql("SELECT outcome, result FROM outcomes") == [("ok", result)]
    ((number, state),) = database.sql("SELECT id, state FROM letters")
    assert state == "open"
    group = database.topology.group("scores")
    (message,) = Maker(database.connection, database.topology, group, {}).letters([number])
    assert message.value == raw.value()
    assert Lineage.unpack(dict(message.headers)["hr"]).parts == ("novelty",)
    found = {"novelty": 9}
    database.write([database.outcome("a", 7, "scores", result=found, parts=("novelty",))])
    assert database.sql("SELECT result FROM outcomes") == [(result | found,)]
    assert database.sql("SELECT state FROM letters") == [("done",)]


def test_a_part_is_asked_for_where_it_is_missing_and_not_to_come(database: Database) -> None:
    lacking, whole = {"relevance": 1}, {"relevance": 1, "novelty": 2}
    natives = ("first", "queued", "sent", "dead", "has", "dropped", "gone", "second")
    for place, native in enumerate(natives):
        result = whole if native == "has" else lacking
        kind = "drop" if native == "dropped" else "ok"
        database.write([database.raw(native, place)])
        database.write([database.outcome(native, place, "scores", kind, result=result)])
    database.write([database.raw("gone", 20, deleted=True)])
    database.sql(
        'INSERT INTO redo ("group", record_id, state, parts)'
        " VALUES ('scores', 'post:reddit:queued', 'queued', 'novelty')"
    )
    database.sql(
        "WITH made AS (INSERT INTO llm_requests (id, stage, provider, model, task, bytes,"
        " input_tokens, output_tokens) SELECT gen_random_uuid(), 'scores', 'p', 'm', '{}', 1, 1, 1"
        " RETURNING id) INSERT INTO llm_request_items"
        " SELECT 'key', id, 0, 'post:reddit:sent', 1, 'novelty', 'novelty' FROM made"
    )
    database.sql(
        'INSERT INTO dead_letters ("group", record_key, topic, partition, "offset", reason, at,'
        " headers) SELECT 'scores', id, topic, partition, \"offset\", 'no', now(),"
        " '{\"hr\": \"r;r;0;1;novelty;t\"}' FROM records WHERE id = 'post:reddit:dead'"
    )
    choice = choosing.lacking(database.topology.group("scores"), "novelty")
    assert choice.count(database.connection) == 2
    found = [line.record_id for page in choice.pages(database.connection, 3) for line in page]
    assert found == ["post:reddit:first", "post:reddit:second"]
    database.sql("TRUNCATE llm_requests, llm_request_items")
