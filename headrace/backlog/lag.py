"""Reads the backlog of every group from Kafka. Store groups mirror their offsets there.

Commits are read before ends. So a lag of 0 is true of the moment of the commit, and, since a stage
writes its results in the transaction of its offsets, a stage at 0 and then a store at 0 mean that
the store has all of the stage's work (`caught_up` also asks that no transaction is open).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace import platforms
from headrace.backlog import database, jobs, projection
from headrace.backlog.model import STALL_SECONDS, GroupLag, PartitionLag, State, measure, settle
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.llm import standing
from headrace.scheduling import report, units
from headrace.stream import clients, topology
from headrace.stream.topology import App, Job, Projector, Topology

OLDEST_SECONDS = 5.0  # the longest to wait for the times of unread messages

# The end of the partition, or what stood there expired since the offsets were asked.
_NOTHING_THERE = (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET)

Where = tuple[str, int]  # topic, partition


def read(settings: Settings, groups: Sequence[str] | None = None) -> list[GroupLag]:
    """The lag of all groups, or of those named (short names), with their states; no rates.

    Raises HeadraceError for an unknown group, ServerUnavailable where Kafka does not answer.
    """
    with Reader(settings) as reader:
        return reader.read(groups)


class Reader:
    """Reads lag again and again on the same connections. Not for use by two threads."""

    def __init__(self, settings: Settings, *, stall_seconds: float = STALL_SECONDS) -> None:
        self.settings = settings
        self.topology: Topology = topology.load(settings)
        self.stall_seconds = stall_seconds
        self._platforms = platforms.load(settings)
        self._units = units.units(settings, self.topology, self._platforms)
        self._admin = clients.admin(settings)
        self._times: dict[tuple[str, int, int], int | None] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._admin.close()

    def read(
        self,
        groups: Sequence[str] | None = None,
        *,
        members: bool = True,
        times: bool = False,
        projectors: bool = False,
    ) -> list[GroupLag]:
        """One sample. `times` also reads when the next unread messages were written; `projectors`
        tells of them, of jobs and of apps too where no group is named."""
        named: list[Projector | Job | App] = []
        rest: list[str] = []
        for name in groups or ():
            found: Projector | Job | App | None
            found = self.topology.projector(name) or self.topology.job(name)
            found = found or self.topology.app(name)
            named += [found] if found else []
            rest += [] if found else [name]
        if projectors and not groups:
            others = (self.topology.projectors, self.topology.jobs, self.topology.apps)
            named = [other for kind in others for other in kind.values()]
        try:
            return self._read(rest if groups else None, members, times, named)
        except KafkaException as error:
            if isinstance(error, HeadraceError):
                raise
            raise ServerUnavailable(f"Kafka does not tell the lag: {error}") from None

    def _read(
        self,
        groups: Sequence[str] | None,
        members: bool,
        times: bool,
        others: Sequence[Projector | Job | App],
    ) -> list[GroupLag]:
        upstream = upstream_of(self.topology)
        chosen = self.topology.groups if groups is None else groups
        wanted = [self.topology.group(short).short for short in chosen]
        above = tuple(store.short for store in self.topology.stores()) if others else ()
        closure = _closure([*wanted, *above], upstream)
        needed = [short for short in self.topology.groups if short in closure]
        there = self._admin.topics()
        watched = {short: self._watched(short, there) for short in needed}
        committed = {
            short: self._admin.committed(self.topology.group(short).name, list(rows))
            for short, rows in watched.items()
        }
        places = sorted({where for rows in watched.values() for where in rows})
        ends = self._admin.ends(places, stable=True)
        highs = self._admin.ends(places, stable=False)
        starts = self._admin.starts(places)
        now = int(time.time() * 1000)
        shown = {*wanted, *(other.short for other in others)}
        asks = members and any(unit.group in shown for unit in self._units)
        rests = report.rests(self.settings, self._units) if asks else {}
        refused, flying = self._asking(wanted) if members else ({}, {})
        samples = []
        for short in needed:
            group = self.topology.group(short)
            rows = tuple(
                PartitionLag(
                    topic=topic,
                    partition=partition,
                    start=starts[topic, partition],
                    end=ends[topic, partition],
                    high=highs[topic, partition],
                    committed=committed[short].get((topic, partition)),
                    redo=topic == group.redo.name,
                    held=held,
                )
                for (topic, partition), held in watched[short].items()
            )
            count = len(self._admin.members(group.name)) if members else None
            when = group.when.text
            samples.append(
                GroupLag(
                    short, group.name, group.kind, when, rows, count,
                    at_ms=now, rest=rests.get(short), refused=refused.get(short),
                    requests=flying.get(short),
                )
            )  # fmt: skip
        if times:
            self._read_times([p for g in samples for p in g.partitions if p.lag])
            samples = [self._with_times(group) for group in samples]
        asked = {o.short: replace(self._other(o), rest=rests.get(o.short)) for o in others}
        samples += asked.values()
        upstream |= {o.short: () if isinstance(o, App) else above for o in others}
        found = []
        for lag in settle(samples, upstream, self.stall_seconds):
            if lag.kind == "projector":
                found.append(projection.told(self.settings, lag))
            elif lag.kind == "job":
                found.append(jobs.told(asked[lag.group], lag))
            elif lag.group in wanted or lag.group in asked:
                found.append(lag)
        return found

    def _asking(
        self, groups: Iterable[str]
    ) -> tuple[dict[str, standing.Refused], dict[str, standing.InFlight]]:
        """By group, what holds its calls of a language model back, and its requests in batches."""
        paid = [short for short in groups if self.topology.group(short).paid]
        if not paid:
            return {}, {}
        try:
            with database.reading(self.settings) as connection:
                refused = standing.refused(connection, self.settings)
                return refused, standing.in_flight(connection, paid)
        except (HeadraceError, psycopg.Error):  # lag is told without PostgreSQL too
            return {}, {}

    def _other(self, other: Projector | Job | App) -> GroupLag:
        if isinstance(other, Job):
            return jobs.read(self.settings, other)
        if isinstance(other, App):
            return self._app(other)
        return projection.read(self.settings, other)

    def _app(self, app: App) -> GroupLag:
        """An app commits what it has read, not the markers of transactions behind it: so where it
        is behind, it is looked whether there is any message."""
        there = self._admin.topics()
        places = [(t.name, n) for t in app.reads for n in range(there.get(t.name, 0))]
        committed = self._admin.committed(app.name, places)
        ends = self._admin.ends(places, stable=True)
        highs = self._admin.ends(places, stable=False)
        starts = self._admin.starts(places)
        rows = [
            PartitionLag(t, n, starts[t, n], ends[t, n], highs[t, n], committed.get((t, n)))
            for t, n in places
        ]
        self._read_times([p for p in rows if p.lag], keep=True)
        for index, p in enumerate(rows):
            at = (p.topic, p.partition, p.position)
            if p.lag and at in self._times:
                oldest = self._times[at]
                read = replace(p, end=p.position, high=p.position + p.open)
                rows[index] = read if oldest is None else replace(p, oldest_ms=oldest)
        return GroupLag(
            app.short,
            app.name,
            "app",
            "always",
            tuple(rows),
            len(self._admin.members(app.name)),
            at_ms=int(time.time() * 1000),
        )

    def rated(self, before: Sequence[GroupLag], after: Sequence[GroupLag]) -> list[GroupLag]:
        """`after` with the rates since `before`, and the states that follow from them."""
        old = {group.group: group for group in before}
        measured = []
        for group in after:
            seconds = (group.at_ms - old[group.group].at_ms) / 1000 if group.group in old else 0.0
            rated = measure(old[group.group], group, seconds) if seconds > 0 else group
            (alone,) = settle([rated], {}, self.stall_seconds)
            # A job at work shows nothing before it is done.
            at_work = group.state in (State.CATCHING_UP, State.RUNNING)
            stalls = at_work and group.kind != "job"
            stalled = alone.state is State.STALL and stalls
            measured.append(
                replace(rated, state=alone.state, reason=alone.reason) if stalled else rated
            )
        return measured

    def _watched(self, short: str, there: Mapping[str, int]) -> dict[Where, State | None]:
        """The partitions that concern a group, and whether it may read them now."""
        group = self.topology.group(short)
        left_out = self.topology.left_out(group, self.settings, self._platforms)
        held = {short: State(state) for short, state in left_out.items()}
        return {
            (topic.name, partition): held.get(topic.short)
            for topic in (*group.reads, group.redo)
            for partition in range(there.get(topic.name, 0))
        }

    def _with_times(self, group: GroupLag) -> GroupLag:
        rows = tuple(
            replace(p, oldest_ms=self._times.get((p.topic, p.partition, p.position)))
            if p.lag
            else p
            for p in group.partitions
        )
        return replace(group, partitions=rows)

    def _read_times(self, behind: Iterable[PartitionLag], *, keep: bool = False) -> None:
        """Fill the memory of times; positions that nobody stands at any more are forgotten, unless
        they are to be kept."""
        wanted = {(p.topic, p.partition, p.position) for p in behind}
        self._times = {at: ms for at, ms in self._times.items() if ms and (keep or at in wanted)}
        todo = sorted(wanted - self._times.keys())
        if not todo:
            return
        consumer = Consumer(
            clients.consumer_conf(
                self.settings,
                f"{self.settings.project}.lag",
                **{
                    "group.protocol": "classic",
                    "enable.partition.eof": True,
                    "fetch.message.max.bytes": 65_536,
                    "queued.max.messages.kbytes": 1_024,
                },
            )
        )
        deadline = time.monotonic() + OLDEST_SECONDS
        try:
            while todo and time.monotonic() < deadline:
                # Groups may stand at several places of one partition: a place a round.
                turn: dict[Where, int] = {}
                for topic, partition, offset in todo:
                    turn.setdefault((topic, partition), offset)
                self._times |= _times_at(consumer, turn, deadline)
                todo = [at for at in todo if turn[at[0], at[1]] != at[2]]
        finally:
            consumer.close()


def upstream_of(topology: Topology) -> dict[str, tuple[str, ...]]:
    """For each group, the groups whose results or dead letters it reads."""
    return {
        short: tuple(other.short for other in topology.upstream(group))
        for short, group in topology.groups.items()
    }


def _closure(wanted: Iterable[str], upstream: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        short = todo.pop()
        if short not in found:
            found.add(short)
            todo.extend(upstream[short])
    return found


def _times_at(
    consumer: Consumer, places: Mapping[Where, int], deadline: float
) -> dict[tuple[str, int, int], int | None]:
    """When the first readable message at or after each place was written; None where none is."""
    consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in places.items()])
    found: dict[tuple[str, int, int], int | None] = {}
    open_ = dict(places)
    while open_ and time.monotonic() < deadline:
        for message in consumer.consume(num_messages=len(open_), timeout=0.2):
            where = (message.topic() or "", message.partition() or 0)
            if where not in open_:
                continue
            error = message.error()
            if error is not None and error.retriable():
                continue
            if error is not None and error.code() not in _NOTHING_THERE:
                raise ServerUnavailable(f"Kafka does not show {where[0]}: {error.str()}")
            found[(*where, open_.pop(where))] = None if error else message.timestamp()[1]
            consumer.incremental_unassign([TopicPartition(*where)])
    consumer.unassign()
    return found
