"""`headrace search` as people call it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.search.commands import excerpt
from headrace.search.query import Filters, Hit, Searcher, fused, moment
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
        assert ids("nothing of the kind") == []
        # By meaning no word need be the same.
        assert ids("a cat naps on the couch", "semantic", 1) == ["reddit:4"]
        assert ids("a cat naps on the couch", "hybrid", 1) == ["reddit:4"]
        assert set(ids("shoes", "hybrid", sentiment="negative")) == {"reddit:1"}
        with pytest.raises(HeadraceError, match="say what to look for"):
            searcher.search(" ")
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


def test_answers_are_fused_by_weight():
    def hit(name: str, score: float) -> Hit:
        return Hit(score, name, "reddit", "post", "")

    words = [hit("a", 9.0), hit("b", 3.0), hit("c", 1.0)]
    meaning = [hit("d", 0.9), hit("b", 0.8), hit("a", 0.1)]
    assert [h.id for h in fused(words, meaning, 0.0)] == ["a", "b", "c"]
    assert [h.id for h in fused(words, meaning, 1.0)] == ["d", "b", "a"]
    both = fused(words, meaning, 0.5)
    assert [h.id for h in both] == ["b", "a", "d", "c"]
    assert both[0].score == pytest.approx(0.5 * (2 / 8) + 0.5 * (0.7 / 0.8))


def test_an_excerpt_shows_the_word_and_obeys_no_terminal():
    hit = Hit(1.0, "a", "reddit", "post", "x " * 200 + "the shoes \x1b[2J here " + "y " * 200)
    line = excerpt(hit, "Shoes", 60)
    assert len(line) <= 60 and "shoes" in line and "\x1b" not in line
    assert line.startswith("…") and line.endswith("…")


def test_times_are_dates_or_ages():
    assert moment("--since", "2024-01-31").isoformat() == "2024-01-31T00:00:00+00:00"
    with pytest.raises(HeadraceError, match="--since tomorrow: write a date"):
        moment("--since", "tomorrow")
