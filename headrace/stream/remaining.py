"""What groups still have to read, asked of Kafka and of no worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from headrace.stream.clients import Admin, Partition
from headrace.stream.topology import Group, Topic, Topology


def in_order(topology: Topology, groups: Iterable[Group]) -> list[Group]:
    """Writers before readers."""
    wanted = {group.short for group in groups}
    return [group for group in topology.in_order() if group.short in wanted]


def remaining(
    admin: Admin, groups: Sequence[Group], topics: Mapping[str, Sequence[Topic]]
) -> dict[str, int]:
    """Messages that each group has yet to read, redo included, by group.

    Give the groups in order: a group's ends are asked after its writers' commits, so that zero
    everywhere means that nothing is left, whatever the writers did meanwhile. `topics` are what a
    group really reads, by group. A topic that does not exist holds nothing.
    """
    existing = admin.topics()
    return {group.short: _behind(admin, group, topics[group.short], existing) for group in groups}


def _behind(
    admin: Admin, group: Group, topics: Iterable[Topic], existing: Mapping[str, int]
) -> int:
    partitions: list[Partition] = [
        (topic.name, number) for topic in topics for number in range(existing.get(topic.name, 0))
    ]
    # Not the stable ends: a commit can be seen a moment before what came with it counts as stable.
    ends = admin.ends(partitions, stable=False)
    committed = admin.committed(group.name, [p for p in partitions if ends[p] > 0])
    past = [p for p, offset in committed.items() if offset > ends[p]]
    if past:  # it went on meanwhile, or what it read is gone and all that is there is new
        ends.update(admin.ends(past, stable=False))
        committed = {p: offset for p, offset in committed.items() if offset <= ends[p]}
    unread = [p for p in partitions if p not in committed and ends[p] > 0]
    starts = admin.starts(unread)
    return sum(
        max(0, end - committed.get(partition, starts.get(partition, 0)))
        for partition, end in ends.items()
    )
