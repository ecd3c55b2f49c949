"""Communities out of their posts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.communities import Communities, Distinct, slug_of

ROOT = Path(__file__).parents[2]


def post(number: int, **over: Any) -> dict[str, Any]:
    return {
        "id": f"post:reddit:{number}",
        "title": f"title {number}",
        "community": "Coffee",
        "author": f"a{number % 3}",
        "created_at": f"2026-01-{1 + number % 28:02}T00:00:00Z",
        "metrics": {"score": number, "comments": 2},
        **over,
    }


def test_counts_and_best_posts() -> None:
    found = Communities("reddit", best=2)
    for number in range(30):
        found.add(post(number))
    found.add(post(5))  # again: a repeat counts once
    found.add(
        post(40, community="coffee ", metrics={"likes": 9}, created_at="2026-01-01T00:00:00.5Z")
    )
    found.add(post(50, community="Tea & Co"))
    found.add(post(60, community=None))
    coffee, tea = found.records()
    assert found.without == 1 and len(found) == 2
    assert coffee == {
        "id": "community:reddit:coffee",
        "kind": "community",
        "platform": "reddit",
        "slug": "coffee",
        "name": "Coffee",
        "posts": 31,
        "authors": 3,
        "comments": 60,
        "first_at": "2026-01-01T00:00:00Z",
        "last_at": "2026-01-28T00:00:00Z",
        "best_posts": [
            {"id": "post:reddit:29", "title": "title 29", "score": 29},
            {"id": "post:reddit:28", "title": "title 28", "score": 28},
        ],
    }
    assert tea["id"] == "community:reddit:tea-co" and tea["posts"] == 1
    schema = orjson.loads((ROOT / "schemas/raw_community.v1.json").read_bytes())
    jsonschema_rs.validator_for(schema).validate(coffee)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(-3, 3)), max_size=40), st.integers(0, 4))
@settings(derandomize=True, deadline=None)
def test_the_best_are_the_best_whatever_the_order(rows: list[tuple[int, int]], best: int) -> None:
    final = dict(rows)  # the last revision of a post is what it is
    posts = [post(number, metrics={"score": score}) for number, score in rows]
    found = Communities("reddit", best=best)
    for row in posts:
        found.add(row)
    kept = [(b["score"], b["id"]) for c in found.records() for b in c["best_posts"]]
    assert kept == sorted(kept, reverse=True) and len(kept) <= best
    if len(final) == len(rows):
        expected = sorted(((s, f"post:reddit:{n}") for n, s in final.items()), reverse=True)[:best]
        assert kept == expected


def test_many_are_estimated_in_little_memory() -> None:
    found = Distinct()
    for number in range(4_000):
        assert found.add(str(number)) and not found.add(str(number))
    assert len(found) == 4_000
    for number in random.Random(1).choices(range(50_000), k=200_000):
        found.add(str(number))
    assert abs(len(found) - 49_100) < 4_000


def test_slugs() -> None:
    assert slug_of("Café  de l’Art") == "café-de-l-art"
    assert slug_of("!!!") == ""
    assert len("community:reddit:" + slug_of("x" * 900, "reddit")) <= 500
