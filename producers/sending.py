"""Rows of one file to Kafka: short transactions, each with the note that counts its rows.

Whatever goes wrong in a transaction has one answer: leave the producer, open a new one under the
same transactional id (which ends what the old one had open), read the note, and send the held rows
again unless the note counts them already. Rows are held until their commit is certain, which the
limits of a transaction keep small.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.log import get
from headrace.stream import clients
from producers.receipts import Claim, Ledger, Note, Offsets, merge_ends, merge_starts

log = get(__name__)
_CHUNK = 500  # rows that are given to the producer at once
_TAIL = 64  # rows a partition, at the end of a transaction, of which the delivery is reported
_PARTITIONS = 16  # as long as nobody has asked
_SILENT = logging.getLogger(f"{__name__}.librdkafka")
_SILENT.disabled = True

Headers = list[tuple[str, bytes]]
Held = tuple[str, bytes, bytes, Headers]  # topic, value, key, headers

# What no second try makes better; the value says what to do about it.
_HOPELESS = {
    KafkaError.MSG_SIZE_TOO_LARGE: "set publishing.max_message_bytes below the broker's limit",
    KafkaError.RECORD_LIST_TOO_LARGE: "set publishing.max_message_bytes below the broker's limit",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the user may not write to this topic",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "the user may not use transactions",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the user may not write idempotently",
    KafkaError.POLICY_VIOLATION: "a policy of the broker forbids it",
    KafkaError.INVALID_RECORD: "the broker refuses the record",
    KafkaError._UNKNOWN_TOPIC: "create the topic with `headrace topics apply`",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic with `headrace topics apply`",
    KafkaError._AUTHENTICATION: "check kafka.sasl_username and kafka.sasl_password",
}


class TakenOver(Exception):
    """Another publish works on this file now."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.run = run


class NotSent(HeadraceError):
    """Kafka refuses the rows, and no second try would help."""


