"""`headrace search` as people call it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.search.commands import excerpt
from headrace.search.query import Filters, Hit, Searcher, fused, moment
from headrace.search.words import scores, terms, weights
from tests.search.conftest import Search

POSTS: list[dict[str, Any]] = [
    {"native_id": "1", "text": "The new Nike shoes fell apart after a week, I hate them",
     "created_at": "2024-01-10T00:00:00Z", "author": "ann"},
    {"native_id": "2", "text": "I love my Nike shoes, the best I ever had",
     "created_at": "2024-03-10T00:00:00Z", "community": "Sneaker Talk"},
    {"native_id": "3", "text": "Shoes from Adidas are wonderful and comfortable",
     "created_at": "2024-03-11T00:00:00Z"},
    {"native_id": "4", "text": "My kitten purrs when it sleeps on the sofa",
     "created_at": "2024-03-12T00:00:00Z"},
]  # fmt: skip


def _publish(search: Search, platform: str = "reddit", values: Any = None) -> None:
    search.world.publish(
        [
            {"id": f"post:{platform}:{v['native_id']}", "kind": "post", "platform": platform, **v}
            for v in (POSTS if values is None else values)
        ]
    )


def test_words_meaning_and_filters(search: Search):
    world = search.world
    _publish(search)
    _publish(search, "youtube", [{"native_id": "9", "text": "These shoes are fine"}])
    world.run("text", "entities", "sentiment", "embeddings", "postgres")
    told = world.command("run", "search", "--until-caught-up").stdout
    assert "search: 5 ok" in told and "caught up" in told

    def found(*words: str) -> list[str]:
        hits = json.loads(world.command("search", *words, "--json").stdout)
        return [hit["id"].removeprefix("post:") for hit in hits]

    keyword = ("shoes", "--mode", "keyword")
    assert sorted(found(*keyword)) == ["reddit:1", "reddit:2", "reddit:3", "youtube:9"]
    line = world.command("search", *keyword, "--entity", "nike", "--sentiment", "negative").stdout
    assert line.split()[1:4] == ["reddit", "2024-01-10", "negative"]
    assert "The new Nike shoes fell apart" in line
    with Searcher(world.settings) as searcher:

        def ids(words: str, mode: Any = "keyword", limit: int = 10, **filters: Any) -> list[str]:
            hits = searcher.search(words, mode, Filters(**filters), limit)
            return [hit.id.removeprefix("post:") for hit in hits]

        assert ids("shoes", platforms=("youtube",)) == ["youtube:9"]
        assert ids("shoes", entities=("Nike",), since="2024-02-01") == ["reddit:2"]
        assert ids("shoes", until="2024-02-01") == ["reddit:1"]
        assert ids("shoes", author="ann") == ["reddit:1"]
        assert ids("shoes", community="sneaker talk") == ["reddit:2"]
        assert ids("shoes", since="1 hour") == []
        assert ids("shoes", since="9999-12-31") == []
        assert ids("nothing of the kind") == []
        assert ids("to be or not") == ids("the", platforms=("youtube",)) == []  # no words to it
        assert len(ids("to be or not", "hybrid")) == 5
        # By meaning no word need be the same.
        assert ids("a cat naps on the couch", "semantic", 1) == ["reddit:4"]
        assert ids("a cat naps on the couch", "hybrid", 1) == ["reddit:4"]
        assert set(ids("shoes", "hybrid", sentiment="negative")) == {"reddit:1"}
        with pytest.raises(HeadraceError, match="say what to look for"):
            searcher.search(" ")
        with pytest.raises(HeadraceError, match="platform redit is not known; there are: "):
            ids("shoes", platforms=("redit",))
    assert search.object("post:reddit:4").vector["default"]
    assert search.compare().apart == 0


def test_without_vectors_the_words_do(search: Search):
    world = search.world
    _publish(search)
    world.run("postgres")
    search.project()
    hits = json.loads(world.command("search", "shoes", "--json").stdout)
    assert len(hits) == 3
    unlike = {"HEADRACE_EMBEDDINGS__PROVIDER": "openai", "HEADRACE_EMBEDDINGS__MODEL": "m",
              "HEADRACE_EMBEDDINGS__DIMENSIONS": "8"}  # fmt: skip
    said = world.command("search", "shoes", "--json", env=unlike)
    assert len(json.loads(said.stdout)) == 3 and "by words only: " in said.stderr
    refused = world.command("search", "shoes", "--mode", "semantic", env=unlike, check=False)
    assert refused.returncode == 2 and "`headrace search rebuild`" in refused.stderr


def test_before_anything_is_there_one_line_says_so(search: Search):
    said = search.world.command("search", "shoes", check=False)
    assert said.returncode == 2 and len(said.stderr.strip().splitlines()) == 1
    assert "`headrace run search`" in said.stderr


def test_both_ways_are_weighed():
    words = {"a": 8.0, "b": 2.0, "c": 0.0}
    near = {"a": 0.1, "b": 0.8, "c": 0.9, "d": 0.3}

    def order(share: float) -> list[str]:
        joined = fused(words, near, 0.3, share)
        return sorted(joined, key=lambda name: (-joined[name], name))

    assert order(0.0) == ["a", "b", "c", "d"]
    assert order(1.0) == ["c", "b", "a", "d"]
    both = fused(words, near, 0.3, 0.5)
    assert both["b"] == pytest.approx(0.5 * (2 / 8) + 0.5 * (0.5 / 0.6))
    assert both["a"] == 0.5  # farther than the floor is nothing, not less
    assert fused({}, {"a": 0.5}, 0.5, 0.5) == {"a": 0.5}


def test_a_word_weighs_what_it_weighs_among_all():
    """`flight` is everywhere at one platform, and rare at the other."""
    assert terms("The flight, NOT the Flight_2!") == ["flight", "2"]
    weight = weights({"flight": 5_000, "hotel": 10, "snow": 10}, 10_000)
    assert weight["hotel"] > 4 * weight["flight"]
    texts = [("", "flight " * 5), ("", "a hotel in the snow and a flight"), ("", "no word")]
    told = scores(texts, weight)
    assert told[1] > told[0] > told[2] == 0.0
    assert scores([("hotel", "hotel")], weight) > scores([("", "hotel")], weight)


def test_platforms_are_weighed_together(search: Search):
    """Each collection by itself would put its own rare word first."""
    many = [{"native_id": f"f{n}", "text": f"my flight number {n} was late"} for n in range(30)]
    both = {"native_id": "b", "text": "my flight was cancelled, and no hotel was free"}
    _publish(search, "reddit", [*many, both])
    _publish(
        search,
        "youtube",
        [
            {"native_id": "1", "text": "a flight of wild geese"},
            *({"native_id": f"y{n}", "text": "a song"} for n in range(30)),
        ],
    )
    search.world.run("postgres")
    search.project()
    with Searcher(search.settings) as searcher:
        hits = searcher.search("cancelled flight, hotel", "keyword", limit=2)
    assert hits[0].id == "post:reddit:b"
    assert hits[1].score < hits[0].score / 2


def test_an_excerpt_shows_the_word_and_obeys_no_terminal():
    hit = Hit(1.0, "a", "reddit", "post", "x " * 200 + "the shoes \x1b[2J here " + "y " * 200)
    line = excerpt(hit, "Shoes", 60)
    assert len(line) <= 60 and "shoes" in line and "\x1b" not in line
    assert line.startswith("…") and line.endswith("…")


def test_times_are_dates_or_ages():
    assert moment("--since", "2024-01-31").isoformat() == "2024-01-31T00:00:00+00:00"
    with pytest.raises(HeadraceError, match="--since tomorrow: write a date"):
        moment("--since", "tomorrow")
