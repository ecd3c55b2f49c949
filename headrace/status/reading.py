"""What Kafka says of every group for alerts: lag, what of it is overdue, the oldest unread.

Work is overdue once it should have been begun: of a group that is always on, what came more than
`status.overdue_minutes` ago; by the clock, what was there that long ago at the last due time; by
lag, what was there that long ago if it is as much, or as old, as the schedule asks. So it needs no
note of windows: offsets have their times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from headrace import platforms
from headrace.backlog.lag import Reader
from headrace.backlog.model import GroupLag, PartitionLag, State
from headrace.config import Settings
from headrace.schedule import ALWAYS, Schedule, last_due
from headrace.status.alerts import MINUTE_MS, Reading, Unread
from headrace.stores import weaviate
from headrace.stream import clients
from headrace.stream.topology import Group

Offsets = Callable[[Sequence[tuple[str, int]], int], Mapping[tuple[str, int], int]]


class Looker:
    """Looks again and again on the same connections. Not for use by two threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader = Reader(settings)
        self._admin = clients.admin(settings)
        self._platforms = platforms.load(settings)

    def close(self) -> None:
        self._reader.close()
        self._admin.close()

    def look(self, now: int) -> tuple[list[GroupLag], list[Reading]]:
        """The lag of all groups, and what alerts need of those that always have somebody to work
        for them. `now` in milliseconds.

        Raises ServerUnavailable where Kafka does not answer.
        """
        lags = self._reader.read(times=True, projectors=True)
        found = []
        for lag in lags:
            if lag.group in self._reader.topology.groups:
                found.append(self._reading(lag, now))
            elif lag.kind == "projector" and lag.partitions and self._projects():
                position = sum(p.committed or 0 for p in lag.partitions)
                found.append(Reading(lag.group, lag.backlog, 0, True, position, lag.members))
        return lags, found

    def _projects(self) -> bool:
        return self._settings.search.enabled and weaviate.expected(self._settings)

    def _reading(self, lag: GroupLag, now: int) -> Reading:
        group = self._reader.topology.group(lag.group)
        overdue, always = self._work(group, lag, now)
        spent = lag.state is State.WAITING_BUDGET  # it is as somebody wished
        return Reading(
            group=lag.group,
            backlog=lag.backlog,
            overdue=overdue,
            runs=bool(always or overdue or lag.redo or lag.members) and not spent,
            position=sum(p.committed or 0 for p in lag.partitions),
            members=lag.members,
            unread=tuple(self._unread(lag, now)),
            lost=lag.reason if lag.state is State.DATA_LOSS else "",
            paused=lag.reason if lag.state is State.PAUSED else "",
        )

    def _work(self, group: Group, lag: GroupLag, now: int) -> tuple[int, int]:
        """Messages that are overdue, and messages to read at once, whatever the clock says."""
        topology, platforms = self._reader.topology, self._platforms
        left_out = topology.left_out(group, self._settings, platforms, windows=True)
        by_schedule: dict[Schedule, list[PartitionLag]] = {}
        for p in lag.partitions:
            topic = topology.by_name(p.topic)
            if p.lag and topic is not None and topic.short not in left_out:
                when = topology.schedule(group, topic.platform, platforms)
                by_schedule.setdefault(ALWAYS if p.redo else when, []).append(p)
        grace = round(self._settings.status.overdue_minutes * MINUTE_MS)
        overdue = 0
        for when, rows in by_schedule.items():
            due = due_before(when, now - grace, self._settings.scheduler.zone)
            if due is None:
                continue
            there = unread_before(rows, due, self._admin.at_time)
            if when.lag is None or there >= when.lag or _waited(when, rows, due):
                overdue += there
        return overdue, sum(p.lag for p in by_schedule.get(ALWAYS, ()))

    def _unread(self, lag: GroupLag, now: int) -> list[Unread]:
        found = []
        for p in lag.partitions:
            topic = self._reader.topology.by_name(p.topic)
            if topic is None or topic.retention_ms <= 0 or p.held is State.DISABLED:
                continue
            if p.lag and p.oldest_ms is not None:
                age = max(now - p.oldest_ms, 0)
                found.append(Unread(topic.short, age, topic.retention_ms))
        return found


def due_before(when: Schedule, moment: int, zone: str) -> int | None:
    """Up to when (ms) work had to be begun by `moment`; None where no window was due so far."""
    if when.cron is None:
        return moment
    due = last_due(when, datetime.fromtimestamp(moment / 1000, UTC), zone)
    return None if due is None else int(due.timestamp() * 1000)


def unread_before(rows: Sequence[PartitionLag], moment: int, at_time: Offsets) -> int:
    """Messages to read that were there at a moment (ms). `at_time` gives the first offset of a
    time or later, -1 where there is none."""
    if not rows:
        return 0
    offsets = at_time([(p.topic, p.partition) for p in rows], moment)
    ends = [offsets[p.topic, p.partition] for p in rows]
    return sum(
        max(min(p.end if end < 0 else end, p.end) - p.position, 0)
        for p, end in zip(rows, ends, strict=True)
    )


def _waited(when: Schedule, rows: Sequence[PartitionLag], due: int) -> bool:
    """Whether the oldest has waited as long as the schedule allows."""
    oldest = [p.oldest_ms for p in rows if p.oldest_ms is not None]
    return when.every_ms is not None and bool(oldest) and min(oldest) + when.every_ms <= due
