"""Scores on the real servers, with a provider on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.llm import provider
from tests.world import World

DIMENSIONS = {
    "relevance": {"description": "Does it matter?", "weight": 1.0},
    "urgency": {"description": "Does it press?", "weight": 3.0},
}


def only_scores(content: dict[str, Any]) -> None:
    """No other stage, so that a run is quick."""
    kept = ("scores", "postgres")
    content["groups"] = {name: content["groups"][name] for name in kept}
    content["topics"] = {
        name: topic
        for name, topic in content["topics"].items()
        if not name.startswith("enriched.") or name == "enriched.scores"
    }
    content["modes"] = {"full": "all"}


@pytest.fixture
def asked() -> Iterator[Any]:
    with provider.serve() as served:
        yield served


@pytest.fixture
def world(worlds: Callable[..., World], asked: Any) -> World:
    made = worlds(
        platforms=("reddit",),
        change=only_scores,
        flags={
            "llm.base_url": asked.url,
            "llm.requests_per_minute": 100_000,
            "search.enabled": False,
            "processing.retry_seconds": 0.1,
            "processing.retry_max_seconds": 0.2,
        },
    )
    return dimensions(made, DIMENSIONS)


def dimensions(world: World, wanted: dict[str, Any]) -> World:
    """Whoever starts from now on reads these."""
    scores = world.settings.scores.model_validate({"dimensions": wanted, "together": 4})
    world.settings = world.settings.model_copy(update={"scores": scores})
    return world


def stored(world: World) -> dict[str, tuple[dict[str, float], float]]:
    rows = world.sql("SELECT record_id, scores, weighted FROM scores")
    return {record.rpartition(":")[2]: (scores, weighted) for record, scores, weighted in rows}


def test_posts_are_scored_weighed_and_ranked(world: World, asked: Any) -> None:
    texts = [f"post number {number}" for number in range(10)]
    world.post(ids=list("abcdefghij"), texts=texts)
    world.post(ids=["empty"], texts=["  "])
    asked.answer = lambda one: {"relevance": int(one.item["text"][-1]), "urgency": 2}
    world.run("scores", "postgres")

    assert len(asked.calls) <= 4  # 10 posts on two partitions, four in a call
    found = stored(world)
    assert found["j"] == ({"relevance": 9, "urgency": 2}, pytest.approx((9 + 3 * 2) / 4))
    assert len(found) == 10
    assert world.sql("SELECT reason FROM outcomes WHERE outcome = 'drop'") == [("empty",)]
    best = json.loads(world.command("top", "--limit", "2", "--json").stdout)
    assert [row["id"] for row in best] == ["post:reddit:j", "post:reddit:i"]
    assert world.sql("SELECT score FROM posts WHERE id = 'post:reddit:j'") == [(3.75,)]

    # New weights: no call, every score anew.
    calls = len(asked.calls)
    dimensions(world, DIMENSIONS | {"urgency": {"description": "Does it press?", "weight": 0}})
    said = json.loads(world.command("scores", "recompute", "--json").stdout)
    assert (said["records"], said["changed"]) == (10, 9)  # 2 and 2 weigh the same either way
    assert stored(world)["j"][1] == 9.0
    assert len(asked.calls) == calls

    # A dimension without a score counts as 5.0.
    assert world.sql("SELECT weighted_score('{}')") == [(5.0,)]

    # A deletion takes them out.
    world.delete("post:reddit:j")
    world.run("scores", "postgres")
    assert "j" not in stored(world) and len(stored(world)) == 9


def test_a_new_dimension_is_asked_for_alone(world: World, asked: Any) -> None:
    world.post(ids=list("abcdef"), texts=["one", "two", "three", "four", "five", "six"])
    asked.answer = lambda one: {"relevance": 4, "urgency": 4}
    world.run("scores", "postgres")
    before, calls = stored(world), len(asked.calls)

    more = DIMENSIONS | {"novelty": {"description": "Is it new?", "weight": 2.0}}
    dimensions(world, more)
    asked.answer = lambda one: {"novelty": 9}
    said = world.command("scores", "backfill", "--dimension", "novelty", "--dry-run").stdout
    assert "6 records" in said
    unknown = world.command("scores", "backfill", "--dimension", "beauty", check=False)
    assert unknown.returncode == 2 and "beauty is not in scores.dimensions" in unknown.stderr
    world.command("scores", "backfill", "--dimension", "novelty", "--yes")
    world.run("scores", "postgres")

    asked_for = [call.text for call in asked.calls[calls:]]
    assert asked_for and all("Is it new?" in text for text in asked_for)
    assert not any("Does it press?" in text for text in asked_for)
    found = stored(world)
    assert found["a"][0] == before["a"][0] | {"novelty": 9}
    assert found["a"][1] == before["a"][1]  # its weight is not in force yet
    world.command("scores", "recompute")
    assert stored(world)["a"][1] == pytest.approx((4 + 3 * 4 + 2 * 9) / 6)
