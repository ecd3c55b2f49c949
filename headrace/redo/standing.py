"""Where a group stands, as far as its work to be done again is concerned."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from headrace.errors import HeadraceError
from headrace.stores import offsets
from headrace.stream.clients import Admin, Partition
from headrace.stream.topology import Group, Topology

POLL_SECONDS = 0.3
PATIENCE_SECONDS = 20.0  # for a store that nobody runs to come back
_LOOK_SECONDS = 5.0  # between two looks at who is there


class Reach(NamedTuple):
    """How far a group has read a partition; `topic_id` is the topic as it is now."""

    topic: str
    topic_id: str
    partition: int
    next: int


class Standing:
    def __init__(
        self, admin: Admin, connection: psycopg.Connection, topology: Topology, group: Group
    ) -> None:
        self._admin = admin
        self._connection = connection
        self._group = group
        self._there = admin.topics()
        self._ids = admin.topic_ids()
        self.store = _store(topology, group)

    def reach(self) -> list[Reach]:
        """What the group has committed on its own inputs; nothing where it never was."""
        partitions = self._partitions([topic.name for topic in self._group.reads])
        committed = self._admin.committed(self._group.name, partitions)
        return [
            Reach(topic, self._ids[topic], partition, committed.get((topic, partition), 0))
            for topic, partition in partitions
        ]

    def written(self) -> dict[Partition, int]:
        """Where what the group writes ends, open transactions included. To know all that it made of
        what it has committed, ask for the commits first."""
        topics = [*self._group.outputs, *([self._group.dlt] if self._group.dlt else [])]
        partitions = self._partitions([topic.name for topic in topics])
        starts = self._admin.starts(partitions)
        ends = self._admin.ends(partitions, stable=False)
        return {partition: end for partition, end in ends.items() if end > starts[partition]}

    def unstored(self, written: dict[Partition, int]) -> int:
        """How many messages before these ends the store has yet to read."""
        slots = [(topic, number, self._ids[topic]) for topic, number in written]
        stored = offsets.read(self._connection, self.store.short, slots)
        starts = self._admin.starts(written)
        return sum(
            max(0, end - max(stored.get((*where, self._ids[where[0]]), 0), starts[where]))
            for where, end in written.items()
        )

    def wait_for_store(
        self, written: dict[Partition, int], tell: Callable[[str], object] = lambda said: None
    ) -> None:
        """Return when the store has read all of it. Raises HeadraceError where nobody runs it."""
        alone_since: float | None = None
        looked = 0.0
        while left := self.unstored(written):
            tell(f"waiting for {self.store.short}: {left:,} messages to read")
            now = time.monotonic()
            if now - looked >= _LOOK_SECONDS:
                looked = now
                if self.is_running(self.store):
                    alone_since = None
                elif alone_since is None:
                    alone_since = now
            if alone_since is not None and now - alone_since > PATIENCE_SECONDS:
                raise HeadraceError(
                    f"{self.store.short} has {left:,} messages of {self._group.short} to read and"
                    f" is not running: start it with `headrace run {self.store.short}`"
                )
            time.sleep(POLL_SECONDS)

    def is_running(self, group: Group) -> bool:
        return any(member.partitions for member in self._admin.members(group.name))

    def waiting(self) -> int:
        """Messages on the redo topic that the group has yet to read."""
        partitions = self._partitions([self._group.redo.name])
        committed = self._admin.committed(self._group.name, partitions)
        starts = self._admin.starts(partitions)
        ends = self._admin.ends(partitions, stable=False)
        return sum(max(0, ends[p] - committed.get(p, starts[p])) for p in partitions)

    def drop_unanswered(self) -> int:
        """Remove rows of table redo that no outcome will remove: the group has read all of its redo
        topic, the store all that came of it, and the rows are still there. (A message that was no
        record has a dead letter and no outcome.) Nothing while there is still something to read."""
        row = self._connection.execute("SELECT clock_timestamp()").fetchone()
        if self.waiting() or self.unstored(self.written()):
            return 0
        return self._connection.execute(
            "DELETE FROM redo WHERE \"group\" = %s AND state = 'queued' AND queued_at < %s",
            [self._group.short, row[0] if row else None],
        ).rowcount

    def _partitions(self, names: list[str]) -> list[Partition]:
        return [(name, n) for name in names for n in range(self._there.get(name, 0))]


def _store(topology: Topology, group: Group) -> Group:
    """The store that keeps the group's outcomes; a store's own are kept by itself."""
    if group.kind == "store":
        return group
    for store in topology.stores():
        if all(output in store.reads for output in group.outputs):
            return store
    raise HeadraceError(f"no store of topics.yaml reads what {group.short} writes")
