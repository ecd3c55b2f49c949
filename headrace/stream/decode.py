"""Messages to records. Whatever cannot be one is a fault: it goes to the dead letters, as it came.

Three kinds of message reach a group: raw records, envelopes of other stages, and on `<group>.redo`
either of the two once more, with the lineage that it first had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import orjson
from confluent_kafka import Message

from headrace.config import Settings
from headrace.stream import schemas
from headrace.stream.stage import Outcome, Record, deferred, drop
from headrace.stream.topology import Group, Topic, Topology
from headrace.stream.wire import CE_SOURCE, HEADER, TRACEPARENT, Lineage

DELETED = Outcome("deleted")
UPSTREAM = drop("upstream")
NOT_YET = deferred("upstream")

_OUTCOMES = {"drop": UPSTREAM, "dead": UPSTREAM, "deleted": DELETED, "deferred": NOT_YET}
_LINEAGE = re.compile(
    r"([^;:]+:\d+:\d+:-?\d+;[^;]*);(\d+);(\d+);[^;]*;((.+):\d+:\d+)", re.ASCII | re.DOTALL
)
_SHOWN = 300  # characters of a reason


class Input(NamedTuple):
    """A message as read.

    record   what a stage is asked about; without a value where `answer` stands already. Of a fault
             it says nothing.
    answer   an outcome that needs no stage: deleted, or what an upstream outcome leads to
    head     "revision;run;input rank" of the header `hr` that an outcome gets
    input    "topic:partition:offset" where the message stood first; the header's end
    fault    why this is no record; it has a dead letter and no outcome
    trace    the message's traceparent, if one came
    """

    message: Message
    record: Record
    answer: Outcome | None
    head: str
    input: str
    fault: str | None = None
    trace: bytes | None = None

    def header(self, rank: int, parts: str = "") -> bytes:
        """The header `hr` of this input's outcome."""
        return f"{self.head};{rank};{parts};{self.input}".encode()

    def lineage(self, rank: int = 0) -> Lineage:
        return Lineage.unpack(self.header(rank))


class Fault(Exception):
    """Why a message is no record."""


NO_RECORD = Record("", "", "", {})


