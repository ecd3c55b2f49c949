"""Headrace from Python, on real servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from headrace import Headrace, HeadraceError
from headrace.api import PublishFailed, _apart
from headrace.supervisor import Supervisor
from headrace.vectors import unpacked
from tests.world import World, wait_for

TEXTS = [
    "I love the new Nike shoes, they are wonderful",
    "The delivery was late again and the box was broken, I hate this",
    "A new Nike shop opened in Amsterdam #running",
]


def _rows(reading: Any) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for batch in reading for row in batch.to_pylist()}


def test_publish_run_read(world: World):
    hr = Headrace(world.settings)
    file = world.home / "posts.jsonl"
    rows = [
        {"id": f"a{n}", "title": "A post", "selftext": TEXTS[n % 3], "author": "ann", "score": n,
         "created_utc": 1354123731 + 86_400 * n, "subreddit": "shoes", "num_comments": 1}
        for n in range(25)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not json\n")
    before = signal.getsignal(signal.SIGINT)
    published = hr.publish(file, platform="reddit")
    assert (published.state, published.records, published.rejected) == ("done", 25, 1)
    assert published.files[0].rejects_file and published.files[0].state == "done"
    assert hr.publish(file, platform="reddit").files[0].state == "known"
    with pytest.raises(PublishFailed, match=r"gone\.jsonl") as failed:
        (world.home / "gone.jsonl").symlink_to(world.home / "nowhere")
        hr.publish(world.home / "gone.jsonl", platform="reddit")
    assert failed.value.published.state == "failed"

    report = hr.run("text", "entities", "sentiment", "embeddings")
    assert report.waiting == {} and report.counts["sentiment"]["ok"] == 25
    assert signal.getsignal(signal.SIGINT) is before
    assert hr.wait(published, timeout=60).arrived
    assert {lag.group: lag.backlog for lag in hr.lag("text", "postgres")} == {
        "text": 0,
        "postgres": 0,
    }
    assert {(row.stage, row.ok) for row in hr.coverage() if row.stage == "text"} == {("text", 25)}

    # In pieces, each record once, the same whatever the size of the pieces.
    reading = hr.read("sentiment", platform="reddit", chunk=4)
    batches = list(reading)
    assert all(isinstance(batch, pa.RecordBatch) for batch in batches)
    assert [batch.num_rows for batch in batches] == [4, 4, 4, 4, 4, 4, 1]
    assert reading.schema.names == [
        "id", "platform", "created_at", "label", "score", "confidence", "language", "version",
        "stale",
    ]  # fmt: skip
    assert _rows(reading) == _rows(hr.read("sentiment")) and len(_rows(reading)) == 25
    first = _rows(reading)["post:reddit:a0"]
    assert (first["label"], first["stale"]) == ("positive", False)
    assert first["created_at"] == datetime.fromtimestamp(1354123731, UTC)
    assert pa.table(reading).num_rows == 25  # as other libraries take it
    frame = reading.to_pandas()
    assert (list(frame.columns), len(frame)) == (reading.schema.names, 25)
    assert frame.created_at.max() == datetime.fromtimestamp(1354123731 + 24 * 86_400, UTC)
    assert frame.label.value_counts()["positive"] == 9 and frame.score.dtype == np.float64
    assert hr.read("sentiment", platform="youtube").to_table().num_rows == 0
    assert hr.read("sentiment", since="2012-12-20").to_table().num_rows == 3
    assert hr.read("sentiment", columns="id", since=date(2012, 12, 20)).to_table().num_rows == 3

    mentions = hr.read("entities", columns=["id", "name", "text", "record_text", "start"])
    found = [row for row in mentions.to_table().to_pylist() if row["id"] == "post:reddit:a2"]
    assert {row["name"] for row in found} == {"Amsterdam", "Nike"}
    for row in found:
        assert row["record_text"][row["start"] :].startswith(row["text"])

    vectors = hr.read("embeddings", chunk=10)
    assert vectors.schema.field("vector").type == pa.list_(pa.float32(), 384)
    mine = _rows(vectors)["post:reddit:a1"]["vector"]
    (sent,) = [v for v in world.values("enriched.embeddings.reddit") if v["id"].endswith(":a1")]
    assert np.array(mine, "<f4").tobytes() == unpacked(sent["result"]["vector"], 384)

    posts = _rows(hr.read("posts", chunk=7))
    shown = hr.sql("SELECT * FROM posts ORDER BY id").to_pylist()
    assert len(posts) == len(shown) == 25
    for row in shown:
        mine = posts[row["id"]]
        for name in ("metrics", "labels", "extra", "scores"):
            assert orjson.loads(mine[name] or "null") == orjson.loads(row.pop(name) or "null")
        hashtags = row.pop("hashtags")
        assert mine["hashtags"] == (None if hashtags is None else orjson.loads(hashtags))
        assert {name: mine[name] for name in row} == row


def test_what_is_served_is_one_version(world: World):
    hr = Headrace(world.settings)
    world.post(ids=["1", "2", "3"], texts=TEXTS)
    world.run("text", "sentiment")
    world.post(ids=["1"], texts=["I hate it, it is broken"])
    world.delete("post:reddit:2")
    world.run("postgres")  # the stages have not seen them
    rows = _rows(hr.read("sentiment", columns=["id", "label", "stale", "text", "stage"]))
    assert {r: (row["label"], row["stale"]) for r, row in rows.items()} == {
        "post:reddit:1": ("positive", True),
        "post:reddit:3": (rows["post:reddit:3"]["label"], False),
    }
    assert rows["post:reddit:1"]["text"] == "I hate it, it is broken"
    assert _rows(hr.read("posts"))["post:reddit:1"]["sentiment_stale"] is True

    for wrong, said in [
        (lambda: hr.read("feelings"), "there are: posts, text, entities, sentiment, embeddings"),
        (lambda: hr.read("posts", platform="myspace"), "there are: reddit, youtube"),
        (lambda: hr.read("sentiment", columns=["mood"]), "there are: id, platform, created_at"),
        (lambda: hr.sql("DELETE FROM records"), "sql only reads"),
        (lambda: hr.sql("SELEC 1"), "syntax error"),
        (lambda: hr.publish("nowhere.csv"), "no such file"),
        (lambda: hr.run("sentimental"), "sentimental"),
        (lambda: hr.wait("no-such-run"), "nothing has been published"),
        (lambda: Headrace(kafka__bootstrp="x"), "bootstrp"),
    ]:  # fmt: skip
        with pytest.raises(HeadraceError, match=said) as error:
            wrong()
        assert "\n" not in str(error.value)
    table = hr.sql(
        "SELECT 1 AS n, 1.5::numeric AS x, true AS b, now() AS t, NULL::text AS s, 'a'::bytea AS y,"
        " ARRAY['a', NULL] AS many, '{\"a\": 1}'::jsonb AS j, '\"a\"'::jsonb AS k,"
        " current_date AS d"
    )
    assert table.schema.types == [
        pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC"), pa.string(),
        pa.binary(), pa.list_(pa.string()), pa.string(), pa.string(), pa.date32(),
    ]  # fmt: skip
    row = table.to_pylist()[0]
    assert (row["n"], row["x"], row["many"], row["j"], row["k"]) == (
        1, 1.5, ["a", None], '{"a": 1}', '"a"',
    )  # fmt: skip
    empty = hr.sql("SELECT id FROM records WHERE false")
    assert (empty.num_rows, empty.schema.names) == (0, ["id"])


def test_a_run_in_another_thread_can_be_stopped(world: World, monkeypatch: pytest.MonkeyPatch):
    """As Ctrl-C does it: the workers finish and end with it."""
    world.post(n=10)
    started: list[Supervisor] = []
    run = Supervisor.run
    monkeypatch.setattr(Supervisor, "run", lambda own: started.append(own) or run(own))
    monkeypatch.setattr(Supervisor, "_look", lambda own: own._ended.wait())  # never caught up
    hr = Headrace(world.settings)
    thread = threading.Thread(target=lambda: hr.run("text"))
    thread.start()
    wait_for(lambda: started and started[0]._counts["text"]["ok"] == 10)
    processes = [child.process for child in started[0]._children]
    started[0].stop()
    thread.join(60)
    assert not thread.is_alive()
    assert all(process is not None and process.poll() is not None for process in processes)


def test_an_interrupt_waits_for_what_was_begun(request: pytest.FixtureRequest):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    stop, ended = threading.Event(), threading.Event()
    here = threading.get_ident()

    def work() -> None:
        signal.pthread_kill(here, signal.SIGINT)
        assert stop.wait(60)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        _apart(work, stop.set)
    assert ended.is_set()


def test_commands_start_without_it():
    program = (
        "import sys, headrace.cli; headrace.cli.main(['--help']);"
        "sys.exit(any(name in sys.modules for name in"
        " ('headrace.api', 'headrace.reading', 'pyarrow', 'psycopg', 'weaviate')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode == 0
    )
