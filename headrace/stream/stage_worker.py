"""The loop of a stage: Kafka to Kafka, in one transaction a batch.

take    a batch of messages, decoded; what is no record is a dead letter
ask     the stage, for one outcome each; a batch that raises is split until only the guilty
        record is dead
write   outcomes, dead letters and a status event as bytes, held against schema and sizes
commit  all of it and the offsets in one transaction, begun when everything else is done
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from copy import copy
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, NamedTuple

import orjson
from confluent_kafka import KafkaException, Producer

from headrace.config import Settings
from headrace.log import get
from headrace.stream import clients, schemas
from headrace.stream.decode import Decoder, Input
from headrace.stream.faults import kafka_error
from headrace.stream.limits import DeadLetterCount
from headrace.stream.source import Cut, Source
from headrace.stream.stage import Context, Outcome, Pause, Process, Record, Retry, dead
from headrace.stream.topology import Topic
from headrace.stream.wire import HEADER, TRACEPARENT, Position
from headrace.stream.worker import STEP_SECONDS, Place

log = get(__name__)

Headers = list[tuple[str, str | bytes | None]]

_TRY_SECONDS = 10.0  # one call into librdkafka; a call that timed out may be made again
_METRIC_SECONDS = 5.0
_BATCH_BYTES = 1_000_000
_OVERHEAD = 1024  # bytes that key, header and the log add to a value
_RESULT = "InvalidResult"
_COUNTED = {
    "ok": "ok",
    "drop": "dropped",
    "dead": "dead",
    "deleted": "deleted",
    "deferred": "deferred",
}
_ERRORS = "__connect.errors."
_NAMESPACE = uuid.UUID("a6e1bd0c-7c0b-5b6c-9d5e-0d6c1f1a2b3c")


Outgoing = tuple[str, bytes | None, bytes | None, Headers]  # topic, key, value, headers


class DeadLetter(NamedTuple):
    input: Input
    error: str  # class of the exception, or what kind of fault it is
    reason: str


def build(place: Place) -> StageLoop:
    return StageLoop(place, import_module(place.group.module).build)


class StageLoop:
    def __init__(self, place: Place, build: Callable[[Context], Process]) -> None:
        group, settings = place.group, place.settings
        if not group.outputs or group.dlt is None:
            raise ValueError(f"{group.short} is a stage that writes nothing")
        self._place = place
        self._group = group
        self._process = process = build(
            Context(
                settings, group.short, group.options, place.worker, place.stopping, self._waiting
            )
        )
        self._committed: Callable[[], None] = getattr(process, "committed", lambda: None)
        own = getattr(process, "version", "")
        self._version = f"{group.version}+{own}" if own else group.version
        self._writes: Topic = group.outputs[0]  # all of one kind
        self._outputs: dict[str, str | None] = {}  # full names by that of the input's topic
        for topic in place.topology.topics.values():
            output = group.output(topic)
            self._outputs[topic.name] = output.name if output else None
        self._letters: Topic = group.dlt
        self._status = place.topology.topic("status").name
        self._limits = DeadLetterCount(group.short, group.dead_letters)
        self._limits_after = self._limits  # the batch at hand, once it is committed
        self._most = self._writes.max_message_bytes - _OVERHEAD
        self._fits, self._complaint = _result_check(settings, self._writes)
        self._source = Source(
            settings,
            group.name,
            place.topics,
            group.batch,
            place.admin,
            stopping=place.stopping,
            on_lost=place.metrics.lost.inc,
            client=clients.named(group.name, group.rank, self._version),
        )
        self._decoder = Decoder(
            settings, place.topology, group, place.topics, self._source.topic_id
        )
        self._producer: Producer | None = None
        self._in_transaction = False
        self._second = ThreadPoolExecutor(1, "offsets")
        self._measured = 0.0
        self._started = 0.0  # the batch at hand
        self._counts: dict[str, int] = {}

    def open(self) -> None:
        if self._producer is None:
            # Brokers hold whole batches against a topic's limit, not single messages.
            smallest = min(topic.max_message_bytes for topic in (self._writes, self._letters))
            conf = clients.producer_conf(
                self._place.settings,
                **{
                    "transactional.id": self._place.transactional_id,
                    "batch.size": min(smallest, _BATCH_BYTES),
                },
            )
            self._producer = Producer(conf)
        # Ends what a predecessor in this slot left open.
        with self._place.watchdog.step("init_transactions", STEP_SECONDS):
            self._producer.init_transactions(_TRY_SECONDS)
        self._source.open()

    def work(self) -> bool:
        cut = self._source.take()
        if cut is None:
            self._measure()
            return False
        self._started = time.perf_counter()
        try:
            self._commit(cut, self._answers(cut) if cut.messages else ())
        except BaseException:
            self._rollback(cut)
            raise
        if cut.messages:
            self._limits = self._limits_after
            self._place.metrics.committed(self._counts, time.perf_counter() - self._started)
            self._committed()
        self._measure()
        return bool(cut.messages)

    def _waiting(self) -> int:
        return sum(self._source.lag().values())

    def rest(self, seconds: float) -> None:
        self._source.rest(seconds)

    def close(self) -> None:
        self._source.close()

    # -- commit: the whole order of it

    def _commit(self, cut: Cut, outgoing: Iterable[Outgoing]) -> None:
        """Everything or nothing. `cut.member` lets the broker refuse a member that is gone."""
        producer = self._producer
        assert producer is not None
        with self._place.watchdog.step("commit", STEP_SECONDS):
            producer.begin_transaction()
            self._in_transaction = True
            # The offsets belong to the transaction wherever they come in it. They take two round
            # trips, as long as the messages take to be written: so they go side by side.
            with self._beside(lambda: self._send_offsets(cut)):
                for topic, key, value, headers in outgoing:
                    try:
                        producer.produce(topic, value, key, headers=headers)
                    except BufferError:
                        self._produce_when_possible(topic, key, value, headers)
            self._insist(lambda: producer.commit_transaction(_TRY_SECONDS))
            self._in_transaction = False
        self._source.done(cut)

    def _send_offsets(self, cut: Cut) -> None:
        producer = self._producer
        assert producer is not None
        offsets = cut.offsets()
        self._insist(
            lambda: producer.send_offsets_to_transaction(offsets, cut.member, _TRY_SECONDS)
        )

    def _rollback(self, cut: Cut) -> None:
        """Undoes the transaction, if one is open, and has the cut read again."""
        producer = self._producer
        assert producer is not None
        self._place.metrics.rollbacks.inc()
        if self._in_transaction:
            with self._place.watchdog.step("abort", STEP_SECONDS):
                self._insist(lambda: producer.abort_transaction(_TRY_SECONDS))
            self._in_transaction = False
        self._source.rewind(cut)

    def _produce_when_possible(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        assert self._producer is not None
        while True:
            self._producer.poll(0.1)  # its queue is full; the watchdog sees to the rest
            with suppress(BufferError):
                self._producer.produce(topic, value, key, headers=headers)
                return

    def _insist(self, call: Callable[[], object]) -> None:
        """Makes a call again while it fails in a way that passes; the watchdog ends that."""
        while True:
            try:
                call()
                return
            except KafkaException as error:
                found = kafka_error(error)
                if found is None or found.txn_requires_abort() or not found.retriable():
                    raise
                time.sleep(0.1)

    @contextmanager
    def _beside(self, call: Callable[[], None]) -> Iterator[None]:
        """Makes a call in another thread while the block runs; its error is the block's."""
        done = self._second.submit(call)
        try:
            yield
        except BaseException:
            wait([done])
            raise
        done.result()

    # -- answers

    def _answers(self, cut: Cut) -> Iterator[Outgoing]:
        """What is to be written for a batch. Everything slow is done before this returns; the rest
        is done while librdkafka sends what came before."""
        inputs = self._decoder.decode(cut.messages)
        asked = [input.record for input in inputs if input.answer is None and input.fault is None]
        return self._write(cut, inputs, iter(self._ask(asked)))

    def _write(
        self, cut: Cut, inputs: list[Input], verdicts: Iterator[Outcome]
    ) -> Iterator[Outgoing]:
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        rank, outputs, written = self._group.rank, self._outputs, self._written
        letters: list[DeadLetter] = []
        counts = dict.fromkeys(_COUNTED.values(), 0)
        platforms: dict[str, Counter[str]] = {}
        for input in inputs:
            message, record, answer, head, position, fault, trace = input
            if fault is not None:
                letters.append(DeadLetter(input, "Undecodable", fault))
                continue
            verdict = answer or next(verdicts)
            topic = outputs.get(position.partition(":")[0])
            if topic is None:  # done again from a topic that this group does not read
                letters.append(DeadLetter(input, "Undecodable", f"no topic for {position}"))
                continue
            value, (kind, _, reason, parts) = written(record, verdict, at)
            counts[_COUNTED[kind]] += 1
            mine = platforms.get(record.platform)
            if mine is None:
                mine = platforms[record.platform] = Counter()
            mine[_COUNTED[kind]] += 1
            if kind == "dead":
                letters.append(DeadLetter(input, (reason or "").partition(":")[0], reason or ""))
            if record.parts and kind not in ("ok", "deleted"):
                parts = record.parts  # what was not asked for is left as it is
            own = ",".join(parts) if parts else ""
            headers: Headers = [(HEADER, f"{head};{rank};{own};{position}".encode())]
            if trace is not None:
                headers.append((TRACEPARENT, trace))
            yield topic, message.key(), value, headers
        counts["dead"] = len(letters)
        limits = copy(self._limits)  # counted when the batch is committed, however often tried
        limits.add(len(inputs), [letter.reason for letter in letters])
        for letter in letters:
            yield self._letter(letter)
        yield self._event(cut, at, counts, platforms)
        self._counts, self._limits_after = counts, limits

    def _ask(self, records: list[Record]) -> list[Outcome]:
        """One outcome each. What makes the stage raise is found by halving the batch."""
        outcomes: list[Outcome] = []
        waiting = [records] if records else []
        guilty = 0
        while waiting:
            part = waiting.pop()
            try:
                outcomes += self._asked(part)
            except (Retry, Pause, MemoryError):
                raise
            except Exception as error:
                if len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                    continue
                if not guilty:
                    log.exception("a record makes the stage raise", record=part[0].id)
                guilty += 1
                if guilty > self._limits.room:
                    reason = f"{type(error).__name__}: {error}"
                    self._limits.add(len(outcomes) + 1, [reason] * guilty)
                outcomes.append(_guilty(error))
        return outcomes

    def _asked(self, records: list[Record]) -> Sequence[Outcome]:
        outcomes = self._process(records)
        name = self._group.module
        if not isinstance(outcomes, list | tuple):
            raise TypeError(f"{name} gave a {type(outcomes).__name__} instead of a list")
        if len(outcomes) != len(records):
            raise ValueError(f"{name} gave {len(outcomes)} outcomes for {len(records)} records")
        wrong = set(map(type, outcomes)) - {Outcome}
        if wrong:
            raise TypeError(f"{name} gave a {wrong.pop().__name__} instead of an Outcome")
        return outcomes

    def _written(self, record: Record, outcome: Outcome, at: str) -> tuple[bytes, Outcome]:
        """The envelope's bytes, and the outcome that it holds: one that cannot be written, or does
        not fit its schema, is dead."""
        kind, result, reason, _ = outcome
        envelope: dict[str, Any] = {
            "id": record.id,
            "kind": record.kind,
            "platform": record.platform,
            "stage": self._group.short,
            "outcome": kind,
            "version": self._version,
            "at": at,
        }
        if kind != "ok":
            if reason is not None:
                envelope["reason"] = reason = _plain(reason)
            return orjson.dumps(envelope), Outcome(kind, None, reason, outcome.parts)
        envelope["result"] = result
        try:
            value = orjson.dumps(envelope)
            if self._fits(result):
                if len(value) < self._most:
                    return value, outcome
                fault = f"{len(value)} bytes are more than {self._writes.name} takes"
            else:
                fault = self._complaint(result) or ""
        except (TypeError, ValueError) as error:
            fault = f"it is not JSON: {error}"
        return self._written(record, dead(f"{_RESULT}: {fault}"), at)

    def _letter(self, letter: DeadLetter) -> Outgoing:
        """The original bytes, with the reason in headers."""
        input, message = letter.input, letter.input.message
        place = Position.parse(input.input)
        reason = letter.reason
        value = message.value()
        own = (HEADER, _ERRORS)
        came: Any = message.headers()
        kept = [(name, content) for name, content in came or () if not name.startswith(own)]
        size = len(value or b"") + len(message.key() or b"")
        size += sum(len(name) + len(content or b"") for name, content in kept)
        if size > self._letters.max_message_bytes - 4096:
            value, kept = None, []
            reason += f" (its {size} bytes are left out; they stand at the place named here)"
        details = {
            "topic": place.topic,
            "partition": str(place.partition),
            "offset": str(place.offset),
            "connector.name": self._group.short,
            "stage": self._group.short,
            "exception.class.name": letter.error,
            "exception.message": reason,
        }
        headers: Headers = kept + [
            (_ERRORS + name, text.encode()) for name, text in details.items()
        ]
        if input.head:
            parts = ",".join(input.record.parts)
            headers.append((HEADER, input.header(self._group.rank, parts)))
        return (self._letters.name, message.key(), value, headers)

    def _event(
        self, cut: Cut, at: str, counts: dict[str, int], platforms: dict[str, Counter[str]]
    ) -> Outgoing:
        group = self._group.short
        inputs = [
            {"topic": topic, "partition": partition, "from": cut.before[topic, partition], "to": to}
            for (topic, partition), to in sorted(cut.after.items())
        ]
        name = orjson.dumps([group, inputs, at]).decode()
        event = {
            "event_id": str(uuid.uuid5(_NAMESPACE, name)),
            "group": group,
            "stage": group,
            "worker": self._place.worker,
            "at": at,
            "version": self._version,
            "records": len(cut.messages),
            **counts,
            "platforms": {name: dict(own) for name, own in platforms.items()},
            "seconds": round(time.perf_counter() - self._started, 6),
            "inputs": inputs,
        }
        return (self._status, group.encode(), orjson.dumps(event), [])

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured >= _METRIC_SECONDS and self._place.metrics.port is not None:
            self._measured = now
            self._place.metrics.positions(self._source.assigned(), self._source.lag())


def _result_check(
    settings: Settings, topic: Topic
) -> tuple[Callable[[Any], bool], Callable[[Any], str | None]]:
    """Whether a result fits the schema of the topic that it goes to, and if not, why.

    The envelope around it is ours and always fits, so the part on `result` is all that is asked.
    """
    if topic.schema is None:
        return lambda result: isinstance(result, dict), lambda result: "it is not a JSON object"
    schema = schemas.load(settings, topic.schema)
    part = schema.get("properties", {}).get("result", {})
    shared: dict[str, Any] = {k: schema[k] for k in ("$schema", "$defs") if k in schema}
    validator = schemas.compiled({"type": "object", **shared, **part})
    return validator.is_valid, lambda result: schemas.complaint(validator, result)


def _guilty(error: Exception) -> Outcome:
    return dead(f"{type(error).__name__}: {error}")


def _plain(reason: object) -> str:
    """One line of valid text, not too long."""
    return " ".join(str(reason).encode(errors="replace").decode().split())[:400]
