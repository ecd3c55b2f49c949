"""Waiting for a run: from its receipt along the graph of topics.yaml to the last store.

What a run needs of a group is known in raw offsets. Once a stage has passed them, all that it made
of the run stands before the ends of the topics that it writes, so those ends are what the groups
after it must pass in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headrace.backlog import receipts
from headrace.backlog.lag import Reader, upstream_of
from headrace.backlog.model import GroupLag
from headrace.backlog.receipts import Receipt, Where
from headrace.config import Settings
from headrace.stream.topology import Topology

POLL_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Missing:
    """A group that has not passed what it must (`left` offsets on `topics`), or that waits for
    the groups in `after` to tell what that is."""

    group: str
    left: int
    topics: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waited:
    """`missing` is empty where the run has arrived. `left_out` groups did not read it."""

    receipt: Receipt
    missing: tuple[Missing, ...]
    left_out: tuple[str, ...]
    states: Mapping[str, GroupLag]

    @property
    def arrived(self) -> bool:
        return self.receipt.ended and not self.missing

    def reasons(self) -> list[str]:
        """Who waits and why, a line each."""
        said = [] if self.receipt.ended else [f"publish: run {self.receipt.run} has not ended"]
        for missing in self.missing:
            lag = self.states[missing.group]
            parts = []
            if missing.left:
                parts.append(f"{missing.left:,} left on {', '.join(missing.topics)}")
            if missing.after:
                parts.append(f"waits for {', '.join(missing.after)}")
            if lag.members is not None and missing.left:
                parts.append(f"{lag.state}{f' ({lag.reason})' if lag.reason else ''}")
            said.append(f"{missing.group}: {'; '.join(parts)}")
        return said


class Walk:
    """The positions that a run needs of each group, found out as the groups come along. Pure."""

    def __init__(self, topology: Topology, receipt: Receipt, groups: Sequence[str]) -> None:
        self._topology = topology
        self._upstream = upstream_of(topology)
        self._groups = [short for short in topology.groups if short in groups]
        self._receipt = receipt
        self._made: dict[str, dict[Where, int]] = {}  # by stage: the ends of what it wrote
        self.left_out: tuple[str, ...] = ()

    def update(self, receipt: Receipt, lags: Mapping[str, GroupLag]) -> tuple[Missing, ...]:
        """Who still misses something, by one sample of all groups taken after the receipt."""
        if receipt.spans != self._receipt.spans:
            self._receipt, self._made = receipt, {}
        left_out: list[str] = []
        missing = self._round(lags, left_out)
        while (more := self._round(lags, left_out)) != missing:  # a stage passed lets others on
            missing = more
        self.left_out = tuple(dict.fromkeys(left_out))
        return missing

    def _round(self, lags: Mapping[str, GroupLag], left_out: list[str]) -> tuple[Missing, ...]:
        missing = []
        for short in self._groups:
            needed = dict(self._raw_ends())
            above = [name for name in self._upstream[short] if name in self._groups]
            for name in above:
                needed |= self._made.get(name, {})
            after = tuple(name for name in above if name not in self._made)
            rows = {(p.topic, p.partition): p for p in lags[short].partitions if not p.redo}
            mine = {where: end for where, end in needed.items() if where in rows}
            left_out += [short for where in mine if rows[where].held is not None]
            behind = {
                where: end - rows[where].position
                for where, end in mine.items()
                if rows[where].held is None and rows[where].position < end
            }
            if behind or after:
                names = dict.fromkeys(topic for topic, _ in sorted(behind))
                shorts = tuple(name.removeprefix(f"{self._topology.project}.") for name in names)
                missing.append(Missing(short, sum(behind.values()), shorts, after))
            elif short not in self._made:
                self._made[short] = self._written(short, lags)
        return tuple(missing)

    def _raw_ends(self) -> dict[Where, int]:
        return {where: end for where, (_, end) in self._receipt.spans.items()}

    def _written(self, short: str, lags: Mapping[str, GroupLag]) -> dict[Where, int]:
        """The ends (open transactions included) of what a group writes, as its readers saw them."""
        group = self._topology.group(short)
        names = {topic.name for topic in (*group.outputs, group.dlt) if topic is not None}
        return {
            (p.topic, p.partition): p.high
            for lag in lags.values()
            for p in lag.partitions
            if p.topic in names
        }


def concerned(topology: Topology, receipt: Receipt, stages: Sequence[str] = ()) -> list[str]:
    """The groups to wait for: all always-on ones that the run's records reach; or those named, what
    they need above them, and the stores that keep their results."""
    upstream = upstream_of(topology)
    raw = {topic for topic, _ in receipt.spans}
    reached: set[str] = set()
    for _ in topology.groups:  # as deep as the graph can be
        for short, group in topology.groups.items():
            if any(topic.name in raw for topic in group.reads) or reached & set(upstream[short]):
                reached.add(short)
    if not stages:
        return [s for s, group in topology.groups.items() if s in reached and group.when.always]
    named = {topology.group(short).short for short in stages}
    wanted = set(named)
    for _ in topology.groups:
        wanted |= {above for short in wanted for above in upstream[short]}
    wanted |= {store.short for store in topology.stores() if wanted & set(upstream[store.short])}
    return [short for short in topology.groups if short in wanted & reached]


def wait(
    settings: Settings,
    run: str,
    stages: Sequence[str] = (),
    *,
    timeout: float | None = None,
    tell: Callable[[Waited], None] = lambda state: None,
) -> Waited:
    """Return when the run has arrived, or at the timeout (seconds); `tell` hears of every look.

    Raises HeadraceError for an unknown run or group, ServerUnavailable without Kafka.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with Reader(settings) as reader:
        return _wait(reader, receipts.read(settings, run), stages, deadline, tell)


def _wait(
    reader: Reader,
    receipt: Receipt,
    stages: Sequence[str],
    deadline: float | None,
    tell: Callable[[Waited], None],
) -> Waited:
    groups = concerned(reader.topology, receipt, stages)
    walk = Walk(reader.topology, receipt, groups)
    while True:
        if not receipt.ended:
            receipt = receipts.read(reader.settings, receipt.run)
            fresh = concerned(reader.topology, receipt, stages)
            if fresh != groups:
                groups, walk = fresh, Walk(reader.topology, receipt, fresh)
        lags = {lag.group: lag for lag in reader.read(groups, members=False)} if groups else {}
        missing = walk.update(receipt, lags)
        late = deadline is not None and time.monotonic() >= deadline
        if late and missing:  # once more with members: it says who is there
            lags = {lag.group: lag for lag in reader.read(groups)}
        waited = Waited(receipt, missing, walk.left_out, lags)
        tell(waited)
        if waited.arrived or late:
            return waited
        time.sleep(POLL_SECONDS)
