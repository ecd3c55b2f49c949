"""What lag says of a group: numbers per partition, a state, an honest estimate. Pure.

The definitions stand in docs/watching-lag.md; this module is their only home in code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.llm.standing import InFlight, Refused
    from headrace.scheduling.report import Rest

STALL_SECONDS = 60.0  # default of `--stall-after`


class State(StrEnum):
    """See docs/watching-lag.md."""

    NOT_STARTED = "NOT_STARTED"
    CATCHING_UP = "CATCHING_UP"
    OK = "OK"
    DONE = "DONE"
    WAITING = "WAITING"
    WAITING_BUDGET = "WAITING_BUDGET"
    PAUSED = "PAUSED"
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    DISABLED = "DISABLED"
    STALL = "STALL"
    STOPPED = "STOPPED"
    DATA_LOSS = "DATA_LOSS"


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition as one group sees it; offsets as Kafka counts them.

    start      first offset that the log still has
    end        last stable offset: what a reader of committed messages can reach
    high       end of the log with transactions that are still open
    committed  where the group goes on; None without a commit
    held       SCHEDULED or DISABLED where the topic is not in the group's subscription now
    rate_in, rate_out   offsets a second over the window; None if not measured
    oldest_ms  time of the next unread message, milliseconds; None if none or not read
    """

    topic: str
    partition: int
    start: int
    end: int
    high: int
    committed: int | None
    redo: bool = False
    held: State | None = None
    rate_in: float | None = None
    rate_out: float | None = None
    oldest_ms: int | None = None

    @property
    def lost(self) -> int:
        """Offsets that the group had before it and that are gone: never read, or never there."""
        if self.committed is None:
            return 0
        return max(self.start - self.committed, self.committed - max(self.high, self.end), 0)

    @property
    def position(self) -> int:
        """The offset that is read next. A commit outside the log counts from the log's start."""
        if self.committed is None or self.lost:
            return self.start
        return self.committed

    @property
    def lag(self) -> int:
        return max(self.end - self.position, 0)

    @property
    def open(self) -> int:
        """Offsets in transactions that are neither committed nor aborted yet."""
        return max(self.high - self.end, 0)

    def eta(self) -> float | None:
        """Seconds until nothing is left at the measured rates; inf is never, None unknown."""
        return _eta(self.lag, self.rate_in, self.rate_out)


@dataclass(frozen=True, slots=True)
class GroupLag:
    """One group: its partitions (own inputs and redo), members, state and why it is in it.

    `members` is None where it was not asked; `window` is the seconds that rates were taken over;
    `rest` is when a group with a schedule works, None where it has none or nobody could tell;
    `refused` is why its last call of a language model was not sent, or brought nothing; `requests`
    are those that it has in batches.
    """

    group: str
    name: str
    kind: str
    when: str
    partitions: tuple[PartitionLag, ...]
    members: int | None = None
    window: float | None = None
    at_ms: int = 0
    state: State = State.NOT_STARTED
    reason: str = ""
    rest: Rest | None = None
    refused: Refused | None = None
    requests: InFlight | None = None

    @property
    def subscribed(self) -> tuple[PartitionLag, ...]:
        """The inputs that the group may read now, redo left out."""
        return tuple(p for p in self.partitions if not p.redo and p.held is None)

    @property
    def working(self) -> tuple[PartitionLag, ...]:
        """All that the group may read now, redo included."""
        return tuple(p for p in self.partitions if p.held is None)

    @property
    def lag(self) -> int:
        return sum(p.lag for p in self.subscribed)

    @property
    def redo(self) -> int:
        return sum(p.lag for p in self.partitions if p.redo)

    @property
    def backlog(self) -> int:
        """Lag and redo: the work that the group has now."""
        return self.lag + self.redo

    @property
    def held(self) -> int:
        """What stands on topics that the group leaves out now."""
        return sum(p.lag for p in self.partitions if p.held is not None)

    @property
    def open(self) -> int:
        return sum(p.open for p in self.working)

    @property
    def caught_up(self) -> bool:
        """Nothing to read, and no open transaction that may bring more."""
        return self.backlog == 0 and self.open == 0

    @property
    def rate_in(self) -> float | None:
        return _total(p.rate_in for p in self.working)

    @property
    def rate_out(self) -> float | None:
        return _total(p.rate_out for p in self.working)

    @property
    def seconds_behind(self) -> float | None:
        """Age of the oldest unread message; 0 with nothing unread, None if it was not read."""
        if self.backlog == 0:
            return 0.0
        oldest = [p.oldest_ms for p in self.working if p.lag and p.oldest_ms is not None]
        return max((self.at_ms - min(oldest)) / 1000, 0.0) if oldest else None

    def eta(self, stall_seconds: float = STALL_SECONDS) -> float | None:
        """Seconds until the worst partition has nothing left; inf is never, None unknown.

        A worker takes its partitions in turn. One that did not move in a window too short to mean
        anything counts with the group's rates, else it says never.
        """
        behind = [p for p in self.working if p.lag]
        if not behind:
            return 0.0
        if self.window is None:
            return None
        whole = _eta(self.backlog, self.rate_in, self.rate_out)
        fair = self.window < stall_seconds
        etas = [whole if fair and not p.rate_out else p.eta() for p in behind]
        known = [eta for eta in etas if eta is not None]
        return max(known) if len(known) == len(etas) else None

    def topics(self) -> list[tuple[str, tuple[PartitionLag, ...]]]:
        """The partitions by topic, in the order of the map."""
        return [(topic, tuple(rows)) for topic, rows in groupby(self.partitions, lambda p: p.topic)]


