"""How far the readers have come, and up to where a topic is of no more use to them.

Once the deletions are published, each group that passes them and all that it had to read before
leaves behind the end of what it had written by then. Down the stages these ends become known one
after another; when the stores have passed the last of them, no content can come any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from headrace import platforms as platform_files
from headrace.config import Settings
from headrace.forget.orders import Order
from headrace.stores import offsets
from headrace.stream.clients import Admin, Partition
from headrace.stream.topology import Group, Topic, Topology

Ends = dict[str, dict[str, int]]  # topic's full name → partition → next offset; as JSON keeps it


@dataclass
class Readers:
    """Where every group stands, asked once a look."""

    settings: Settings
    admin: Admin
    topology: Topology
    connection: psycopg.Connection

    def __post_init__(self) -> None:
        self._there = self.admin.topics()
        self._platforms = platform_files.load(self.settings)

    def ends(self, topics: Iterable[str]) -> Ends:
        """Next offsets now, open transactions included."""
        places = [
            (topic, partition) for topic in topics for partition in range(self._there.get(topic, 0))
        ]
        found: Ends = {}
        for (topic, partition), end in self.admin.ends(places, stable=False).items():
            found.setdefault(topic, {})[str(partition)] = end
        return found

    def positions(self, group: Group, topics: Iterable[str]) -> dict[Partition, int]:
        """What the group has yet to read begins there. A store's own offsets count, and so do
        Kafka's: the lower."""
        places = [
            (topic, partition) for topic in topics for partition in range(self._there.get(topic, 0))
        ]
        starts = self.admin.starts(places)
        committed = self.admin.committed(group.name, places)
        found = {place: committed.get(place, starts[place]) for place in places}
        if group.kind == "store":
            ids = self.admin.topic_ids({topic for topic, _ in places})
            slots = {(t, p, ids[t]): (t, p) for t, p in places if t in ids}
            own = offsets.read(self.connection, group.short, slots)
            for slot, place in slots.items():
                found[place] = min(found[place], own.get(slot, starts[place]))
        return found

    def behind(self, group: Group, ends: Mapping[str, Mapping[str, int]]) -> int:
        """How many messages before these ends the group has yet to read."""
        positions = self.positions(group, ends)
        return sum(
            max(0, end - positions.get((topic, int(partition)), 0))
            for topic, partitions in ends.items()
            for partition, end in partitions.items()
        )

    def left_out(self, group: Group) -> Mapping[str, str]:
        """The topics (full names) that a group does not read now, and why. One that asks a language
        model does not where none is configured: it may never come."""
        if group.paid and not self.settings.llm.configured:
            return {topic.name: "DISABLED" for topic in group.reads}
        out = self.topology.left_out(group, self.settings, self._platforms)
        return {self.topology.topic(short).name: state for short, state in out.items()}


def follow(readers: Readers, order: Order) -> list[str]:
    """Note the ends of whatever has been passed since; returns who is still to come."""
    ends: dict[str, Any] = order.progress["ends"]
    compacted = order.progress.get("purged", {}).get("compacted", False)
    waits: list[str] = []
    unsettled: set[str] = set()  # topics that get more that concerns the order
    raw = [topic for topic in readers.topology.raw_topics() if topic.name in ends]
    platforms = {None, *(topic.platform for topic in raw)}
    for group in readers.topology.in_order():
        inputs = [t.name for t in (*group.reads, group.redo) if t.platform in platforms]
        outputs = [t.name for t in (*group.outputs, group.dlt) if t and t.platform in platforms]
        if not _concerned(group, inputs, ends, unsettled):
            continue
        if outputs and all(name in ends for name in outputs):
            continue
        above = [name for name in inputs if name in unsettled]
        left_out = readers.left_out(group)
        # Raw topics that hold nothing of it any more need not be passed; nor those that the group
        # leaves out for good, of which a purge leaves nothing either.
        known = {
            name: ends[name]
            for name in inputs
            if name in ends
            and left_out.get(name) != "DISABLED"
            and not (compacted and any(name == topic.name for topic in raw))
        }
        behind = readers.behind(group, known)
        if behind:
            waits.append(waits_for(readers, group, behind))
        elif above:
            waits.append(f"{group.short} waits for the groups before it")
        if behind or above:
            unsettled.update(name for name in outputs if name not in ends)
        else:
            ends.update(readers.ends(name for name in outputs if name not in ends))
    return waits


def _concerned(
    group: Group, inputs: Iterable[str], ends: Mapping[str, Any], unsettled: set[str]
) -> bool:
    return any(name in ends or name in unsettled for name in inputs)


def waits_for(readers: Readers, group: Group, behind: int) -> str:
    """Why an order waits for a group that has so many messages to read."""
    left_out = readers.left_out(group)
    said = f"{group.short} has {behind:,} messages to read"
    if not group.when.always:
        return f"{said} ({group.when.text})"
    if left_out:
        return f"{said} (leaves out {', '.join(sorted(left_out))} for now)"
    return said if readers.admin.members(group.name) else f"{said} and does not run"


def removable(
    readers: Readers, order: Order, topics: Iterable[Topic]
) -> tuple[dict[Partition, int], dict[str, str]]:
    """(up to where these topics may be emptied, for whom more of them is kept): not beyond what
    anybody has yet to read, and not beyond the order's ends (of a topic whose file was ended: the
    end of the file, since it goes as a whole)."""
    noted = order.progress["ends"] | order.progress.get("purged", {}).get("upto", {})
    upto: dict[Partition, int] = {}
    kept: dict[str, str] = {}
    for topic in topics:
        ends = {
            (topic.name, int(partition)): end
            for partition, end in noted.get(topic.name, {}).items()
        }
        if not any(ends.values()):
            continue
        lowest = dict(ends)
        for group in readers.topology.readers_of(topic):
            positions = readers.positions(group, [topic.name])
            held = sum(max(0, lowest[at] - positions.get(at, 0)) for at in lowest)
            if held:
                kept[topic.name] = (
                    f"{topic.short} is kept for {group.short}, which has yet to read it"
                )
            lowest = {at: min(end, positions.get(at, 0)) for at, end in lowest.items()}
        upto |= lowest
    return upto, kept
