"""Communities published, personas stored: over real servers, with a made-up provider."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.llm import provider
from tests.llm.provider import Provider
from tests.personas.answering import answer
from tests.world import World, wait_for

SLUGS = ("apple", "cooking", "travel")
COUNT, TOGETHER = 20, 4
CALLS = 5  # a community


@pytest.fixture
def served() -> Iterator[Provider]:
    with provider.serve() as p:
        p.answer = answer
        yield p


@pytest.fixture
def fresh(worlds: Callable[..., World], served: Provider) -> Callable[[], World]:
    """Makes worlds with this stage alone."""

    def only_personas(content: dict[str, Any]) -> None:
        kept = ("personas", "postgres")
        content["groups"] = {name: content["groups"][name] for name in kept}
        for name in [name for name in content["topics"] if name.startswith("enriched.")]:
            if name != "enriched.personas":
                del content["topics"][name]
        content["modes"] = {"fast": ["postgres"], "full": "all", "batch": ["personas"]}

    return lambda: worlds(
        platforms=("reddit",),
        partitions=1,
        change=only_personas,
        flags={
            "llm.base_url": served.url,
            "llm.api_key": "test-key-of-nobody",
            "llm.requests_per_minute": 100_000,
            "personas.count": COUNT,
            "personas.together": TOGETHER,
            "processing.retry_seconds": 0.1,
            "processing.retry_max_seconds": 0.5,
        },
    )


@pytest.fixture
def world(fresh: Callable[[], World]) -> World:
    return fresh()


def publish(world: World, *slugs: str, posts: int = 3, run: str = "r1") -> None:
    values: list[dict[str, Any]] = []
    for slug in slugs:
        best = [
            {"id": f"post:reddit:{slug}{n}", "title": f"On {slug}, part {n}", "score": posts - n}
            for n in range(posts)
        ]
        values.append(
            {
                "id": f"community:reddit:{slug}",
                "kind": "community",
                "platform": "reddit",
                "name": slug,
                "slug": slug,
                "posts": posts,
                "best_posts": best,
            }
        )
    world.publish(values, run=run)
    world.post(ids=[f"{slug}{n}" for slug in slugs for n in range(3)], run=run, community="apple")


def run(world: World, *groups: str) -> None:
    world.apply()
    world.command("run", *groups, "--until-caught-up", timeout=280)


def stored(world: World) -> list[tuple[Any, ...]]:
    """What is served, but for when it was stored."""
    return world.sql(
        "SELECT p.id, p.community_id, p.name, p.age_range, p.occupation, p.interests, p.evidence,"
        " p.set, encode(v.vector, 'hex') FROM personas p JOIN vectors v ON v.record_id = p.id"
        " ORDER BY p.id"
    )


def test_from_files_to_personas_and_back(world: World, served: Provider) -> None:
    publish(world, *SLUGS)
    run(world, "personas", "postgres")
    assert len(served.calls) == 3 * CALLS
    served_sets = stored(world)
    assert len(served_sets) == 3 * COUNT
    names = world.sql(
        "SELECT name, about <> '', jsonb_array_length(themes), personas FROM communities"
        " WHERE id IS NOT NULL ORDER BY created_at DESC, name"
    )
    assert sorted(names) == [(slug, True, 4, COUNT) for slug in SLUGS]
    assert world.sql("SELECT count(*) FROM edges WHERE kind = 'member_of'") == [(3 * COUNT,)]
    ledger = world.sql("SELECT state, reason, count(*) FROM llm_calls GROUP BY 1, 2")
    assert ledger == [("answered", "first", 3 * CALLS)]
    assert world.values("enriched.personas", 3)
    looked_at(world)

    # The file grew: the same sets under the new revision, without a call.
    publish(world, *SLUGS, posts=9, run="r2")
    run(world, "personas", "postgres")
    assert len(served.calls) == 3 * CALLS
    assert stored(world) == served_sets
    changed = world.sql("SELECT result->>'changed' FROM outcomes WHERE stage = 'personas'")
    assert changed == [("true",)] * 3
    assert "kept" not in world.command("personas", "list").stdout
    assert world.command("personas", "list").stdout.count("changed since") == 3

    decided(world, served)


def looked_at(world: World) -> None:
    """What the commands show of it."""
    said = world.command("personas", "progress").stdout
    assert said.startswith(f"Progress: {3 * COUNT}/{3 * COUNT} personas · 15 of 15 calls · $0.")
    listed = world.command("personas", "list").stdout.splitlines()
    assert listed[0] == f"r/apple  (community:reddit:apple)  {COUNT} personas, set 1"
    shown = world.command("personas", "show", "r/apple").stdout
    assert "Tone:   Quick, dry" in shown
    assert "  reddit:apple:1-01  Person 0 A., 16-24, Bicycle courier" in shown
    one = world.command("personas", "show", "reddit:apple:1-02").stdout
    assert "post:reddit:apple1: The new phone is great, I love it" in one
    check = world.command("personas", "check", "apple", check=False)
    assert (check.returncode, check.stdout.count("!")) == (0, 0), check.stdout
    assert f"r/apple: {COUNT} personas, evidence from 3 posts, 6 of 6 age ranges" in check.stdout
    rows = [json.loads(line) for line in world.command("personas", "export").stdout.splitlines()]
    assert len(rows) == 3 * COUNT
    as_csv = world.command("personas", "export", "cooking", "--format", "csv").stdout
    table = list(csv.DictReader(io.StringIO(as_csv)))
    assert [row["id"] for row in table] == [
        row["id"] for row in rows if row["community_id"] == "community:reddit:cooking"
    ]
    assert table[0]["interests"].split("; ") == rows[0]["interests"]
    path = world.home / "all.xlsx"
    world.command("personas", "export", "--format", "xlsx", "--output", path)
    from python_calamine import CalamineWorkbook

    sheet = CalamineWorkbook.from_path(str(path)).get_sheet_by_index(0).to_python()
    assert len(sheet) == 1 + 3 * COUNT and sheet[1][0] == rows[0]["id"]
    wrong = world.command("personas", "show", "nobody", check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("headrace: there is no community")


def decided(world: World, served: Provider) -> None:
    """Edit, lock and hide survive what is made anew."""
    id = "persona:reddit:apple:1-{:02d}"
    world.command("personas", "edit", id.format(1), "name=Zoe Z.", "interests=gears; old bikes")
    world.command("personas", "edit", id.format(1), "occupation=Owner of a bike shop")
    world.command("personas", "lock", id.format(2))
    world.command("personas", "hide", id.format(3), id.format(4))
    run(world, "postgres")
    row = world.sql(
        "SELECT name, occupation, interests FROM personas WHERE id = %s", [id.format(1)]
    )
    assert row == [("Zoe Z.", "Owner of a bike shop", ["gears", "old bikes"])]
    assert world.sql("SELECT count(*) FROM personas") == [(3 * COUNT - 2,)]
    assert "2 hidden" in world.command("personas", "list").stdout

    before = len(served.calls)
    said = world.command("personas", "regenerate", "r/apple").stdout
    assert said == (
        f"community:reddit:apple: set 2 is ordered; it has {COUNT - 2} personas made anew"
        " and keeps 2 personas\n"
    )
    twice = world.command("personas", "regenerate", "r/apple", check=False)
    assert twice.returncode == 2 and "was ordered and is not made yet" in twice.stderr
    run(world, "personas", "postgres")
    assert len(served.calls) - before == 5
    ids = {row[0] for row in world.sql("SELECT id FROM personas WHERE community = 'apple'")}
    kept = {id.format(1), id.format(2)}
    assert ids == kept | {f"persona:reddit:apple:2-{n:02d}" for n in range(3, COUNT + 1)}
    row = world.sql("SELECT name, edited, set FROM personas WHERE id = %s", [id.format(1)])
    assert row == [("Zoe Z.", True, 2)]
    assert world.sql("SELECT count(*) FROM persona_history") == [(COUNT - 4,)], "2 are hidden"

    refused = world.command("personas", "regenerate", id.format(2), check=False)
    assert refused.returncode == 2 and "is locked" in refused.stderr
    world.command("personas", "regenerate", "reddit:apple:2-07")
    run(world, "personas", "postgres")
    assert len(served.calls) - before == 6
    now = {row[0] for row in world.sql("SELECT id FROM personas WHERE community = 'apple'")}
    assert now == ids - {"persona:reddit:apple:2-07"} | {"persona:reddit:apple:3-07"}
    world.command("personas", "unlock", id.format(2))
    world.command("personas", "edit", id.format(1), "name=", "interests=", "occupation=")
    run(world, "postgres")
    marks = world.sql("SELECT bool_or(locked), bool_or(edited) FROM personas")
    assert marks == [(False, False)]


@pytest.mark.crash
def test_a_kill_costs_no_more_than_the_call_in_flight(
    fresh: Callable[[], World], world: World, served: Provider
) -> None:
    publish(world, *SLUGS)
    served.seconds = 0.2
    store = world.start_worker("postgres")
    following = world.start("personas", "progress", "--follow")
    kills = (2, 7, 11)
    for answers in kills:
        worker = world.start_worker("personas", "--now")
        wait_for(
            lambda n=answers: world.sql("SELECT count(*) >= %s FROM llm_answers", [n])[0][0],
            message=lambda w=worker: world.log_of(w)[-2000:],
        )
        worker.kill()
        worker.wait(30)
    served.seconds = 0.0
    last = world.start_worker("personas", "--now")
    wait_for(
        lambda: world.sql("SELECT count(*) = %s FROM personas", [3 * COUNT])[0][0],
        message=lambda: world.log_of(last)[-2000:],
    )
    states = dict(world.sql("SELECT state, count(*) FROM llm_calls GROUP BY 1"))
    lost = states.get("lost", 0)
    assert states["answered"] == 3 * CALLS
    assert lost <= len(kills)
    assert 3 * CALLS <= len(served.calls) <= 3 * CALLS + lost
    repeated = world.sql("SELECT count(*) FROM llm_calls WHERE repeats <> '{}'")
    assert repeated == [(lost,)], "each is named by the call that asks again"
    wait_for(lambda: following.poll() is not None, message=lambda: world.log_of(following))
    told = world.log_of(following).splitlines()
    assert sum(line.startswith("[Community ") for line in told) == 3
    assert sum(line == f"✓ committed {COUNT} personas, {COUNT} relationships" for line in told) == 3
    assert told[-1].startswith(f"Progress: {3 * COUNT}/{3 * COUNT} personas · 15 of 15 calls")
    assert "✓ committed 20 personas, 20 relationships" in world.log_of(last)
    undisturbed = fresh()
    publish(undisturbed, *SLUGS)
    run(undisturbed, "personas", "postgres")
    assert stored(undisturbed) == stored(world)
    assert store.poll() is None
