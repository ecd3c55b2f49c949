"""Communities published, personas stored and searched: over real servers, with a made-up provider
and a worker that is killed in the middle of a set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from consumers.personas import changing
from consumers.personas.reading import Found
from headrace.graph import persona_id
from tests.llm import provider
from tests.llm.provider import Provider
from tests.personas.answering import answer
from tests.search.conftest import Search, search_flags, searches
from tests.whole import running
from tests.world import CLONE, World, wait_for

__all__ = ["search_flags", "searches"]  # fixtures of tests/search

SLUGS = ("apple", "travel")
COUNT, CALLS = 50, 5  # of a community
FOURTH = 4  # the call that the worker is killed in


@pytest.fixture
def served() -> Iterator[Provider]:
    with provider.serve() as p:
        p.answer = answer
        yield p


@pytest.fixture
def search(searches: Callable[..., Search], served: Provider) -> Search:
    def only_personas(content: dict[str, Any]) -> None:
        shipped = yaml.safe_load((CLONE / "topics.yaml").read_text())
        kept = ("personas", "postgres", "search")
        content["groups"] = {name: shipped["groups"][name] for name in kept}
        content["topics"] = {
            name: topic
            for name, topic in shipped["topics"].items()
            if not name.startswith("enriched.") or name == "enriched.personas"
        }
        content["modes"] = {"fast": ["postgres"], "full": "all", "batch": ["personas"]}

    return searches(
        platforms=("reddit",),
        partitions=1,
        change=only_personas,
        flags={
            "llm.base_url": served.url,
            "llm.api_key": "nobody's",
            "llm.requests_per_minute": 0,
            "processing.retry_seconds": 0.1,
            "processing.retry_max_seconds": 0.5,
        },
    )


def publish(world: World, posts: int, run: str) -> None:
    for slug in SLUGS:
        best = [
            {"id": f"post:reddit:{slug}{n}", "title": f"On {slug}, part {n}", "score": posts - n}
            for n in range(posts)
        ]
        id = f"community:reddit:{slug}"
        value = {"id": id, "kind": "community", "platform": "reddit", "name": slug, "slug": slug,
                 "posts": posts, "best_posts": best}  # fmt: skip
        world.publish([value], run=run)
        world.post(ids=[f"{slug}{n}" for n in range(posts)], run=run, community=slug)


def stored(world: World) -> list[tuple[Any, ...]]:
    """What is served, but for when it was stored."""
    return world.sql(
        "SELECT p.id, p.name, p.occupation, p.evidence, p.set, encode(v.vector, 'hex')"
        " FROM personas p JOIN vectors v ON v.record_id = p.id ORDER BY p.id"
    )


def number(world: World, query: str) -> int:
    return int(world.sql(f"SELECT count(*) FROM {query}")[0][0])


@pytest.mark.crash
def test_communities_become_whole_sets_whatever_happens(search: Search, served: Provider) -> None:
    world = search.world
    world.apply()
    running.shorten_sessions(world)
    publish(world, 3, "r1")
    store = world.start_worker("postgres")
    said = lambda: world.log_of(store)[-2000:]  # noqa: E731
    wait_for(lambda: number(world, "records") == 2 + 2 * 3, message=said)
    following = world.start("personas", "progress", "--follow")
    wait_for(lambda: "Progress: 0/100" in world.log_of(following), message=said)

    # Killed while the fourth call is under way.
    answers = threading.Event()
    served.script(*[provider.Step()] * (FOURTH - 1), provider.held(answers))
    worker = world.start_worker("personas", "--now")
    wait_for(lambda: len(served.calls) == FOURTH, message=lambda: world.log_of(worker)[-2000:])
    worker.kill()
    worker.wait(30)
    answers.set()
    assert number(world, "personas") == 0, "whole or not at all"
    worker = world.start_worker("personas", "--now")
    said = lambda: world.log_of(worker)[-2000:]  # noqa: E731
    wait_for(lambda: number(world, "personas") == 2 * COUNT, 120, said)
    assert len(served.calls) == 2 * CALLS + 1
    states = world.sql("SELECT state, count(*) FROM llm_calls GROUP BY 1 ORDER BY 1")
    assert states == [("answered", 2 * CALLS), ("lost", 1)]
    repeats = world.sql("SELECT id, repeats FROM llm_calls WHERE repeats <> '{}'")
    assert repeats == [(FOURTH + 1, [FOURTH])], "named by the call that asks again"

    # As undisturbed: each call found those of the calls before it.
    first = stored(world)
    assert [row[:2] for row in first] == [
        (persona_id(f"community:reddit:{slug}", 1, n + 1), f"Person {n} {chr(65 + n % 26)}.")
        for slug in SLUGS
        for n in range(COUNT)
    ]
    assert number(world, "edges WHERE kind = 'member_of'") == 2 * COUNT
    search.project()
    assert len(search.objects("RedditPersona")) == 2 * COUNT
    assert len(search.objects("RedditCommunity")) == 2
    vector = search.object(first[0][0], "RedditPersona").vector["default"]
    assert len(vector) == 384
    compared = search.compare()
    assert (compared.apart, compared.unknown) == (0, 0), compared

    wait_for(lambda: following.poll() is not None, message=lambda: world.log_of(following))
    told = world.log_of(following).splitlines()
    named = dict.fromkeys(line for line in told if line.startswith("["))
    assert list(named) == [f"[Community {n}/2] r/{slug}" for n, slug in enumerate(SLUGS, 1)]
    assert told.count("Batch 4/5: 10 personas (40/50)") == 2
    assert told.count("✓ committed 50 personas, 50 relationships") == 2
    assert told[-1].startswith("Progress: 100/100 personas · 10 of 10 calls · $0.")
    assert "goes on after 30 of 50 personas" in world.log_of(worker)

    # The files grew: the same sets under the new revision, without a call.
    publish(world, 9, "r2")
    changed = "outcomes WHERE stage = 'personas' AND (result->>'changed')::boolean"
    wait_for(lambda: number(world, changed) == 2, message=said)
    assert stored(world) == first
    assert len(served.calls) == 2 * CALLS + 1

    # What people decide survives a new set.
    community = f"community:reddit:{SLUGS[0]}"
    edited, locked, hidden = (persona_id(community, 1, place) for place in (1, 2, 3))
    changing.decide(world.settings, [edited], "edit", {"name": "Zoe Z."})
    changing.decide(world.settings, [locked], "lock", True)
    changing.decide(world.settings, [hidden], "hide", True)
    order = changing.regenerate(world.settings, Found(community, None))
    assert (order.set, order.kept, order.anew) == (2, 2, COUNT - 2)
    wait_for(lambda: changing.is_made(world.settings, order), message=said)
    assert len(served.calls) == 3 * CALLS + 1
    now = dict(world.sql("SELECT id, name FROM personas WHERE community_id = %s", [community]))
    anew = {persona_id(community, 2, place) for place in range(3, COUNT + 1)}
    assert now.keys() == {edited, locked} | anew
    assert now[edited] == "Zoe Z."
    assert number(world, "persona_history") == COUNT - 3, "one of them is hidden"
    search.project()
    assert search.objects("RedditPersona").keys() == now.keys() | {row[0] for row in first[COUNT:]}
    assert store.poll() is None
