"""The scheduler: opens windows when they are due, and closes those that are passed.

One at a time does it: whoever holds a lock of PostgreSQL's session, on whose connection all is
written. So one that has lost its connection has lost its office too, and can write nothing.
Everything that it knows stands in PostgreSQL and Kafka: it may be killed between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg
from confluent_kafka import KafkaException

from headrace import platforms
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.log import get
from headrace.scheduling import plan, positions, windows
from headrace.scheduling.plan import Clock, History, Step
from headrace.scheduling.positions import Standing
from headrace.scheduling.units import DISABLED, Key, Unit, units
from headrace.stores import migrate, postgres
from headrace.stream import clients
from headrace.stream import topology as topologies
from headrace.stream.clients import Admin
from headrace.stream.topology import Topology

log = get(__name__)

_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
_HOLDER = """
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(%s, 0)
"""
_LED = f"SELECT count(*) {_HOLDER}"
# One that stands still keeps its session, and with it the lock. It finds itself without both.
_END_FROZEN = f"""
SELECT pg_terminate_backend(a.pid) {_HOLDER}
  AND a.state_change < now() - make_interval(secs => %s)
"""
_FROZEN_SECONDS = 120.0  # longer than a leader is quiet, whatever Kafka does


def lock_name(settings: Settings) -> str:
    return f"headrace scheduler {settings.project}"


def is_led(connection: psycopg.Connection, settings: Settings) -> bool:
    """Whether a scheduler is at work somewhere."""
    row = connection.execute(_LED, [lock_name(settings)]).fetchone()
    return bool(row and row[0])


class Scheduler:
    """`turn` once, or `run` until told to stop. `clock` tells the time (aware)."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._topology = topology or topologies.load(settings)
        self._clock = clock
        self._files = platforms.Watched(settings)
        self._connection: psycopg.Connection | None = None
        self._admin: Admin | None = None
        self._leads = False
        self._stands_by = False
        self._strangers: set[Key] = set()  # whose windows were said to be left alone

    def run(
        self,
        stopping: Callable[[float], bool],
        say: Callable[[str, str], object] = lambda state, reason: None,
    ) -> None:
        """Turn after turn. `stopping` waits so many seconds, and says whether to stop; `say` hears
        (leading | standby | retrying, reason)."""
        wait = self._settings.scheduler.look_seconds
        said = ""
        try:
            while True:
                try:
                    say("leading" if self.turn() else "standby", "")
                    said = ""
                except Exception as error:
                    self._leave()
                    say("retrying", str(error))
                    if not isinstance(error, HeadraceError | psycopg.Error | KafkaException):
                        log.exception("the scheduler tries again")
                    elif said != (said := _line(error)):
                        log.warning("the scheduler tries again", reason=said)
                if stopping(wait):
                    return
        finally:
            self.close()

    def turn(self) -> bool:
        """One look at everything; False where another scheduler leads."""
        connection = self._led()
        if connection is None:
            return False
        admin = self._admin = self._admin or clients.admin(self._settings)
        everything = units(self._settings, self._topology, self._files.load())
        now = self._clock()
        # Held by a mode is not gone: it goes on when the mode allows it. Disabled is.
        counted = {unit.key: unit.when.text for unit in everything if unit.held != DISABLED}
        disabled = {unit.key for unit in everything if unit.held == DISABLED}
        windows.note_schedules(connection, counted, disabled, now)
        positions.settle(connection, admin, self._topology)
        self._sort_out(connection, counted.keys(), disabled)
        known: dict[Key, Standing] = {}

        def standing(unit: Unit) -> Standing:
            if unit.key not in known:
                known[unit.key] = self._standing(connection, admin, unit)
            return known[unit.key]

        scheduler = self._settings.scheduler
        clock = Clock(now, scheduler.zone, timedelta(milliseconds=scheduler.patience_ms))
        history = read_history(connection)
        for step in plan.decide(everything, history, clock, lambda u: standing(u).waiting):
            self._do(connection, step, standing, now)
        return True

    def close(self) -> None:
        self._leave()
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _do(
        self,
        connection: psycopg.Connection,
        step: Step,
        standing: Callable[[Unit], Standing],
        now: datetime,
    ) -> None:
        unit = step.unit
        if step.do == "open" and step.due is not None:
            at = standing(unit)
            done = not at.waiting and not unit.job  # nobody needs to be started for that
            if step.asked:
                windows.open_asked(
                    connection, *unit.key, at.ends, now, waiting=at.waiting, done=done
                )
            else:
                windows.open_window(
                    connection, *unit.key, at.ends, step.reason, step.due, now,
                    waiting=at.waiting, done=done,
                )  # fmt: skip
            log.info("opens a window", unit=str(unit), reason=step.reason, waiting=at.waiting)
        elif step.do == "skip" and step.due is not None:
            windows.skip(connection, *unit.key, step.reason, step.due, now)
            log.info("leaves a window out", unit=str(unit), reason=step.reason)

    def _standing(self, connection: psycopg.Connection, admin: Admin, unit: Unit) -> Standing:
        if not unit.job:
            name = self._topology.group(unit.group).name
            return positions.standing(admin, name, unit.topics)
        ends = positions.stored(connection, (g.short for g in self._topology.stores()))
        if unit.when.lag is None:
            return Standing(0, ends)
        last = windows.last_worked(connection).get(unit.key)
        before = last.ends if last else {}
        new = sum(
            max(0, end - before.get(topic, {}).get(number, 0))
            for topic, parts in ends.items()
            for number, end in parts.items()
        )
        return Standing(new, ends)

    def _sort_out(
        self, connection: psycopg.Connection, counted: Collection[Key], disabled: Collection[Key]
    ) -> None:
        """Closes windows in which nobody may work any more. Those of what has no schedule here are
        left alone: another scheduler, with another topics.yaml or platform file, may know it."""
        for window in windows.unfinished(connection):
            fields = {"group": window.group, "platform": window.platform or ""}
            if window.key in disabled:
                windows.close(connection, window.key, DISABLED)
                log.info("closes a window", **fields)
            elif window.key not in counted and window.key not in self._strangers:
                self._strangers.add(window.key)
                log.warning("leaves a window alone that has no schedule here", **fields)

    # -- the office

    def _led(self) -> psycopg.Connection | None:
        """The connection whose session holds the lock; None where another's does."""
        if self._connection is None:
            migrate.upgrade(self._settings, self._topology)
            self._connection = postgres.connect(
                self._settings, autocommit=True, application="headrace scheduler"
            )
        if not self._leads:
            row = self._connection.execute(_LOCK, [lock_name(self._settings)]).fetchone()
            self._leads = bool(row and row[0])
            if not self._leads:
                if not self._stands_by:
                    log.info("another scheduler leads; this one stands by")
                self._stands_by = True
                quiet = max(_FROZEN_SECONDS, 10 * self._settings.scheduler.look_seconds)
                if self._connection.execute(
                    _END_FROZEN, [lock_name(self._settings), quiet]
                ).fetchall():
                    log.warning("ended the session of a scheduler that stands still")
                return None
            self._stands_by = False
            log.info("this scheduler leads")
        return self._connection

    def _leave(self) -> None:
        self._leads = False
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def read_history(connection: psycopg.Connection) -> dict[Key, History]:
    """What there was of every unit whose schedule is noted."""
    due = windows.latest(connection)
    opened = windows.last_worked(connection)
    busy = {(window.key, window.state) for window in windows.unfinished(connection)}
    return {
        key: History(
            since=moment,
            due=due[key].due if key in due else None,
            opened=opened[key].opened_at if key in opened else None,
            open=(key, "open") in busy,
            asked=(key, "asked") in busy,
        )
        for key, moment in windows.since(connection).items()
    }


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
