"""A project with the stage `scores` alone, its store, and a provider on loopback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.llm.provider import Provider
from tests.world import World

DIMENSIONS: dict[str, Any] = {
    "relevance": {"description": "Does it matter?", "weight": 1.0},
    "urgency": {"description": "Does it press?", "weight": 3.0},
}
NOVELTY = {"novelty": {"description": "Is it new?", "weight": 2.0}}


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


def made(worlds: Callable[..., World], provider: Provider, **flags: Any) -> World:
    quick = {
        "llm.base_url": provider.url,
        "llm.model": "gpt-4.1-mini",
        "llm.requests_per_minute": 100_000,
        "search.enabled": False,
        "processing.retry_seconds": 0.1,
        "processing.retry_max_seconds": 0.2,
    }
    world = worlds(platforms=("reddit", "youtube"), change=only_scores, flags=quick | flags)
    return dimensions(world, DIMENSIONS)


def dimensions(world: World, wanted: Mapping[str, Any]) -> World:
    """Whoever starts from now on reads these."""
    scores = world.settings.scores.model_validate({"dimensions": wanted, "together": 4})
    world.settings = world.settings.model_copy(update={"scores": scores})
    return world


def stored(world: World) -> dict[str, tuple[dict[str, float], float]]:
    """Scores and weighted score by native id."""
    rows = world.sql("SELECT record_id, scores, weighted FROM scores")
    return {record.rpartition(":")[2]: (scores, weighted) for record, scores, weighted in rows}
