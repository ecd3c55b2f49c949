"""A stage begins again, and nothing of what came of it before comes back."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.snapshots import folder, resetting
from tests.snapshots.conftest import expire
from tests.world import World, wait_for


def outcomes(world: World, stage: str) -> list[tuple[Any, ...]]:
    return world.sql(
        "SELECT record_id, outcome, result, version, root_offset FROM outcomes WHERE stage = %s"
        " ORDER BY record_id",
        [stage],
    )


def ranks(world: World, stage: str) -> set[int]:
    return {row[0] for row in world.sql("SELECT rank FROM outcomes WHERE stage = %s", [stage])}


def test_a_stage_begins_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.post(n=6, texts=["I love Nike", "Paris is awful", "It rains"])
    world.run("text", "sentiment")
    before, text = outcomes(world, "sentiment"), outcomes(world, "text")
    # Of a higher rank than what comes after the reset, which would never replace them.
    world.sql("UPDATE outcomes SET rank = 7 WHERE stage = 'sentiment'")
    # And one that the store has yet to read.
    world.post(ids=["late"])
    world.command("run", "sentiment", "--only", "--until-caught-up")
    world.sql("INSERT INTO redo (\"group\", record_id) VALUES ('sentiment', 'post:reddit:1')")

    shown = world.command("reset", "--stage", "sentiment", "--dry-run").stdout
    assert "reset of sentiment: removes 6 outcomes, 1 queued" in shown
    assert outcomes(world, "sentiment") == before

    # Ended before the stage's own offsets, it is done again to the same end.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resetting, "_begin", _killed)
        resetting.reset(world.settings, ["sentiment"])
    world.command("reset", "--stage", "sentiment", "--yes")
    assert [made.name[:13] for made in folder.listed(world.settings)] == ["before-reset-"]
    assert outcomes(world, "sentiment") == [] and outcomes(world, "text") == text
    assert world.sql("SELECT record_id FROM redo") == []

    world.run("postgres")  # what stood on enriched.sentiment unread does not come back
    assert outcomes(world, "sentiment") == []
    world.run("sentiment")
    after = outcomes(world, "sentiment")
    assert [row[0] for row in after] == [*(row[0] for row in before), "post:reddit:late"]
    assert after[: len(before)] == before and ranks(world, "sentiment") == {1}


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_is_downstream_goes_too_and_gaps_are_named(world: World) -> None:
    settings = world.apply().settings
    assert names(resetting.plan(settings, ["embeddings"])) == ["embeddings", "sentiment_ml"]
    alone = resetting.plan(settings, ["embeddings"], downstream=False)
    assert names(alone) == ["embeddings"]
    world.send("enriched.embeddings.reddit", "post:reddit:1", b"{}")
    assert names(resetting.plan(settings, ["sentiment_ml"])) == ["sentiment_ml"]
    where, end = expire(world, "enriched.embeddings.reddit")
    with pytest.raises(HeadraceError, match=r"reset embeddings too \(`--stage embeddings`\)"):
        resetting.plan(settings, ["sentiment_ml"])
    both = resetting.plan(settings, ["embeddings"])
    assert both.begin["sentiment_ml"][where] == end  # behind what is written anew
    with pytest.raises(HeadraceError, match="postgres is no stage"):
        resetting.plan(settings, ["postgres"])


def names(plan: resetting.Plan) -> list[str]:
    return [stage.short for stage in plan.stages]


def test_a_store_at_work_goes_on_from_there(world: World) -> None:
    store = world.apply().start("run", "postgres")
    group = world.topology.group("postgres").name
    wait_for(lambda: world.admin.members(group), message=lambda: world.log_of(store))
    world.post(n=6)
    world.command("run", "sentiment", "--only", "--until-caught-up")
    world.command("reset", "--stage", "sentiment", "--no-snapshot", "--yes")
    assert outcomes(world, "sentiment") == []
    world.post(ids=["new"])
    world.command("run", "sentiment", "--only", "--until-caught-up")
    wait_for(lambda: len(outcomes(world, "sentiment")) == 7, message=lambda: world.log_of(store))
    wait_for(lambda: world.sql("SELECT count(*) FROM records") == [(7,)])
    assert store.poll() is None
