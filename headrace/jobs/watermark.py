"""How much of each topic a result knows: the stores' offsets in the snapshot that it was made of.

Offsets of one database only grow, and its snapshots follow one another, so of two watermarks one
covers the other. Where a database was put back they need not: then the sum of the offsets decides,
which agrees with covering wherever that holds, so that the order is total.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

# Group, topic (full name), id of the topic's incarnation, partition.
Place = tuple[str, str, str, int]

_NOW = 'SELECT "group", topic, topic_id, partition, next FROM offsets'


@dataclass(frozen=True)
class Watermark:
    """The next offset by place; a place that is not in it is at 0."""

    at: Mapping[Place, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Grows with every offset: of two watermarks the greater is the newer."""
        return sum(self.at.values())

    def covers(self, other: Watermark) -> bool:
        """Whether it knows everything that the other knows."""
        return all(self.at.get(place, 0) >= next_ for place, next_ in other.at.items())

    def behind(self, now: Watermark) -> int:
        """How many offsets the other one is ahead."""
        return sum(max(next_ - self.at.get(place, 0), 0) for place, next_ in now.at.items())

    def by_partition(self) -> Iterator[tuple[str, int, int]]:
        """(topic, partition, next) of each, a topic's incarnations added up."""
        sums: dict[tuple[str, int], int] = {}
        for (_, topic, _, partition), next_ in self.at.items():
            sums[topic, partition] = sums.get((topic, partition), 0) + next_
        return ((topic, partition, next_) for (topic, partition), next_ in sorted(sums.items()))

    def as_json(self) -> dict[str, Any]:
        """As table job_runs keeps it."""
        found: dict[str, Any] = {}
        for (group, topic, topic_id, partition), next_ in sorted(self.at.items()):
            topics = found.setdefault(group, {}).setdefault(topic, {})
            topics.setdefault(topic_id, {})[str(partition)] = next_
        return found


def from_json(value: Mapping[str, Any]) -> Watermark:
    return Watermark(
        {
            (group, topic, topic_id, int(partition)): int(next_)
            for group, topics in value.items()
            for topic, incarnations in topics.items()
            for topic_id, partitions in incarnations.items()
            for partition, next_ in partitions.items()
        }
    )


def now(connection: psycopg.Connection) -> Watermark:
    """The stores' offsets, as this transaction sees them."""
    rows = connection.execute(_NOW).fetchall()
    return Watermark(
        {
            (group, topic, topic_id, partition): next_
            for group, topic, topic_id, partition, next_ in rows
        }
    )