class Sender:
    """Sends one file's records. `open` first; then `send` … `commit` again and again.

    `starts` and `ends` tell, per topic and partition, the first offset and the last one + 1 that
    were committed.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        progress: str,
        run: str,
        *,
        patience: float = 120.0,
    ) -> None:
        self.starts: Offsets = {}
        self.ends: Offsets = {}
        self._settings = settings
        self._ledger = ledger
        self._progress = progress
        self._key = progress.encode()
        self._claim = Claim(run, uuid.uuid4().hex)
        self._patience = patience
        self._producer: Producer | None = None
        self._produce: Callable[..., None] = _not_open
        self._open = False  # a transaction is
        # Rows of the transaction; the first so many of them the producer has, and of so many it
        # is to report the delivery.
        self._held: list[Held] = []
        self._given = 0
        self._reports = 0
        self._report_all = True
        self._tail = 0
        self._unreported: set[str] = set()  # topics with rows of which no report comes
        self._before: Offsets = {}  # ends of such topics when there were none yet
        self._trouble: KafkaException | None = None  # seen while sending; commit deals with it
        self._refused: list[KafkaError] = []
        self._delivered: list[tuple[str, int, int]] = []

    def open(self) -> Note | None:
        """Take the file over: fence whoever works on it, and say how far it has come."""
        self._ledger.claim(self._progress, self._claim)
        self._start(time.monotonic() + self._patience)
        return self._ledger.note(self._progress)

    def send(self, topic: str, value: bytes, key: bytes, headers: Headers) -> None:
        """Take one record; errors come up in `commit`."""
        held = self._held
        held.append((topic, value, key, headers))
        if len(held) - self._given > _CHUNK + self._tail:
            self._give(len(held) - self._tail, self._report_all)

    def commit(self, note: Note) -> None:
        """End the transaction with its note: afterwards both the rows and the note stand.

        Raises TakenOver, NotSent for what the broker refuses for good, and ServerUnavailable
        when it has not answered for the whole of our patience.
        """
        deadline = time.monotonic() + self._patience
        pause = 0.1
        while True:
            try:
                self._finish(note, deadline)
                break
            except KafkaException as trouble:
                self._judge(trouble, deadline)
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
            if self._restart(note, deadline):
                break
        self._settle()
        self._held.clear()
        self._given = self._reports = 0
        self._unreported.clear()

    def cover(self, topics: Iterable[str]) -> None:
        """Let `ends` reach all that stands in the topics now: some of it belongs to this file, and
        nobody says where."""
        merge_ends(self.ends, {topic: self._ledger.ends(topic) for topic in topics})

    def close(self) -> None:
        """Leave; a transaction that is still open is aborted."""
        if self._producer is not None and self._open:
            try:
                self._producer.abort_transaction(5)
            except KafkaException as trouble:
                log.debug("abort at the end", error=str(trouble))
        self._drop()

    # -- one transaction

    def _begin(self) -> None:
        assert self._producer is not None
        self._producer.begin_transaction()
        self._open = True

    def _give(self, upto: int, report: bool) -> None:
        """Give held rows to the producer.

        A report of its delivery costs as much as half a row's sending. The receipt needs only the
        first and the last offset of each partition, so reports are asked for in the first
        transaction and at the end of each: `_settle` sees to what they miss.
        """
        if self._trouble is not None:
            return
        rows = self._held[self._given : upto]
        more: dict[str, Any] = {"on_delivery": self._delivered_to} if report else {}
        try:
            if not self._open:
                self._begin()
            if report:
                self._reports += len(rows)
            else:
                self._go_unreported({row[0] for row in rows})
            produce = self._produce
            for topic, value, key, headers in rows:
                while True:
                    try:
                        produce(topic, value, key, headers=headers, **more)
                        break
                    except BufferError:
                        self._wait_for_room()
        except KafkaException as trouble:
            self._trouble = trouble
        self._given = upto

    def _wait_for_room(self) -> None:
        assert self._producer is not None
        self._producer.poll(0.05)  # messages time out, so there is room some day

    def _go_unreported(self, topics: set[str]) -> None:
        for topic in topics - self._unreported:
            self._unreported.add(topic)
            if topic not in self._before:
                self._before[topic] = self._ledger.ends(topic)

    def _delivered_to(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            # Always set for a delivered message.
            self._delivered.append((message.topic(), message.partition(), message.offset()))  # type: ignore[arg-type]
        elif not self._refused:
            self._refused.append(error)

    def _finish(self, note: Note, deadline: float) -> None:
        self._give(len(self._held), report=True)
        if self._trouble is not None:
            raise self._trouble
        producer = self._producer
        assert producer is not None
        if not self._open:
            self._begin()
        # The note comes last: so topic `runs`, which every publisher reads to its end, is part of
        # an open transaction for a moment only.
        producer.produce(self._ledger.topic, note.value(), self._key, partition=0)
        while True:
            try:
                producer.commit_transaction(5)
                break
            except KafkaException as trouble:
                if not trouble.args[0].retriable() or time.monotonic() > deadline:
                    raise
        self._open = False
        while len(self._delivered) < self._reports:
            producer.poll(0.01)  # reports of what is committed are on their way

    def _settle(self) -> None:
        """After a commit: which offsets are ours."""
        first: Offsets = {}
        last: Offsets = {}
        for topic, partition, offset in self._delivered:
            lows = first.setdefault(topic, {})
            if partition not in lows:
                lows[partition] = offset
            last.setdefault(topic, {})[partition] = offset + 1
        self._delivered.clear()
        for topic in self._unreported:  # rows of which nothing was told stand before these
            for partition in first.get(topic, {}).keys() - self.starts.get(topic, {}).keys():
                begin = self._before[topic].get(partition, 0)
                first[topic][partition] = min(first[topic][partition], begin)
        merge_starts(self.starts, first)
        merge_ends(self.ends, last)
        self._report_all = False
        for topic in self._unreported:
            seen = last.get(topic, {})
            if len(seen) < len(self._before[topic]):
                # Keys that are not spread: rows may stand in partitions that nothing told of.
                self._report_all = True
                ends = self._ledger.ends(topic)
                missed = [partition for partition in ends if partition not in seen]
                starts = {p: self._before[topic].get(p, 0) for p in missed}
                merge_starts(self.starts, {topic: starts})
                merge_ends(self.ends, {topic: {p: ends[p] for p in missed}})
        partitions = max((len(ends) for ends in self._before.values()), default=_PARTITIONS)
        self._tail = 0 if self._report_all else _TAIL * partitions

    # -- when something goes wrong

    def _judge(self, trouble: KafkaException, deadline: float) -> None:
        """Raises for what another try cannot mend."""
        for error in (*self._refused, trouble.args[0]):
            if (advice := _HOPELESS.get(error.code())) is not None:
                raise NotSent(f"Kafka refuses a record: {error.str()}; {advice}") from trouble
        if time.monotonic() > deadline:
            raise ServerUnavailable(
                f"Kafka has not taken the rows for {self._patience:.0f} s:"
                f" {trouble.args[0].str()}; what was committed stands, publish again to go on"
            ) from trouble
        log.info("a transaction is tried again", error=trouble.args[0].str())

    def _restart(self, note: Note, deadline: float) -> bool:
        """A new producer. True when it turns out that the transaction was committed after all;
        else the held rows are sent again."""
        self._start(deadline)
        if self._ledger.note(self._progress) == note:
            self.cover({held[0] for held in self._held})
            return True
        self._given = self._reports = 0
        self._unreported.clear()
        self._report_all = True  # now the reason should be told, if there is one
        self._tail = 0
        return False

    def _start(self, deadline: float) -> None:
        pause = 0.1
        while True:
            self._drop()
            try:
                self._connect(deadline)
                break
            except KafkaException as trouble:
                self._judge(trouble, deadline)
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
        self._ledger.refresh(max(1.0, deadline - time.monotonic()))
        claim = self._ledger.claim_of(self._progress)
        if claim is not None and claim.token != self._claim.token:
            self._drop()
            raise TakenOver(claim.run)

    def _connect(self, deadline: float) -> None:
        settings = self._settings
        limit = settings.publishing.max_message_bytes
        producer = Producer(
            clients.producer_conf(
                settings,
                **{
                    "transactional.id": f"{settings.project}.publish.{self._progress}",
                    "transaction.timeout.ms": settings.kafka.transaction_timeout_ms,
                    # room for key and headers beside the value
                    "message.max.bytes": limit + 65_536,
                    "linger.ms": 50,
                    # What matters comes up in `commit`; being fenced should not look like a crash.
                    "error_cb": _note_error,
                    "logger": _SILENT,
                    # Connect at once: a producer that does not finds no coordinator at first, and
                    # looks again only half a second later.
                    "enable.sparse.connections": False,
                    "batch.num.messages": 10_000,
                },
            )
        )
        while True:
            try:
                producer.init_transactions(5)
                break
            except KafkaException as trouble:
                if not trouble.args[0].retriable() or time.monotonic() > deadline:
                    raise
        self._producer, self._produce = producer, producer.produce

    def _drop(self) -> None:
        self._producer, self._produce = None, _not_open
        self._open = False
        self._trouble = None
        self._refused.clear()
        self._delivered.clear()


def _note_error(error: KafkaError) -> None:
    log.debug("kafka: %s", error.str())


def _not_open(*_: object, **__: object) -> None:
    raise RuntimeError("the sender is not open")
