"""Putting work on `<group>.redo`, so that a kill at any instant loses nothing.

    note    rows of table redo, state `sending`, in a transaction of their own
    send    the messages, and wait until the broker has all of them
    mark    the rows `queued`

Whoever comes next sends what still stands as `sending` again. An outcome that was made after the
order began removes its row, in whichever state it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Self

import orjson
import psycopg
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.log import get
from headrace.redo.messages import Maker, Redo
from headrace.stores import migrate, postgres
from headrace.stream import clients, topics
from headrace.stream.topology import Group, Topology

log = get(__name__)

FLUSH_SECONDS = 60.0

_NOTE = """
INSERT INTO redo ("group", record_id, reason, order_id, parts, letter, state)
SELECT %s, noted.id, %s, %s, %s, noted.letter, 'sending'
FROM unnest(%s::text[], %s::bigint[]) AS noted (id, letter)
ORDER BY noted.id
ON CONFLICT DO NOTHING
RETURNING record_id
"""

# A row that a store is removing this moment is left to it. (By their places: a join is planned by
# what the table was before it grew.)
_MARK = """
UPDATE redo SET state = 'queued', queued_at = now()
WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM redo
  WHERE "group" = %(group)s AND record_id = ANY(%(ids)s) AND state = 'sending'
  FOR UPDATE SKIP LOCKED))
