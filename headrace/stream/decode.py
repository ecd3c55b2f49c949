"""Messages to records. Whatever cannot be one is a fault: it goes to the dead letters, as it came.

Three kinds of message reach a group: raw records, envelopes of other stages, and on `<group>.redo`
either of the two once more, with the lineage that it first had.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import orjson
from confluent_kafka import Message

from headrace.config import Settings
from headrace.stream import schemas
from headrace.stream.stage import Outcome, Record, deferred, drop
from headrace.stream.topology import Group, Topic, Topology
from headrace.stream.wire import CE_SOURCE, HEADER, TRACEPARENT, Lineage, run_of

DELETED = Outcome("deleted")
UPSTREAM = drop("upstream")
NOT_YET = deferred("upstream")

_OUTCOMES = {"drop": UPSTREAM, "dead": UPSTREAM, "deleted": DELETED, "deferred": NOT_YET}
_IDENTITY = ("id", "kind", "platform")
_LINEAGE = re.compile(
    r"([^;:]+:\d+:\d+:-?\d+;[^;]*);(\d+);(\d+);([^;]*);(([^;]+):\d+:\d+)", re.ASCII
)
_SHOWN = 300  # characters of a reason

_new: Any = tuple.__new__  # makes a NamedTuple in half the time of calling it

Check = tuple[Callable[[Any], bool], Callable[[Any], str]]  # does it fit, and if not, why


class Input(NamedTuple):
    """A message as read.

    record   what a stage is asked about. Of a fault it says nothing
    answer   an outcome that needs no stage: deleted, or what an upstream outcome leads to
    head     "revision;run;input rank" of the header `hr` that an outcome gets; a fault's may be
             empty
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


Reader = Callable[[Message], Input]


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
        self._checks: dict[str, Check] = {}
        self._raw = {topic.name: self._raw_record(topic) for topic in topics if topic.is_raw}
        self._runs: dict[bytes, str] = {}

    def decode(self, messages: Iterable[Message]) -> list[Input]:
        """One Input a message, in order."""
        readers: dict[Any, Reader] = {self._redo: self._read_redo}
        inputs = []
        for message in messages:
            topic: Any = message.topic()
            if topic not in readers:
                readers[topic] = self._reader(topic)  # a batch is of one incarnation of a topic
            try:
                inputs.append(readers[topic](message))
            except Fault as fault:
                inputs.append(self._faulty(message, str(fault)))
        return inputs

    def _faulty(self, message: Message, fault: str) -> Input:
        """What is no record may be one when it is done again, once the schema is mended, say: so
        its revision is told where it is known, and the place where it stood first."""
        topic: Any = message.topic()
        head, position = "", f"{topic}:{message.partition()}:{message.offset()}"
        if topic in self._raw:
            place = f"{message.partition()}:{message.offset()}:{message.timestamp()[1]}"
            run = self._run(_header(message, CE_SOURCE))
            head = f"{self._topic_id(topic)}:{place};{run};0"
        else:
            with suppress(Fault):
                was = _lineage(message)
                if topic != self._redo:
                    head = _behind(was)
                elif self._topology.by_name(was.topic) is not None and len(was.position) < 300:
                    head, position = was.head, was.position
        return Input(message, NO_RECORD, None, head, position, fault[:_SHOWN])

    def _reader(self, topic: str) -> Reader:
        if topic not in self._raw:
            return _read_envelope
        record_of, run_of, runs = self._raw[topic], self._run, self._runs
        root, place = f"{self._topic_id(topic)}:", f"{topic}:"

        def read(message: Message) -> Input:
            record, answer = record_of(message)
            run, trace = "", None
            headers: Any = message.headers()
            for name, content in headers or ():
                if name == CE_SOURCE:
                    run = runs.get(content) or run_of(content)
                elif name == TRACEPARENT:
                    trace = content
            at = f"{message.partition()}:{message.offset()}"
            head = f"{root}{at}:{message.timestamp()[1]};{run};0"
            input: Input = _new(Input, (message, record, answer, head, f"{place}{at}", None, trace))
            return input

        return read

    def _read_redo(self, message: Message) -> Input:
        was = _lineage(message)
        first = self._topology.by_name(was.topic)
        if first is None:
            raise Fault(f"its header {HEADER} names an unknown topic: {was.topic}")
        if first.is_raw:
            record, answer = self._raw_record(first)(message)
        else:
            record, answer = _enveloped(message)
        if was.parts:
            record = record._replace(parts=tuple(was.parts.split(",")))
        return Input(message, record, answer, was.head, was.position, None, was.trace)

    def _raw_record(self, topic: Topic) -> Callable[[Message], tuple[Record, Outcome | None]]:
        """Reads a raw topic's values: the record, and its answer where it is a deletion."""
        fits, complaint = self._check(topic)
        loads = orjson.loads

        def read(message: Message) -> tuple[Record, Outcome | None]:
            value: Any = message.value()
            try:
                value = loads(value)
            except orjson.JSONDecodeError as error:
                raise _not_json(value, error) from None
            if not fits(value):
                raise Fault(complaint(value))
            id = value["id"]
            if message.key() != id.encode():
                raise Fault(_wrong_key(message))
            record: Record = _new(Record, (id, value["kind"], value["platform"], value, ()))
            return record, DELETED if "deleted" in value and value["deleted"] is True else None

        return read

    def _check(self, topic: Topic) -> Check:
        name = topic.schema
        if name is None:
            return _has_shape, _misshapen
        if name not in self._checks:
            validator = schemas.validator(self._settings, name, tolerant=True)
            self._checks[name] = (validator.is_valid, partial(_misfit, validator))
        return self._checks[name]

    def _run(self, source: bytes | None) -> str:
        """The run that a ce_source names; a few runs make up a corpus, so they are remembered."""
        run = run_of((source or b"").decode(errors="replace"))
        if len(self._runs) > 1000:
            self._runs.clear()
        self._runs[source or b""] = run = "" if ";" in run else run
        return run


