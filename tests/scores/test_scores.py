"""Scores the whole way: posts on Kafka, a provider on loopback, tables, views and commands."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from headrace.stores import postgres as database
from tests.llm import provider
from tests.llm.provider import Provider
from tests.scores.world import DIMENSIONS, NOVELTY, dimensions, made, stored
from tests.stream.asking import readers
from tests.world import World, wait_for

TEXTS = [f"post number {n}" for n in range(10)] + ["video number 4", "video number 0"]

# A command that has sent its second chunk is held before it can say so.
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT count(*) FROM redo) >= 8 THEN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 7); END IF;
  RETURN NULL; END $$;
CREATE TRIGGER hold BEFORE UPDATE ON redo EXECUTE FUNCTION hold()
"""


@pytest.fixture
def p() -> Iterator[Provider]:
    with provider.serve() as served:
        yield served


def killed_half_way(world: World, *command: str) -> None:
    world.sql(HOLD)
    with database.connect(world.settings, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(hashtext(current_schema()), 7)")
        process = world.start(*command)
        held = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'"
            f" AND application_name = 'headrace redo scores {world.project}'"
        )
        (pid,) = wait_for(lambda: world.sql(held), message=lambda: world.log_of(process))[0]
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        world.sql("SELECT pg_terminate_backend(%s)", [pid])
        wait_for(lambda: not world.sql(held))
    world.sql("DROP TRIGGER hold ON redo")


def test_scores_the_whole_way(worlds: Callable[..., World], p: Provider) -> None:
    world = made(worlds, p, **{"redo.chunk": 4})
    world.post(ids=list("abcdefghij"), texts=TEXTS[:10])
    world.post(ids=["empty"], texts=["  "])
    world.post("youtube", ids=["y", "z"], texts=TEXTS[10:])
    p.answer = lambda one: {"relevance": int(one.item["text"][-1]), "urgency": 2}
    world.run("scores", "postgres")

    assert sorted(item["text"] for item in p.items) == sorted(TEXTS)
    assert 1 < max(len(call.items) for call in p.calls) <= 4  # of what a batch held
    first = stored(world)
    assert first["j"] == ({"relevance": 9, "urgency": 2}, pytest.approx((9 + 3 * 2) / 4))
    assert len(first) == 12
    assert world.sql("SELECT reason FROM outcomes WHERE outcome = 'drop'") == [("empty",)]
    assert world.sql("SELECT score, scores FROM posts WHERE id = 'post:reddit:j'") == [
        (3.75, {"relevance": 9, "urgency": 2})
    ]
    told = world.command("top", "--by", "score", "--platform", "youtube", "--limit", "1").stdout
    assert told.splitlines() == [
        "  1. 2.50  youtube  [relevance 4, urgency 2]",
        "     video number 4",
        "     post:youtube:y",
    ]

    # A new dimension: asked for alone. Killed when eight are sent, the command goes on.
    p.calls.clear()
    p.answer = lambda one: {"novelty": 10}
    p.judge = lambda call: provider.status(400) if "number 2" in call.text else None
    dimensions(world, DIMENSIONS | NOVELTY)
    backfill = ("scores", "backfill", "--dimension", "novelty")
    planned = json.loads(world.command(*backfill, "--dry-run", "--json").stdout)
    assert (planned["found"], planned["estimate"]["calls"]) == (12, 3)
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]
    killed_half_way(world, *backfill, "--yes")
    done = json.loads(world.command(*backfill, "--yes", "--json").stdout)
    assert (done["resent"], done["queued"]) == (4, 4)
    world.run("scores", "postgres")
    assert sorted(item["text"] for item in p.items) == sorted(set(TEXTS) - {"post number 2"})
    assert all("Is it new?" in call.text and "Does it press?" not in call.text for call in p.calls)
    second = stored(world)
    assert second["j"] == (first["j"][0] | {"novelty": 10}, first["j"][1])  # its weight: below
    assert second["c"] == first["c"]  # it died of that, and the rest of it stands
    assert world.sql("SELECT record_key FROM letters WHERE state = 'open'") == [("post:reddit:c",)]
    again = json.loads(world.command(*backfill, "--yes", "--json").stdout)
    assert (again["found"], again["queued"]) == (0, 0)

    # New weights: no call, every score anew. What has no score in it counts as 5.0.
    calls = len(p.calls)
    assert "the settings say something else" in world.command("scores", "list").stdout
    said = json.loads(world.command("scores", "recompute", "--json").stdout)
    assert said["records"] == 12 and said["weights"]["novelty"] == 2.0
    assert stored(world)["j"][1] == pytest.approx((9 + 3 * 2 + 2 * 10) / 6)
    assert stored(world)["c"][1] == pytest.approx((2 + 3 * 2 + 2 * 5.0) / 6)
    assert len(p.calls) == calls

    # A new version (a model's, as a prompt's): older scores serve until each new one is there.
    llm = world.settings.llm.model_copy(update={"model": "gpt-4.1"})
    world.settings = world.settings.model_copy(update={"llm": llm})
    p.calls.clear()
    p.answer = lambda one: {"relevance": 8, "urgency": 8, "novelty": 8}
    world.start("run", "scores", "postgres")
    wait_for(lambda: readers(world, "scores"))
    done = json.loads(world.command("upgrade", "scores", "--yes", "--wait", "--json").stdout)
    assert (done["found"], done["target"]) == (13, "1+1-gpt-4.1 (rank 1)")  # the empty one too
    third = stored(world)
    assert third["j"][0] == {"relevance": 8, "urgency": 8, "novelty": 8}
    assert third["c"][0] == first["c"][0]
    assert len(p.items) == 11

    world.delete("post:reddit:j")
    wait_for(lambda: "j" not in stored(world))