"""

_MARK_ALL = """
UPDATE redo SET state = 'queued', queued_at = now()
WHERE "group" = %s AND order_id = %s AND state = 'sending'
"""

_DRIVEN = """
UPDATE dead_letters SET redriven_at = now(), dismissed_at = NULL, dismissal = NULL
WHERE id = ANY(%s)
"""

_DROP = """
DELETE FROM redo WHERE "group" = %s AND record_id = ANY(%s) AND state = 'sending'
"""

_LEFT_BEHIND = """
SELECT q.record_id, q.letter, coalesce(octet_length(r.value), length(d.value), 0), q.parts
FROM redo q
LEFT JOIN records r ON q.letter IS NULL AND r.id = q.record_id
LEFT JOIN dead_letters d ON d.id = q.letter
WHERE q."group" = %s AND q.state = 'sending' AND q.record_id > %s
ORDER BY q.record_id LIMIT %s
"""


class Sent(NamedTuple):
    """`queued` stand on the redo topic; of the others nothing can be read any more, or they were
    queued already. `letters` are the queued ones of a single chunk."""

    queued: int
    left_out: int
    letters: tuple[int, ...] = ()

    def __add__(self, other: Sent) -> Sent:  # type: ignore[override]
        return Sent(self.queued + other.queued, self.left_out + other.left_out)


class Line(NamedTuple):
    """What is to be queued: a record, and the dead letter if it is one; bytes of its value; names
    of the parts that alone are asked for, with commas."""

    record_id: str
    size: int = 0
    letter: int | None = None
    parts: str | None = None


class Sender:
    """Queues work of one group. One command at a time may: raises HeadraceError where another
    does. Use `with`; `connection` is in autocommit mode and may be asked other things."""

    def __init__(self, settings: Settings, topology: Topology, group: Group) -> None:
        self.settings = settings
        self.topology = topology
        self.group = group
        self.chunk = settings.redo.chunk
        self._order: int | None = None
        self._parts: str | None = None
        self._failed: KafkaError | None = None
        self.admin = clients.admin(settings)
        try:
            self._prepare()
            self.connection = postgres.connect(
                settings, autocommit=True, application=f"headrace redo {group.short}"
            )
        except BaseException:
            self.admin.close()
            raise
        # Plans are made each time: one for any page would be one for a tenth of the table.
        self.connection.prepare_threshold = None
        self._topic_ids = self.admin.topic_ids()
        self._make = Maker(self.connection, topology, group, self._topic_ids)
        self._producer: Producer | None = None
        self._sent: dict[str | int, str] = {}  # of a chunk: a message's name → its record

    def _prepare(self) -> None:
        topics.ensure(self.settings, self.topology, self.admin)
        migrate.upgrade(self.settings, self.topology)

    def __enter__(self) -> Self:
        try:
            lock(self.connection, self.settings, self.group)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(psycopg.Error):  # at once, for who comes next; else when the session ends
            self.connection.execute("SELECT pg_advisory_unlock_all()")
        self.connection.close()
        self.admin.close()

    def resend(self, tell: Callable[[int], object] = lambda done: None) -> Sent:
        """What a killed command had noted, once more."""
        total, after = Sent(0, 0), ""
        while rows := self.connection.execute(
            _LEFT_BEHIND, [self.group.short, after, self.chunk]
        ).fetchall():
            lines = [
                Line(record_id, size, letter, parts) for record_id, letter, size, parts in rows
            ]
            total += self._send(lines)
            after = lines[-1].record_id
            tell(total.queued)
        return total

    def begin(self, kind: str, reason: str, parts: Sequence[str] = ()) -> None:
        """What is queued from now on belongs to a new order, which may ask for parts alone."""
        names = [topic.name for topic in self.group.outputs]
        partitions = [(name, n) for name, count in self._partitions(names) for n in range(count)]
        ends: dict[str, dict[str, int]] = {}
        for (name, number), end in self.admin.ends(partitions, stable=False).items():
            ends.setdefault(self._topic_ids[name], {})[str(number)] = end
        row = self.connection.execute(
            'INSERT INTO redo_orders ("group", kind, reason, ends) VALUES (%s, %s, %s, %s::jsonb)'
            " RETURNING id",
            [self.group.short, kind, reason, orjson.dumps(ends).decode()],
        ).fetchone()
        assert row is not None
        self._reason, self._order = reason, int(row[0])
        self._parts = ",".join(parts) or None

    def send(self, lines: Sequence[Line]) -> Sent:
        """Queue a chunk; what is queued already is left out."""
        assert self._order is not None, "begin an order first"
        if not lines:
            return Sent(0, 0)
        by_id = {line.record_id: line._replace(parts=self._parts) for line in lines}
        noted = postgres.again(lambda: self._note(list(by_id.values())))
        sent = self._send([line for name, line in by_id.items() if name in noted])
        self.connection.execute(
            "UPDATE redo_orders SET queued = queued + %s WHERE id = %s", [sent.queued, self._order]
        )
        return Sent(sent.queued, len(lines) - sent.queued, sent.letters)

    def end(self) -> None:
        """The order is complete: whatever of it stands in the table stands on the topic."""
        if self._order is not None:
            parameters = [self.group.short, self._order]
            postgres.again(lambda: self.connection.execute(_MARK_ALL, parameters))
            self.connection.execute(
                "UPDATE redo_orders SET ended_at = now() WHERE id = %s", [self._order]
            )
            self._order = None

    # -- one chunk

    def _note(self, lines: Sequence[Line]) -> set[str]:
        rows = self.connection.execute(
            _NOTE,
            [
                self.group.short,
                self._reason,
                self._order,
                self._parts,
                [line.record_id for line in lines],
                [line.letter for line in lines],
            ],
        ).fetchall()
        return {str(row[0]) for row in rows}

    def _send(self, lines: Sequence[Line]) -> Sent:
        self._sent.clear()
        letters = {line.letter: line for line in lines if line.letter is not None}
        records = [line for line in lines if line.letter is None]
        if letters:
            found = self._make.letters(list(letters), [line.size for line in letters.values()])
            for message in found:
                self._produce(message, letters[int(message.name)].record_id)
        for parts in dict.fromkeys(line.parts for line in records):
            alike = [line for line in records if line.parts == parts]
            ids, sizes = [line.record_id for line in alike], [line.size for line in alike]
            for message in self._make.records(ids, sizes, parts.split(",") if parts else ()):
                self._produce(message, str(message.name))
        self._flush()
        made = set(self._sent.values())
        driven = [number for number, line in letters.items() if line.record_id in made]
        if driven:
            postgres.again(lambda: self.connection.execute(_DRIVEN, [driven]))
        mine: dict[str, Any] = {"group": self.group.short, "ids": sorted(made)}
        postgres.again(lambda: self.connection.execute(_MARK, mine))
        gone = [line.record_id for line in lines if line.record_id not in made]
        if gone:  # deleted meanwhile, or nothing is left of what it was made from
            postgres.again(lambda: self.connection.execute(_DROP, [self.group.short, gone]))
        return Sent(len(made), len(gone), tuple(driven))

    def _produce(self, message: Redo, record_id: str) -> None:
        if self._producer is None:
            self._producer = Producer(clients.producer_conf(self.settings))
        self._sent[message.name] = record_id
        delivered = partial(self._delivered, message.name)
        while True:
            try:
                self._producer.produce(
                    self.group.redo.name,
                    message.value,
                    message.key,
                    headers=message.headers,
                    on_delivery=delivered,
                )
                break
            except BufferError:
                self._producer.poll(0.5)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                delivered(error.args[0], None)
                break
        self._producer.poll(0)

    def _delivered(
        self, name: str | int, error: KafkaError | None, message: Message | None
    ) -> None:
        if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            # It stays out, or no later command would come past it.
            log.warning("too large to be done again: %s", self._sent.pop(name, name))
        else:
            self._failed = self._failed or error

    def _flush(self) -> None:
        if self._producer is None:
            return
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._producer.flush(1.0) and self._failed is None:
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"Kafka does not take what goes to {self.group.redo.name}; nothing is lost:"
                    " the same command goes on from here"
                )
        if self._failed is not None:
            raise KafkaException(self._failed)

    def _partitions(self, names: Iterable[str]) -> list[tuple[str, int]]:
        there = self.admin.topics()
        return [(name, there.get(name, 0)) for name in names]


def lock(connection: psycopg.Connection, settings: Settings, group: Group) -> None:
    """Be the one that queues work of a group, as long as this connection lasts."""
    row = connection.execute(
        "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [_lock_name(settings, group)]
    ).fetchone()
    if row != (True,):
        raise HeadraceError(
            f"another command is queueing work of {group.short}: wait until it has ended"
        )


def idle(connection: psycopg.Connection, settings: Settings, group: Group) -> bool:
    """Whether no command is queueing work of a group. `connection` is in autocommit mode."""
    row = connection.execute(
        "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [_lock_name(settings, group)]
    ).fetchone()
    return row == (True,)


def _lock_name(settings: Settings, group: Group) -> str:
    return f"headrace redo {settings.project}.{group.short}"


def queue(
    settings: Settings,
    topology: Topology,
    group: Group,
    record_ids: Iterable[str],
    reason: str,
    *,
    kind: str = "asked",
    parts: Sequence[str] = (),
    tell: Callable[[int], object] = lambda queued: None,
) -> Sent:
    """Have a stage do these records again, or `parts` of them alone; `tell` hears how many are
    queued so far.

    Those that are queued already, deleted, or of which the stage has nothing to read are left out.
    """
    total = Sent(0, 0)
    with Sender(settings, topology, group) as sender:
        sender.resend()
        sender.begin(kind, reason, parts)
        for ids in _chunks(record_ids, sender.chunk):
            total += sender.send([Line(record_id) for record_id in ids])
            tell(total.queued)
        sender.end()
    return total


def _chunks(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    waiting = iter(ids)
    while chunk := list(islice(waiting, size)):
        yield chunk