def _read_envelope(message: Message) -> Input:
    was = _lineage(message)
    record, answer = _enveloped(message)
    position = f"{message.topic()}:{message.partition()}:{message.offset()}"
    return Input(message, record, answer, _behind(was), position, None, was.trace)


def _behind(was: _Packed) -> str:
    """The head of what comes of an envelope: the rank that it was written with is our input's."""
    return f"{was.head.rpartition(';')[0]};{was.rank}"


def _enveloped(message: Message) -> tuple[Record, Outcome | None]:
    value: Any = message.value()
    try:
        value = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _not_json(value, error) from None
    if not _has_shape(value):
        raise Fault(_misshapen(value))
    outcome, result = value.get("outcome"), value.get("result")
    answer = None
    if outcome != "ok":
        answer, result = _OUTCOMES.get(str(outcome)), {}
        if answer is None:
            raise Fault(f"it is no outcome of a stage (outcome: {outcome!s:.50})")
    elif not isinstance(result, dict):
        raise Fault("it is an outcome `ok` without a result")
    record = Record(value["id"], value["kind"], value["platform"], result)
    if message.key() != record.id.encode():
        raise Fault(_wrong_key(message))
    return record, answer


class _Packed(NamedTuple):
    """What a reader needs of `hr`: "revision;run;input rank", rank, names of parts,
    "topic:partition:offset"."""

    head: str
    rank: str
    parts: str
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
            trace = content
    if packed is None:
        raise Fault(f"it has no header {HEADER}: it is not from one of our groups")
    found = _LINEAGE.fullmatch(packed.decode(errors="replace"))
    if found is None:
        raise Fault(f"its header {HEADER} cannot be read")
    root, input_rank, rank, parts, position, topic = found.groups()
    return _Packed(f"{root};{input_rank}", rank, parts, position, topic, trace)


def _not_json(value: bytes | None, error: orjson.JSONDecodeError) -> Fault:
    if value is None:
        return Fault("it has no value (a deletion is a record with `deleted: true`)")
    return Fault(f"its value is not JSON: {error}")


def _has_shape(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) and value[name] for name in _IDENTITY
    )


def _misshapen(value: Any) -> str:
    if not isinstance(value, dict):
        return "its value is not a JSON object"
    return f"it needs {', '.join(_IDENTITY)}: {value!s:.100}"


def _misfit(validator: schemas.Validator, value: Any) -> str:
    return f"it does not fit its schema: {schemas.complaint(validator, value)}"


def _wrong_key(message: Message) -> str:
    return "its key is not the record's id" if message.key() else "it has no key"


def _header(message: Message, wanted: str) -> bytes | None:
    headers: Any = message.headers()
    return next((content for name, content in headers or () if name == wanted), None)
