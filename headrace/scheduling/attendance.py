"""What scheduled groups are to read now: asked by their workers, and by who starts these.

A group reads what it always reads, what its open windows are for, and its redo topic; of a group
without the first two the redo topic alone, as soon as that holds something; else it stays out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from headrace import platforms
from headrace.config import Settings
from headrace.log import get
from headrace.scheduling import positions, units, windows
from headrace.stores import postgres
from headrace.stream import clients
from headrace.stream.clients import Admin
from headrace.stream.metrics import Metrics
from headrace.stream.signals import Signals
from headrace.stream.topology import Group, Job, Topic, Topology

log = get(__name__)


_OUTSIDE = ("scheduled", "outside its windows")


@dataclass(frozen=True, slots=True)
class Duty:
    """topics  what is to be read, the redo topic included; none: stay out
    left    what is to be done before the group may rest: messages that open windows, the redo
            topic and topics that it always reads hold; windows of jobs count one each
    asked   windows that are asked for and not open yet
    """

    topics: tuple[Topic, ...] = ()
    left: int = 0
    asked: int = 0

    @property
    def due(self) -> bool:
        return bool(self.topics or self.left)


class Trouble:
    """Says why something cannot be seen: once, until it can be seen again or the reason changes."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._reason: str | None = None

    def has(self, error: Exception) -> None:
        if self._reason != (reason := str(error)):
            log.warning(self._message, reason=reason)
        self._reason = reason

    def passed(self) -> None:
        self._reason = None


class Attendance:
    """Asks again and again for some groups and jobs, on connections of its own. For one thread."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        groups: Sequence[Group],
        jobs: Sequence[Job] = (),
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._groups = tuple(groups)
        self._jobs = tuple(jobs)
        self._files = platforms.Watched(settings)
        self._connection: psycopg.Connection | None = None
        self._admin: Admin | None = None

    def look(self) -> dict[str, Duty]:
        """By short name. Closes the windows that are passed. Raises what PostgreSQL and Kafka
        raise; the next look connects anew."""
        try:
            return self._look()
        except BaseException:
            self._disconnect()
            raise

    def close(self) -> None:
        self._disconnect()
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _look(self) -> dict[str, Duty]:
        if self._connection is None:
            self._connection = postgres.connect(
                self._settings, autocommit=True, application="headrace attendance"
            )
        connection = self._connection
        admin = self._admin = self._admin or clients.admin(self._settings)
        files = self._files.load()
        left = positions.settle(connection, admin, self._topology)
        everything = units.units(self._settings, self._topology, files)
        known = {unit.key for unit in everything if unit.held != units.DISABLED}
        unfinished = [window for window in windows.unfinished(connection) if window.key in known]
        found: dict[str, Duty] = {}
        for group in self._groups:
            mine = [window for window in unfinished if window.group == group.short]
            opened = [window for window in mine if window.state == "open"]
            of = (self._settings, self._topology, files, group)
            topics = units.reads(*of, frozenset(window.platform for window in opened))
            always = units.reads(*of, frozenset())
            waiting = positions.standing(admin, group.name, (*always, group.redo)).waiting
            # A window stays open while fast mode leaves its topics out; nobody can work in it.
            read = {topic.platform for topic in topics}
            found[group.short] = Duty(
                (*topics, group.redo) if topics or waiting else (),
                sum(left.get(window.id, 1) for window in opened if window.platform in read)
                + waiting,
                len(mine) - len(opened),
            )
        for job in self._jobs:
            states = [window.state for window in unfinished if window.group == job.short]
            found[job.short] = Duty((), states.count("open"), states.count("asked"))
        return found

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def look(settings: Settings, topology: Topology, group: Group) -> tuple[Topic, ...]:
    """What a group is to read now, asked once; nothing: stay out."""
    attendance = Attendance(settings, topology, [group])
    try:
        return attendance.look()[group.short].topics
    finally:
        attendance.close()


def wait_until_due(
    settings: Settings, topology: Topology, group: Group, signals: Signals
) -> tuple[Topic, ...]:
    """What a group is to read, as soon as it is to read something; empty: told to stop. Answers on
    the worker's health page meanwhile."""
    attendance = Attendance(settings, topology, [group])
    metrics = Metrics(settings, group.name)
    metrics.state = ("scheduled", "")
    trouble = Trouble("cannot see whether a window is open")
    try:
        while not signals.stopping():
            try:
                topics = attendance.look()[group.short].topics
                trouble.passed()
                if topics:
                    return topics
                if metrics.state != _OUTSIDE:
                    log.info("waits for a window, or for something to do again")
                metrics.state = _OUTSIDE
            except Exception as error:
                metrics.state = ("retrying", str(error))
                trouble.has(error)
            signals.wait(settings.scheduler.look_seconds)
        return ()
    finally:
        metrics.close()
        attendance.close()


class Watch:
    """Notices, in a thread of its own, when a worker is to read something else than it does."""

    def __init__(
        self, settings: Settings, topology: Topology, group: Group, topics: Sequence[Topic]
    ) -> None:
        self._every = settings.scheduler.look_seconds
        self._attendance = Attendance(settings, topology, [group])
        self._group = group.short
        self._topics = {topic.name for topic in topics}
        self._leaving = threading.Event()
        threading.Thread(target=self._look, name="windows", daemon=True).start()

    def leaving(self) -> bool:
        """Whether the worker should end, to be started with what there is to read then."""
        return self._leaving.is_set()

    def _look(self) -> None:
        changed = 0  # looks in a row: redo comes in bursts, and joining a group takes its time
        trouble = Trouble("cannot see whether the window is passed")
        while not self._leaving.wait(self._every):
            try:
                topics = {topic.name for topic in self._attendance.look()[self._group].topics}
            except Exception as error:
                trouble.has(error)
                continue
            trouble.passed()
            changed = changed + 1 if topics != self._topics else 0
            if changed >= 2:
                log.info("what is to be read has changed", topics=", ".join(sorted(topics)))
                self._leaving.set()
