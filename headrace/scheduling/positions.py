"""Where scheduled groups stand, what waits for them, and whether a window is passed.

Ends are those behind open transactions: a stage's commit may be seen a moment before what it wrote
counts as stable, and the window of whoever reads that is to have it in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg

from headrace.scheduling import windows
from headrace.scheduling.units import Key
from headrace.scheduling.windows import Ends, Window
from headrace.stream.clients import Admin, Partition
from headrace.stream.topology import Topic, Topology


@dataclass(frozen=True, slots=True)
class Log:
    """What Kafka says of some partitions: the first offset that is there, and the end."""

    starts: Mapping[Partition, int]
    ends: Mapping[Partition, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """`waiting`: messages to read up to `ends`, markers of transactions among them."""

    waiting: int
    ends: Ends


def read_log(admin: Admin, topics: Iterable[str]) -> Log:
    """Of topics by their full names; what does not exist holds nothing."""
    there = admin.topics()
    partitions = [
        (name, number) for name in dict.fromkeys(topics) for number in range(there.get(name, 0))
    ]
    return Log(admin.starts(partitions), admin.ends(partitions, stable=False))


def standing(admin: Admin, group: str, topics: Iterable[Topic]) -> Standing:
    """A group (full name) on some of its topics. Commits are read before ends, so nothing that
    waits is missed."""
    there = admin.topics()
    partitions = [
        (topic.name, number) for topic in topics for number in range(there.get(topic.name, 0))
    ]
    committed = admin.committed(group, partitions)
    log = Log(admin.starts(partitions), admin.ends(partitions, stable=False))
    ends: dict[str, dict[str, int]] = {}
    for (topic, number), end in log.ends.items():
        ends.setdefault(topic, {})[str(number)] = end
    return Standing(_left(ends, committed, log), ends)


def left(admin: Admin, topology: Topology, open_windows: Sequence[Window]) -> dict[int, int]:
    """What is left of open windows of groups, by id: 0 where all of it is passed. Jobs close
    theirs themselves and are left out."""
    mine = [window for window in open_windows if window.group in topology.groups]
    if not mine:
        return {}
    committed: dict[Key, Mapping[Partition, int]] = {}
    for window in mine:
        partitions = [
            (topic, int(number)) for topic, parts in window.ends.items() for number in parts
        ]
        group = topology.group(window.group)
        committed[window.key] = admin.committed(group.name, partitions)
    log = read_log(admin, (topic for window in mine for topic in window.ends))
    return {window.id: _left(window.ends, committed[window.key], log) for window in mine}


def settle(
    connection: psycopg.Connection, admin: Admin, topology: Topology, group: str | None = None
) -> dict[int, int]:
    """Closes the windows that are passed; what is left of the others, by id."""
    found = left(admin, topology, windows.open_windows(connection, group))
    for window, count in found.items():
        if count == 0:
            windows.finish(connection, window)
    return {window: count for window, count in found.items() if count}


def _left(ends: Ends, committed: Mapping[Partition, int], log: Log) -> int:
    """Pure. What has expired unread is not waited for, nor what stood in a topic that is gone or
    was made anew."""
    total = 0
    for topic, parts in ends.items():
        for number, end in parts.items():
            partition = (topic, int(number))
            start, last = log.starts.get(partition, 0), log.ends.get(partition, 0)
            position = max(committed.get(partition, start), start)
            total += max(0, min(end, last) - position)
    return total


def stored(connection: psycopg.Connection, stores: Iterable[str]) -> Ends:
    """Where store groups stand by their own account, in the newest incarnation of each topic."""
    rows = connection.execute(
        """
        SELECT DISTINCT ON (topic, partition) topic, partition, next FROM offsets
        WHERE "group" = ANY(%s) ORDER BY topic, partition, updated_at DESC
        """,
        [list(stores)],
    ).fetchall()
    found: dict[str, dict[str, int]] = {}
    for topic, number, following in rows:
        found.setdefault(topic, {})[str(number)] = following
    return found
