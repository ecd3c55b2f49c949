"""Where the store groups stand on the topics, and whether the topics still reach back to there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psycopg

from headrace.snapshots.manifest import Position
from headrace.stream.clients import Admin, Partition
from headrace.stream.topology import Topic, Topology


class Log(NamedTuple):
    """A partition as Kafka has it now."""

    topic_id: str
    start: int
    end: int


def topics_of(topology: Topology) -> dict[str, tuple[Topic, ...]]:
    """What each store group reads, its redo topic included, whether it is read now or not."""
    return {store.short: (*store.reads, store.redo) for store in topology.stores()}


def logs(admin: Admin, topology: Topology) -> dict[Partition, Log]:
    """Every partition that a store group reads and that exists."""
    there = admin.topics()
    names = {topic.name for topics in topics_of(topology).values() for topic in topics}
    partitions = [(name, n) for name in sorted(names & there.keys()) for n in range(there[name])]
    ids = admin.topic_ids({name for name, _ in partitions})
    starts = admin.starts(partitions)
    ends = admin.ends(partitions, stable=False)
    return {p: Log(ids[p[0]], starts[p], ends[p]) for p in partitions if p[0] in ids}


def read(
    connection: psycopg.Connection, topology: Topology, now: Mapping[Partition, Log]
) -> tuple[Position, ...]:
    """Where every store group stands in the connection's snapshot."""
    rows = connection.execute('SELECT "group", topic, partition, topic_id, next FROM offsets')
    stored = {(group, topic, n, topic_id): at for group, topic, n, topic_id, at in rows}
    found = []
    for group, topics in topics_of(topology).items():
        names = {topic.name for topic in topics}
        for (topic, number), log in now.items():
            if topic in names:
                at = stored.get((group, topic, number, log.topic_id), log.start)
                found.append(Position(group, topic, number, log.topic_id, at))
    return tuple(found)


def out_of_reach(
    positions: Sequence[Position], topology: Topology, now: Mapping[Partition, Log]
) -> list[str]:
    """Why catching up from these positions would miss something; nothing where it would not.

    A topic that no store group reads any more brings nothing anyway.
    """
    wanted = topics_of(topology)
    known = {(p.group, p.topic, p.partition): p for p in positions}
    faults = []
    for group, topics in wanted.items():
        for topic in topics:
            mine = {p.partition for p in positions if (p.group, p.topic) == (group, topic.name)}
            there = {number for name, number in now if name == topic.name}
            if mine - there:
                faults.append(f"{topic.name} is gone, or some of its partitions are")
                continue
            for number in sorted(there):
                log = now[topic.name, number]
                position = known.get((group, topic.name, number))
                fault = _fault(position, log)
                if fault:
                    faults.append(f"{topic.name} partition {number}: {fault}")
    return faults


def _fault(position: Position | None, log: Log) -> str | None:
    if position is None:  # made after the snapshot: all of it is needed
        return f"its messages before offset {log.start} are gone" if log.start > 0 else None
    if position.topic_id != log.topic_id:
        return "the topic was made anew after the snapshot"
    if log.start > position.next:
        return f"its messages from offset {position.next} to {log.start - 1} are gone"
    if log.end < position.next:
        return f"it ends at offset {log.end}, before the snapshot's {position.next}"
    return None


def starting_points(
    positions: Sequence[Position], group: str, topology: Topology, now: Mapping[Partition, Log]
) -> dict[Partition, int]:
    """Where a restored store group begins on every partition that it reads."""
    own = {(p.topic, p.partition): p.next for p in positions if p.group == group}
    names = {topic.name for topic in topics_of(topology)[group]}
    return {where: own.get(where, log.start) for where, log in now.items() if where[0] in names}
