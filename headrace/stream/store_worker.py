"""The loop of a store group: Kafka to PostgreSQL, rows and offsets in one transaction.

    take    a batch of messages
    read    what they say, without a server; what is no record becomes a dead letter
    commit  one PostgreSQL transaction: offsets first, held against where we left them (whoever was
            overtaken stops here), then the rows
    mirror  the same positions to Kafka, so that anyone can see the lag

A batch that PostgreSQL refuses for what it holds is split until only the guilty message is a dead
letter. Positions come from PostgreSQL at every assignment and every new connection; Kafka's are
only ever written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from importlib import import_module
from typing import Any, Protocol

import psycopg
from confluent_kafka import KafkaException, Message

from headrace.errors import ServerUnavailable
from headrace.log import get
from headrace.stores import migrate, offsets, postgres
from headrace.stream.faults import Fenced
from headrace.stream.limits import DeadLetterCount
from headrace.stream.source import Cut, Partition, Source
from headrace.stream.stage import Retry
from headrace.stream.worker import STEP_SECONDS, Backoff, Place

log = get(__name__)

_MIRROR_SECONDS = 1.0
_METRIC_SECONDS = 5.0

# What is wrong with a message, whoever notices it: PostgreSQL (bad data, broken constraint, larger
# than an index takes) or our own code on its way there.
_GUILT = (
    psycopg.errors.DataError,
    psycopg.errors.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
)

# Workers of this group whose transactions wait for their clients. No timeout of PostgreSQL's ends
# a COPY that does.
_END_FROZEN = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = current_setting('application_name') AND usename = session_user
  AND datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL
  AND wait_event_type = 'Client'
  AND state_change < now() - current_setting('lock_timeout')::interval
"""


class Batch(Protocol):
    """What a store read; `own` are the reasons of its own dead letters in it."""

    own: list[str]


class Store(Protocol):
    """What a store group's module builds: `build(settings, topology, group, topic_id)`.

    read     messages to what is to be written; pure, and never raises for a message's sake
    bury     the same for a message that cannot be written: a dead letter
    open     prepares a new connection
    forget   what was learned inside a transaction that was rolled back
    resolve  makes what rows refer to; before the rows' transaction
    write    writes a read batch inside the caller's transaction; `again` where it is not the first
    """

    def read(self, messages: Sequence[Message]) -> Any: ...

    def bury(self, message: Message, error: str, reason: str) -> Any: ...

    def open(self, connection: psycopg.Connection) -> None: ...

    def forget(self) -> None: ...

    def resolve(self, connection: psycopg.Connection, batch: Any) -> None: ...

    def write(self, connection: psycopg.Connection, batch: Any, *, again: bool = False) -> None: ...


def build(place: Place) -> StoreLoop:
    return StoreLoop(place)


