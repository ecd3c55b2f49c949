"""Weaviate becomes what PostgreSQL is, whatever happens on the way."""

from __future__ import annotations

from tests.search.conftest import Search

GROUPS = ("text", "entities", "sentiment")


def test_an_object_holds_the_whole_record(search: Search):
    world = search.world
    world.post(
        ids=["1"], texts=["I love the new Nike shoes #running"], title="Shoes", author="ann",
        community="Sneaker Talk", created_at="2024-05-01T12:00:00Z", metrics={"likes": 3},
    )  # fmt: skip
    world.run("postgres")
    search.project()
    early = search.objects()["post:reddit:1"]
    assert early["text"] == "I love the new Nike shoes #running"
    assert early["sentiment_status"] == "pending" and early["sentiment"] is None
    world.run(*GROUPS)
    search.project()
    late = search.objects()["post:reddit:1"]
    assert late["row_version"] > early["row_version"]
    assert (late["sentiment"], late["sentiment_status"]) == ("positive", "ok")
    assert late["entities"] == ["Nike"] and late["entity_keys"] == ["nike"]
    assert (late["community"], late["community_key"]) == ("Sneaker Talk", "sneaker-talk")
    assert (late["language"], late["hashtags"]) == ("en", ["running"])
    assert late["created_at"].isoformat() == "2024-05-01T12:00:00+00:00"
    assert search.compare().apart == 0
