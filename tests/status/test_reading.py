"""What a look at a real broker finds for alerts, now and in days to come."""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace.config import Status
from headrace.status.alerts import Quiet, Reading, conditions
from headrace.status.reading import Looker
from tests.world import World

DAY = 86_400_000


def test_work_becomes_overdue_when_its_window_was_due(worlds: Callable[..., World]):
    world = worlds(platforms=("reddit",), partitions=2)
    world.post(n=30)
    world.send("enriched.embeddings.reddit", "post:reddit:0", b"{}")  # kept 30 days
    world.send("text.redo", "post:reddit:0", b"{}")
    now = int(time.time() * 1000)
    looker = Looker(world.settings)

    def look(moment: int) -> dict[str, Reading]:
        lags, readings = looker.look(moment)
        assert {lag.group for lag in lags} > {reading.group for reading in readings}
        return {reading.group: reading for reading in readings}

    try:
        found = look(now)
        # All of it came within the last minutes, and its window is to come.
        assert {group: r.overdue for group, r in found.items()} == dict.fromkeys(found, 0)
        assert (found["text"].backlog, found["embeddings"].backlog) == (31, 30)
        assert found["text"].runs and not found["embeddings"].runs
        found = look(now + DAY // 48)
        assert (found["text"].overdue, found["text"].members) == (31, 0)
        found = look(now + 2 * DAY)
        assert (found["embeddings"].overdue, found["sentiment_ml"].overdue) == (30, 1)
        assert found["embeddings"].runs
        kinds = {
            day: [
                condition.kind
                for condition in conditions(
                    Status(), look(now + day * DAY)["sentiment_ml"], Quiet(0, True)
                )
                if condition.wrong
            ]
            for day in (20, 27)
        }
        assert kinds == {20: [], 27: ["retention"]}
    finally:
        looker.close()