class StoreLoop:
    def __init__(self, place: Place) -> None:
        group = place.group
        self._place = place
        self._group = group.short
        self._source = Source(
            place.settings,
            group.name,
            place.topics,
            group.batch,
            place.admin,
            start=self._starts,
            stopping=place.stopping,
            on_lost=place.metrics.lost.inc,
        )
        self._store: Store = import_module(group.module).build(
            place.settings, place.topology, group, self._source.topic_id
        )
        self._limits = DeadLetterCount(group.short, group.dead_letters)
        self._connection: psycopg.Connection | None = None
        self._backoff = Backoff(place.settings)
        self._at: dict[Partition, int | None] = {}  # where PostgreSQL has us; None: nowhere yet
        self._unmirrored: dict[Partition, int] = {}
        self._arrived: set[Partition] = set()  # assigned since the last mirroring
        self._mirrored = 0.0
        self._measured = 0.0

    def open(self) -> None:
        try:
            migrate.upgrade(self._place.settings, self._place.topology)
            self._connect()
        except (psycopg.Error, ServerUnavailable) as error:
            self._disconnect()
            if not postgres.passing(error):
                raise
            raise Retry(self._backoff.next(), _away(error)) from error
        self._source.open()

    def work(self) -> bool:
        connection = self._connected()
        cut = self._source.take()
        if cut is None:
            self._mirror(idle=True)
            self._measure()
            return False
        started = time.perf_counter()
        try:
            with self._place.watchdog.step("commit", self._patience()):
                summary = self._commit(connection, cut)
        except BaseException as error:
            self._undo(cut, error)
            raise
        self._source.done(cut)
        self._backoff.reset()
        self._unmirrored.update(cut.after)
        self._mirror(idle=not cut.messages)
        if cut.messages:
            self._place.metrics.committed(summary, time.perf_counter() - started)
        self._measure()
        return bool(cut.messages)

    def rest(self, seconds: float) -> None:
        self._source.rest(seconds)

    def close(self) -> None:
        self._mirror(idle=True)
        self._source.close()
        if self._connection is not None:
            self._connection.close()

    # -- commit: the whole order of it

    def _commit(self, connection: psycopg.Connection, cut: Cut) -> dict[str, int]:
        moves = {
            (topic, partition, self._source.topic_id(topic)): (self._at.get(key), to)
            for key, to in cut.after.items()
            for topic, partition in [key]
        }
        batch = self._store.read(cut.messages)
        dead = list(batch.own)
        limits = copy(self._limits)  # counted once the batch is stored, however often it is tried
        limits.add(len(cut.messages), dead)

        def transaction(whole: bool) -> None:
            with connection.transaction():
                if not offsets.move(connection, self._group, moves):
                    raise Fenced("another worker stores what this one was reading")
                if whole:
                    self._store.write(connection, batch)
                else:
                    dead[:] = self._write_in_parts(connection, cut.messages, copy(limits))

        def attempt(whole: bool) -> None:
            try:
                postgres.again(lambda: transaction(whole))
            except BaseException:
                self._store.forget()
                raise

        try:
            self._store.resolve(connection, batch)
            attempt(True)
        except _GUILT as error:
            if isinstance(error, psycopg.Error) and postgres.passing(error):
                raise
            log.warning("a batch is refused, looking for the message: %s", _line(error))
            attempt(False)
        limits.add(0, dead[len(batch.own) :])
        self._limits = limits
        self._at.update(cut.after)
        return {"ok": len(cut.messages) - len(dead), "dead": len(dead)}

    def _write_in_parts(
        self, connection: psycopg.Connection, messages: Sequence[Message], limits: DeadLetterCount
    ) -> list[str]:
        """Write what can be written; returns the reasons of all dead letters, these found last."""
        known: list[str] = []
        found: list[str] = []
        waiting = [messages]
        self._store.forget()
        while waiting:
            part = waiting.pop()
            batch = self._store.read(part)
            try:
                with connection.transaction():  # a savepoint
                    self._store.resolve(connection, batch)
                    self._store.write(connection, batch, again=True)
                known += batch.own
            except _GUILT as error:
                self._store.forget()
                if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                    continue
                reason = _line(error)
                log.warning(
                    "dead letter: %s", reason,
                    topic=part[0].topic(), partition=part[0].partition(), offset=part[0].offset(),
                )  # fmt: skip
                buried = self._store.bury(part[0], type(error).__name__, reason)
                self._store.write(connection, buried, again=True)
                found.append(reason)
                limits.add(0, [reason])
        return known + found

    def _undo(self, cut: Cut, error: BaseException) -> None:
        """Nothing of the cut is stored, as far as we know: read it again. Raises Retry where the
        same may go well later."""
        self._place.metrics.rollbacks.inc()
        self._source.rewind(cut)
        if isinstance(error, psycopg.Error | ServerUnavailable) and postgres.passing(error):
            if postgres.lost(error):
                self._disconnect()
            elif isinstance(error, psycopg.errors.LockNotAvailable):
                self._end_frozen()
            raise Retry(self._backoff.next(), _away(error)) from error

    def _end_frozen(self) -> None:
        """A worker that stands still inside a transaction keeps its locks, while what it read is
        ours now: its session is ended, and it will find itself overtaken."""
        assert self._connection is not None
        with suppress(psycopg.Error):
            if ended := self._connection.execute(_END_FROZEN).fetchall():
                log.warning("ended the sessions of workers that stand still", sessions=len(ended))

    # -- the connection

    def _connected(self) -> psycopg.Connection:
        """The connection; a new one looks first where PostgreSQL has us.

        A commit whose answer was lost may have gone through, or another may have taken over.
        """
        if self._connection is not None:
            return self._connection
        try:
            connection = self._connect()
            positions = self._source.assigned()
            stored = self._stored(connection, list(positions))
        except (psycopg.Error, ServerUnavailable) as error:
            self._disconnect()
            if not postgres.passing(error):
                raise
            raise Retry(self._backoff.next(), _away(error)) from error
        if any(at is None and self._at.get(key) is not None for key, at in stored.items()):
            # Another database, or one made anew: what stood in the old one is to be read again.
            raise Fenced("PostgreSQL no longer knows where this group stands")
        self._at.update(stored)
        moved = {key: at for key, at in stored.items() if at is not None and at != positions[key]}
        if moved:
            self._source.move(moved)
        log.info("connected to PostgreSQL again")
        return connection

    def _connect(self) -> psycopg.Connection:
        self._disconnect()
        connection = postgres.connect(
            self._place.settings, autocommit=True, application=f"headrace {self._group}"
        )
        # Plans are made each time: the tables grow a thousandfold under one connection.
        connection.prepare_threshold = None
        self._store.open(connection)
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        self._store.forget()
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _patience(self) -> float:
        """Longer than any statement may take by itself."""
        return STEP_SECONDS * 10

    # -- positions

    def _starts(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        """Called at an assignment, inside a poll. It waits for PostgreSQL, since without an answer
        the client would begin where Kafka has us; when the broker's patience ends, so do we."""
        give_up = time.monotonic() + self._place.settings.kafka.max_poll_interval_ms / 2000
        pause = Backoff(self._place.settings)
        while True:
            try:
                connection = self._connection or self._connect()
                found = self._stored(connection, partitions)
                break
            except (psycopg.Error, ServerUnavailable) as error:
                if not postgres.passing(error):
                    raise
                self._disconnect()
                if self._place.stopping() or time.monotonic() > give_up:
                    raise ServerUnavailable(_away(error)) from error
                log.warning("waiting: %s", _away(error))
                time.sleep(min(pause.next(), 5.0))
        self._at.update(found)
        self._arrived |= found.keys()
        return found

    def _stored(
        self, connection: psycopg.Connection, partitions: Sequence[Partition]
    ) -> dict[Partition, int | None]:
        slots = [(topic, number, self._source.topic_id(topic)) for topic, number in partitions]
        known = offsets.read(connection, self._group, slots)
        return {slot[:2]: known.get(slot) for slot in slots}

    def _mirror(self, *, idle: bool) -> None:
        """Best effort, and not at every batch: Kafka's copy is for those who look at the lag."""
        now = time.monotonic()
        if self._arrived:  # what Kafka knows of these may be older, or newer than a restored table
            positions = self._source.assigned()
            for key in self._arrived & positions.keys():
                self._unmirrored.setdefault(key, positions[key])
            self._arrived.clear()
        if not self._unmirrored or (not idle and now - self._mirrored < _MIRROR_SECONDS):
            return
        self._mirrored = now
        held = self._source.assigned().keys()
        self._unmirrored = {key: at for key, at in self._unmirrored.items() if key in held}
        if not self._unmirrored:
            return
        try:
            self._source.commit(self._unmirrored, wait=idle)
        except KafkaException as error:
            log.debug("not mirrored to Kafka yet: %s", error)
            return
        if idle:  # else nobody has heard whether it went well
            self._unmirrored.clear()

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured >= _METRIC_SECONDS and self._place.metrics.port is not None:
            self._measured = now
            self._place.metrics.positions(self._source.assigned(), self._source.lag())


def _away(error: BaseException) -> str:
    """Why PostgreSQL cannot be used, in one line that names it."""
    said = _line(error)
    return said if isinstance(error, ServerUnavailable) else f"PostgreSQL: {said}"


def _line(error: BaseException) -> str:
    """The error in one line; PostgreSQL's DETAIL and CONTEXT may hold content and stay out."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