class Decoder:
    """Reads what one group reads. `topic_id` gives Kafka's UUID of a topic, by full name."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        group: Group,
        topics: Iterable[Topic],
        topic_id: Callable[[str], str],
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._topic_id = topic_id
        self._redo = group.redo.name
        self._checks: dict[str, Callable[[Any], None]] = {}
        self._raw = {topic.name: self._check(topic) for topic in topics if topic.is_raw}

    def decode(self, messages: Iterable[Message]) -> list[Input]:
        raw = {topic: (check, self._topic_id(topic)) for topic, check in self._raw.items()}
        inputs = []
        for message in messages:
            try:
                known = raw.get(message.topic())  # type: ignore[arg-type]
                if known is not None:
                    inputs.append(_read_raw(message, *known))
                elif message.topic() == self._redo:
                    inputs.append(self._read_redo(message))
                else:
                    inputs.append(_read_envelope(message))
            except Fault as fault:
                inputs.append(_faulty(message, str(fault)))
        return inputs

    def _read_redo(self, message: Message) -> Input:
        was = _lineage(message)
        first = self._topology.by_name(was.topic)
        if first is None:
            raise Fault(f"its header {HEADER} names an unknown topic: {was.topic}")
        value = _json(message)
        if first.is_raw:
            self._check(first)(value)
            record, answer = _raw_record(message, value)
        else:
            record, answer = _enveloped(message, value)
        return Input(message, record, answer, was.head, was.position, None, was.trace)

    def _check(self, topic: Topic) -> Callable[[Any], None]:
        name = topic.schema
        if name is None:
            return _check_shape
        if name not in self._checks:
            self._checks[name] = _schema_check(
                schemas.validator(self._settings, name, tolerant=True)
            )
        return self._checks[name]


def _read_raw(message: Message, check: Callable[[Any], None], topic_id: str) -> Input:
    value = _json(message)
    check(value)
    record, answer = _raw_record(message, value)
    run, trace = "", None
    headers: Any = message.headers()
    for name, content in headers or ():
        if name == CE_SOURCE:
            run = _run(content)
        elif name == TRACEPARENT:
            trace = _bytes(content)
    at = f"{message.partition()}:{message.offset()}"
    return Input(
        message,
        record,
        answer,
        f"{topic_id}:{at}:{message.timestamp()[1]};{run};0",
        f"{message.topic()}:{at}",
        None,
        trace,
    )


def _read_envelope(message: Message) -> Input:
    was = _lineage(message)
    record, answer = _enveloped(message, _json(message))
    # The rank that it was written with is the rank of our input.
    head = f"{was.head.rpartition(';')[0]};{was.rank}"
    position = f"{message.topic()}:{message.partition()}:{message.offset()}"
    return Input(message, record, answer, head, position, None, was.trace)


def _raw_record(message: Message, value: dict[str, Any]) -> tuple[Record, Outcome | None]:
    record = Record(value["id"], value["kind"], value["platform"], value)
    if message.key() != record.id.encode():
        raise Fault(_wrong_key(message))
    return record, DELETED if value.get("deleted") is True else None


def _enveloped(message: Message, value: dict[str, Any]) -> tuple[Record, Outcome | None]:
    _check_shape(value)
    outcome, result = value.get("outcome"), value.get("result")
    answer = None
    if outcome != "ok":
        if outcome not in _OUTCOMES:
            raise Fault(f"it is no outcome of a stage (outcome: {str(outcome)[:50]})")
        answer, result = _OUTCOMES[outcome], {}
    elif not isinstance(result, dict):
        raise Fault("it is an outcome `ok` without a result")
    record = Record(value["id"], value["kind"], value["platform"], result)
    if message.key() != record.id.encode():
        raise Fault(_wrong_key(message))
    return record, answer


class _Packed(NamedTuple):
    """What a reader needs of `hr`: "revision;run;input rank", rank, "topic:partition:offset"."""

    head: str
    rank: str
    position: str
    topic: str
    trace: bytes | None


def _lineage(message: Message) -> _Packed:
    packed = trace = None
    headers: Any = message.headers()
    for name, content in headers or ():
        if name == HEADER:
            packed = content
        elif name == TRACEPARENT:
            trace = _bytes(content)
    if packed is None:
        raise Fault(f"it has no header {HEADER}: it is not from one of our groups")
    found = _LINEAGE.fullmatch(_bytes(packed).decode(errors="replace"))
    if found is None:
        raise Fault(f"its header {HEADER} cannot be read")
    root, input_rank, rank, position, topic = found.groups()
    return _Packed(f"{root};{input_rank}", rank, position, topic, trace)


def _bytes(content: str | bytes | None) -> bytes:
    return content.encode() if isinstance(content, str) else content or b""


def _json(message: Message) -> Any:
    value = message.value()
    if value is None:
        raise Fault("it has no value (a deletion is a record with `deleted: true`)")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Fault(f"its value is not JSON: {error}") from None


def _schema_check(validator: schemas.Validator) -> Callable[[Any], None]:
    is_valid = validator.is_valid

    def check(value: Any) -> None:
        if not is_valid(value):
            raise Fault(f"it does not fit its schema: {schemas.complaint(validator, value)}")

    return check


def _check_shape(value: Any) -> None:
    if not isinstance(value, dict):
        raise Fault("its value is not a JSON object")
    for name in ("id", "kind", "platform"):
        if not isinstance(value.get(name), str) or not value[name]:
            raise Fault(f"it has no {name}")


def _wrong_key(message: Message) -> str:
    return "it has no key" if not message.key() else "its key is not the record's id"


def _run(source: bytes | str | None) -> str:
    text = _bytes(source).decode(errors="replace")
    run = text.removeprefix("/runs/")
    return run if run != text and ";" not in run else ""


def _faulty(message: Message, fault: str) -> Input:
    position = f"{message.topic()}:{message.partition()}:{message.offset()}"
    return Input(message, NO_RECORD, None, "", position, fault[:_SHOWN])


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Outcomes by the names that status events use."""
    found = dict.fromkeys(("ok", "dropped", "dead", "deleted", "deferred"), 0)
    for outcome in outcomes:
        found["dropped" if outcome.kind == "drop" else outcome.kind] += 1
    return found