def measure(before: GroupLag, after: GroupLag, seconds: float) -> GroupLag:
    """`after` with the rates between two samples of a group that lie so many seconds apart."""
    if seconds <= 0:
        return after
    known = {(p.topic, p.partition): p for p in before.partitions}
    rows = []
    for now in after.partitions:
        old = known.get((now.topic, now.partition))
        if old is None:
            rows.append(now)
            continue
        rate_in = max(now.end - old.end, 0) / seconds
        rate_out = max(now.position - old.position, 0) / seconds
        rows.append(replace(now, rate_in=rate_in, rate_out=rate_out))
    return replace(after, partitions=tuple(rows), window=seconds)


def settle(
    groups: Sequence[GroupLag],
    upstream: Mapping[str, Sequence[str]],
    stall_seconds: float = STALL_SECONDS,
) -> list[GroupLag]:
    """The groups with state and reason. `upstream` names the groups that each one reads from."""
    known = {group.group: group for group in groups}

    def ahead(short: str, seen: frozenset[str]) -> list[GroupLag]:
        """Groups above that have work for this one now, nearest first."""
        found = []
        for name in upstream.get(short, ()):
            group = known.get(name)
            if group is None or name in seen or _rests(group):
                continue
            found += [group] if not group.caught_up else ahead(name, seen | {name})
        return found

    settled = []
    for group in groups:
        state, reason = _judge(group, ahead(group.group, frozenset({group.group})), stall_seconds)
        settled.append(replace(group, state=state, reason=reason))
    return settled


def _rests(group: GroupLag) -> bool:
    """Outside its windows, with nobody at work; what is to be done again wakes it."""
    opened = group.rest is not None and group.rest.open
    return group.when != "always" and group.members == 0 and not opened and not group.redo


def _judge(group: GroupLag, ahead: list[GroupLag], stall_seconds: float) -> tuple[State, str]:
    lost = [p for p in group.partitions if p.lost]
    if lost:
        where = f"{lost[0].topic}/{lost[0].partition}"
        if lost[0].committed is not None and lost[0].committed < lost[0].start:
            return State.DATA_LOSS, f"{lost[0].lost:,} offsets expired unread on {where}"
        return State.DATA_LOSS, f"the commit lies past the end of {where}: was it made anew?"
    inputs = [p for p in group.partitions if not p.redo]
    if inputs and not group.subscribed and not group.redo:
        held = {p.held for p in inputs}
        state = State.DISABLED if held == {State.DISABLED} else State.SCHEDULED
        return state, "no topic is subscribed to now"
    idle = group.members == 0
    if group.refused and group.backlog and not idle:
        state = State.WAITING_BUDGET if group.refused.budget else State.PAUSED
        return state, group.refused.reason
    if group.rest is not None and group.rest.open:
        if idle:
            return State.STOPPED, "a window of it is open, and it has no member"
        if _stalls(group, stall_seconds):
            return State.STALL, f"nothing committed in {group.window or 0:.0f} s"
        return State.RUNNING, "a window of it is open"
    rests = _rests(group)
    due = group.rest.next if group.rest is not None and group.rest.next else group.when
    if group.caught_up and any(p.committed is not None for p in group.working):
        if ahead:
            return State.WAITING, "for " + ", ".join(dict.fromkeys(g.group for g in ahead))
        if rests:
            return State.SCHEDULED, due
        return (State.DONE, "") if idle else (State.OK, "")
    if rests:
        return State.SCHEDULED, due
    if idle and all(p.committed is None for p in group.working):
        return State.NOT_STARTED, ""
    if group.backlog == 0:
        if group.open:
            return State.WAITING, "for an open transaction"
        if ahead:
            return State.WAITING, "for " + ", ".join(dict.fromkeys(g.group for g in ahead))
        return State.OK, ""
    if idle:
        return State.STOPPED, "no member"
    if _stalls(group, stall_seconds):
        return State.STALL, f"nothing committed in {group.window or 0:.0f} s"
    return State.CATCHING_UP, ""


def _stalls(group: GroupLag, stall_seconds: float) -> bool:
    long_enough = group.window is not None and group.window >= stall_seconds
    return long_enough and group.rate_out == 0 and group.backlog > 0


def _eta(lag: int, rate_in: float | None, rate_out: float | None) -> float | None:
    if lag == 0:
        return 0.0
    if rate_in is None or rate_out is None:
        return None
    return lag / (rate_out - rate_in) if rate_out > rate_in else math.inf


def _total(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
