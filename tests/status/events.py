"""Status events as stages write them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from headrace.status.fold import OUTCOMES


def event(
    group: str = "text",
    at: int = 1_800_000_000_000,
    *,
    ok: int = 0,
    dropped: int = 0,
    dead: int = 0,
    worker: str = "host-0",
    platform: str = "reddit",
    id: str | None = None,
) -> dict[str, Any]:
    """The value of a message on topic `status`; `at` in milliseconds."""
    counts = {"ok": ok, "dropped": dropped, "dead": dead}
    moment = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "event_id": id or str(uuid.uuid4()),
        "group": group,
        "stage": group,
        "worker": worker,
        "at": moment.replace("+00:00", "Z"),
        "version": "1",
        "records": ok + dropped + dead,
        **counts,
        "deleted": 0,
        "deferred": 0,
        "platforms": {platform: {name: n for name, n in counts.items() if n}},
        "seconds": 0.001 * (ok + dropped + dead),
        "inputs": [],
    }


def sums(events: Iterable[dict[str, Any]]) -> dict[str, Counter[str]]:
    """What each group has altogether, by a plain sum of each event once."""
    once = {one["event_id"]: one for one in events}
    found: dict[str, Counter[str]] = {}
    for one in once.values():
        mine = found.setdefault(one["group"], Counter())
        mine.update({name: one[name] for name in ("records", *OUTCOMES)})
        mine["batches"] += 1
    return found
