"""Posts scored by the Batch API, over real servers: the stage puts them off, a courier of its own
carries requests and answers and is killed once, and each post comes back by the redo topic."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from llmock.routers import batch as simulated

from headrace.backlog.lag import Reader
from headrace.llm.standing import InFlight
from tests.llm import provider
from tests.llm.provider import Call, Provider
from tests.scores.world import made, stored
from tests.world import World, wait_for, worlds

__all__ = ["worlds"]  # those with all groups

POSTS = 10
QUICK = {"llm.batch_age_seconds": 0.1, "llm.batch_poll_seconds": 0.2}


@pytest.fixture
def served() -> Iterator[Provider]:
    with provider.serve(batch_seconds=3600.0) as p:
        yield p


def in_flight(world: World) -> InFlight | None:
    with Reader(world.settings) as reader:
        (scores,) = reader.read(["scores"])
    return scores.requests


def test_posts_are_scored_by_batches_through_a_kill(
    worlds: Callable[..., World], served: Provider
) -> None:
    world = made(worlds, served, **QUICK, **{"llm.transport": {"scores": "batch"}})
    asked: Counter[str] = Counter()

    def count(call: Call) -> None:
        asked.update(item["text"] for item in call.items)

    served.judge = count
    served.answer = lambda one: {"relevance": int(one.item["text"][-1]), "urgency": 2}
    world.post(n=POSTS, texts=[f"post number {number}" for number in range(POSTS)])
    world.start_worker("scores", "--now")
    world.start_worker("postgres")

    def outcomes() -> dict[str, int]:
        return dict(world.sql("SELECT outcome, count(*) FROM outcomes GROUP BY 1"))

    wait_for(lambda: outcomes() == {"deferred": POSTS}, message=lambda: str(outcomes()))
    waiting = in_flight(world)
    assert waiting is not None and waiting.waiting > 0 and waiting.sent == 0

    # Killed while the provider makes the batch: nobody has noted that it did.
    made_now = threading.Event()
    served.script(provider.Step(), provider.held(made_now), path="batches")
    courier = world.start("llm", "batches", "run")
    wait_for(
        lambda: any(call.body.get("input_file_id") for call in served.others),
        message=lambda: world.log_of(courier),
    )
    courier.send_signal(signal.SIGKILL)
    courier.wait(30)
    made_now.set()
    wait_for(lambda: len(simulated._batches) == 1)
    assert world.sql("SELECT state, batch FROM llm_batches") == [("making", None)]

    courier = world.start("llm", "batches", "run")
    wait_for(
        lambda: world.sql("SELECT state FROM llm_batches") == [("sent",)],
        message=lambda: world.log_of(courier),
    )
    assert list(simulated._batches) == [world.sql("SELECT batch FROM llm_batches")[0][0]]
    (lag,) = json.loads(world.command("lag", "scores", "--json").stdout)
    assert lag["lag"] == 0 and lag["requests"]["sent"] == waiting.waiting
    assert f"{waiting.waiting} requests in batches, the oldest for" in world.command("lag").stdout

    served.batch_seconds = 0.0
    wait_for(
        lambda: len(stored(world)) == POSTS,
        120,
        message=lambda: f"{outcomes()} {world.log_of(courier)}",
    )
    assert stored(world)["7"][0] == {"relevance": 7, "urgency": 2}
    wait_for(lambda: outcomes() == {"ok": POSTS} and not world.sql("SELECT FROM redo"))
    for left in ("llm_requests", "llm_request_items", "llm_claims"):
        assert world.sql(f"SELECT * FROM {left}") == []
    assert in_flight(world) is None

    # Each post was bought once, by half the price, and never directly.
    assert set(asked.values()) == {1} and len(asked) == POSTS
    assert not served.calls and len(simulated._batches) == 1
    calls = world.sql("SELECT state, transport, count(*), sum(items) FROM llm_calls GROUP BY 1, 2")
    assert calls == [("answered", "batch", waiting.waiting, POSTS)]
    (cost, answers) = world.sql("SELECT sum(cost), count(*) FROM llm_answers")[0]
    (spent,) = world.sql("SELECT spent FROM llm_spent WHERE starts_with(scope, 'day ')")[0]
    assert answers == POSTS and cost == pytest.approx(spent) and spent > 0
    listed = json.loads(world.command("llm", "batches", "list", "--json").stdout)
    assert listed["requests"] == []
    (batch,) = listed["batches"]
    assert batch["answered"] == batch["requests"] and batch["cost"] == pytest.approx(float(spent))
