"""A stage that writes one topic a platform: the whole way, from raw records to tables."""

from __future__ import annotations

import struct

import orjson

from headrace.vectors import packed, unpacked
from tests.world import World


def test_texts_become_vectors_and_vectors_a_mood(world: World) -> None:
    texts = ["The flight was delayed again, I hate it", "What a wonderful day", "..."]
    world.post("reddit", texts=texts)
    world.post("youtube", texts=["I love this song"])
    world.post("reddit", ids=["gone"], texts=["This one is deleted later"])
    world.delete("post:reddit:gone")
    world.run("embeddings", "sentiment_ml", "sentiment", "postgres")

    reddit = {m.key(): orjson.loads(m.value()) for m in world.read("enriched.embeddings.reddit")}
    youtube = world.values("enriched.embeddings.youtube", 1)
    assert [value["id"] for value in youtube] == ["post:youtube:0"], "each platform has its own"
    assert reddit[b"post:reddit:2"]["reason"] == "no words"
    result = youtube[0]["result"]
    assert result["clean"] == "I love this song"
    numbers = unpacked(result["vector"], 384)
    assert abs(sum(value * value for value in struct.unpack("<384f", numbers)) - 1) < 1e-4

    stored = world.sql("SELECT record_id, space, dimensions FROM vectors ORDER BY record_id")
    assert stored == [
        (f"post:{name}", "all-MiniLM-L6-v2-int8-384", 384)
        for name in ("reddit:0", "reddit:1", "youtube:0")
    ]
    ((vector,),) = world.sql("SELECT vector FROM vectors WHERE record_id = 'post:youtube:0'")
    assert packed(vector) == result["vector"], "to the bit"
    assert world.sql(
        "SELECT record_id, outcome, reason FROM outcomes WHERE stage = 'sentiment_ml'"
        " ORDER BY record_id"
    ) == [
        ("post:reddit:0", "ok", None),
        ("post:reddit:1", "ok", None),
        ("post:reddit:2", "drop", "upstream"),
        ("post:reddit:gone", "deleted", None),
        ("post:youtube:0", "ok", None),
    ]
    assert world.sql(
        "SELECT record_id, stage FROM served WHERE facet = 'sentiment' ORDER BY 1"
    ) == [
        ("post:reddit:0", "sentiment_ml"),
        ("post:reddit:1", "sentiment_ml"),
        ("post:youtube:0", "sentiment_ml"),
    ]
    assert world.sql("SELECT id, sentiment, sentiment_stale FROM posts ORDER BY id") == [
        ("post:reddit:0", "negative", False),
        ("post:reddit:1", "positive", False),
        ("post:reddit:2", None, None),
        ("post:youtube:0", "positive", False),
    ]


def test_work_done_again_goes_where_its_platform_is(world: World) -> None:
    world.post("youtube", texts=["I love this song"])
    world.run("embeddings", "postgres")
    (raw,) = world.read("raw.posts.youtube", 1)
    (first,) = world.read("enriched.embeddings.youtube", 1)
    lineage = dict(first.headers() or [])["hr"]
    world.send("embeddings.redo", raw.key(), raw.value(), {"hr": lineage})
    # Of a topic that this group does not read and that has no platform: a dead letter, no crash.
    stray = lineage.replace(b".raw.posts.youtube:", b".raw.communities:")
    community = {
        "id": "community:youtube:x", "kind": "community", "platform": "youtube", "name": "x",
        "slug": "x", "posts": 1, "best_posts": [],
    }  # fmt: skip
    world.send("embeddings.redo", community["id"], orjson.dumps(community), {"hr": stray})
    world.run("embeddings", "postgres")
    again = world.read("enriched.embeddings.youtube", 2)
    assert [orjson.loads(message.value())["outcome"] for message in again] == ["ok", "ok"]
    assert world.sql("SELECT count(*) FROM vectors") == [(1,)]
    ((reason,),) = world.sql("SELECT reason FROM dead_letters WHERE \"group\" = 'embeddings'")
    assert "no topic for" in reason
