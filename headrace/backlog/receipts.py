"""Receipts: what a run of `headrace publish` has written where, read from topic `runs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stream import topology, whole

Where = tuple[str, int]  # topic (full name), partition


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a run has published so far, or in the end (`state` is no longer running).

    spans       partition → (first offset, last offset + 1) that the run wrote there; what others
                published meanwhile may stand between
    counts      topic → records that the run wrote there
    superseded  the run that goes on with this one's file, if there is one
    """

    run: str
    state: str
    kind: str
    platform: str | None
    records: int
    rejected: int
    started_at: str
    ended_at: str | None
    spans: Mapping[Where, tuple[int, int]]
    counts: Mapping[str, int]
    superseded: str | None
    value: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        return self.state != "running"

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Receipt:
        """Raises KeyError, TypeError, ValueError where this is no receipt."""
        starts = value.get("starts") or {}
        spans: dict[Where, tuple[int, int]] = {}
        for topic, ends in (value.get("offsets") or {}).items():
            for partition, end in ends.items():
                start = starts.get(topic, {}).get(partition, 0)
                spans[topic, int(partition)] = (int(start), int(end))
        return cls(
            run=value["run"],
            state=value["state"],
            kind=value.get("kind") or "posts",
            platform=value.get("platform"),
            records=int(value.get("records") or 0),
            rejected=int(value.get("rejected") or 0),
            started_at=value.get("started_at") or "",
            ended_at=value.get("ended_at"),
            spans=spans,
            counts=_counts(value, spans),
            superseded=value.get("superseded"),
            value=value,
        )


def _counts(value: Mapping[str, Any], spans: Mapping[Where, tuple[int, int]]) -> dict[str, int]:
    """Records by topic. Communities are counted by file; the rest goes by offsets."""
    offsets: dict[str, int] = {}
    for (topic, _), (start, end) in spans.items():
        offsets[topic] = offsets.get(topic, 0) + end - start
    left = int(value.get("records") or 0)
    counts = {}
    communities = [topic for topic in offsets if topic.endswith(".raw.communities")]
    if communities and len(offsets) > 1:
        made = sum(int(file.get("communities") or 0) for file in value.get("files") or ())
        counts[communities[0]] = made = min(made, left)
        left -= made
    rest = sorted(offsets.keys() - counts.keys())
    whole = sum(offsets[topic] for topic in rest)
    for topic in rest:
        counts[topic] = left * offsets[topic] // whole if whole else 0
        left, whole = left - counts[topic], whole - offsets[topic]
    return counts


def read(settings: Settings, run: str) -> Receipt:
    """The newest receipt of a run; `latest` is the run that began last.

    Raises HeadraceError where there is no such run, ServerUnavailable without Kafka.
    """
    found = runs(settings)
    if not found:
        raise HeadraceError("nothing has been published yet: `headrace publish FILE` prints a run")
    if run == "latest":
        return max(found.values(), key=lambda receipt: (receipt.started_at, receipt.run))
    if run not in found:
        newest = max(found.values(), key=lambda receipt: (receipt.started_at, receipt.run))
        raise HeadraceError(f"run {run} is not known; the latest is {newest.run}")
    return found[run]


def runs(settings: Settings) -> dict[str, Receipt]:
    """All runs by id, each by its newest receipt."""
    topic = topology.load(settings).topic("runs").name
    found: dict[str, Receipt] = {}
    for message in whole.read(settings, topic):
        try:
            value = orjson.loads(message.value() or b"null")
            if isinstance(value, dict) and value.get("type") == "run":
                found[value["run"]] = Receipt.of(value)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a foreign message
    return found
