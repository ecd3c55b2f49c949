"""Messages to rows. Pure: a batch of messages in, what it says in the end out.

Of several messages about one thing the batch keeps what stands after all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from confluent_kafka import Message

from consumers.postgres import graph as graphs
from consumers.postgres.graph import Came
from consumers.postgres.merge import NO_WHOLE, Place, State, Vector, merge
from headrace import decisions
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stream import schemas
from headrace.stream.decode import Fault
from headrace.stream.topology import Group, Topic, Topology
from headrace.stream.wire import CE_SOURCE, HEADER, PLACE, Origin, run_of
from headrace.vectors import space, unpacked

OUTCOMES = frozenset({"ok", "drop", "dead", "deleted", "deferred"})
VECTORS = "embeddings"  # the facet whose results carry vectors
_ERRORS = "__connect.errors."
_REASON = 500  # characters
_KEY = 500  # characters of a message's key, as tables have it
_LAST_MS = 253_402_214_400_000  # 9999-12-31: a foreign message may name any time


class Raw(NamedTuple):
    """A record's newest revision in the batch; `text` is the message's value."""

    value: Mapping[str, Any]
    text: bytes
    topic: str
    place: Place
    run: str


class Letter(NamedTuple):
    """A row of dead_letters. `at` in milliseconds. `stood`: the incarnation of the topic and the
    message's own time, of this group's own letters."""

    group: str
    topic: str
    partition: int
    offset: int
    reason: str
    error: str
    at: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, str]
    stood: tuple[str, int] | None = None


class Redone(NamedTuple):
    """A message of this group's redo topic, and where it stood first; it may have died again."""

    group: str
    key: str
    topic: str
    partition: int
    offset: int
    dead: bool


class Receipt(NamedTuple):
    value: Mapping[str, Any]
    place: Place


class Decision(NamedTuple):
    """A person's answer; without a value it is taken back. `at` as PostgreSQL reads it."""

    value: Any
    at: str
    by: str | None
    place: Place


@dataclass(slots=True)
class Batch:
    """What a batch of messages says. `own` are the letters of this group among `letters`, `last`
    the last place of an outcome where several of one record and stage came, `graphs` the outcomes
    of stages whose results are graphs, one by one."""

    records: dict[str, Raw] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], State] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    redone: list[Redone] = field(default_factory=list)
    last: dict[tuple[str, str], Place] = field(default_factory=dict)
    graphs: dict[tuple[str, str], list[Came]] = field(default_factory=dict)
    decisions: dict[tuple[str, str], Decision] = field(default_factory=dict)


Read = Callable[[Message, Batch], None]


class Reader:
    """Reads what the group reads. `topic_id` gives Kafka's UUID of a topic, by full name."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        group: Group,
        topic_id: Callable[[str], str],
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._group = group
        self._topic_id = topic_id
        self._checks: dict[str, Callable[[Any], None]] = {}
        self._reads: dict[str, Read] = {
            topic.name: self._read_for(topic, topic_id) for topic in group.reads
        }
        self._reads[group.redo.name] = self._redo
        self._again: dict[str, Read] = {}  # as `_reads`, of messages that stood in `_incarnation`
        self._incarnation = ""

    def read(self, messages: Iterable[Message]) -> Batch:
        batch = Batch()
        reads = self._reads
        for message in messages:
            try:
                reads[message.topic()](message, batch)  # type: ignore[index]
            except Fault as fault:
                self.bury(batch, message, "Undecodable", str(fault))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                # Nothing that a schema lets pass, but a topic may have none.
                self.bury(batch, message, type(error).__name__, f"it cannot be read: {error}")
        return batch

    def bury(self, batch: Batch, message: Message, error: str, reason: str) -> None:
        """Make a message a dead letter of this group's own, at the place where it stood first."""
        topic, partition, offset = str(message.topic()), _int(message.partition()), _offset(message)
        headers = _headers(message)
        stood: tuple[str, int] | None = None
        if topic == self._group.redo.name:
            origin = _origin(headers)
            if origin is not None:
                topic, partition, offset = _place(origin)
                stood = (origin.topic_id, origin.at)
            for name, content in () if origin is not None else headers:
                found = _unpacked(content) if name == HEADER else None
                if found is not None and _fits(found.input):
                    topic, partition, offset = found.input
            self._note_redone(batch, message, (topic, partition, offset), dead=True)
        elif topic in self._reads:
            stood = (self._topic_id(topic), message.timestamp()[1])
        reason = _printable(reason)[:_REASON]
        batch.own.append(reason)
        batch.letters.append(
            Letter(
                self._group.short,
                topic,
                partition,
                offset,
                reason,
                error,
                message.timestamp()[1],
                message.key(),
                message.value(),
                {_printable(name): _printable(content) for name, content in headers},
                stood,
            )
        )

    def _read_for(self, topic: Topic, topic_id: Callable[[str], str]) -> Read:
        if topic.is_raw:
            return self._raw(topic, topic_id)
        stage = self._topology.stage_of(topic)
        if stage is not None:
            return self._enriched(topic, stage, topic_id)
        if topic.short == "runs":
            return self._receipt(topic, topic_id)
        if topic.short == decisions.TOPIC:
            return self._decision(topic, topic_id)
        owner = self._topology.group_of(topic)
        if owner is None or topic != owner.dlt:
            raise HeadraceError(
                f"{self._group.short} reads {topic.short}, which no stage writes: take it out of"
                " its `reads` in topics.yaml"
            )
        return self._letter(owner.short)

    # -- one kind of topic each

    def _raw(self, topic: Topic, topic_id: Callable[[str], str]) -> Read:
        check, name = self._check(topic), topic.name

        def read(message: Message, batch: Batch) -> None:
            value, text = _json(message)
            check(value)
            run = ""
            for header, content in _headers(message):
                if header == CE_SOURCE:
                    run = _run(content)
            place = Place(
                topic_id(name),
                message.partition(),  # type: ignore[arg-type]
                message.offset(),  # type: ignore[arg-type]
                message.timestamp()[1],
            )
            _keep_record(batch, message, Raw(value, text, name, place, run))

        return read

    def _enriched(self, topic: Topic, stage: Group, topic_id: Callable[[str], str]) -> Read:
        check, name = self._check(topic), topic.name

        def read(message: Message, batch: Batch) -> None:
            value, _ = _json(message)
            check(value)
            lineage = _lineage(message)
            out = Place(
                topic_id(name),
                message.partition(),  # type: ignore[arg-type]
                message.offset(),  # type: ignore[arg-type]
                message.timestamp()[1],
            )
            _keep_outcome(batch, message, stage, value, lineage, out)

        return read

    def _receipt(self, topic: Topic, topic_id: Callable[[str], str]) -> Read:
        check, name = self._check(topic), topic.name

        def read(message: Message, batch: Batch) -> None:
            if message.value() is None:
                return  # a receipt that was removed; its row stays
            value, _ = _json(message)
            check(value)
            if value.get("type") != "run":
                return  # a progress note, of use to publishers only
            place = Place(
                topic_id(name), _int(message.partition()), _offset(message),
                message.timestamp()[1],
            )  # fmt: skip
            stands = batch.receipts.get(value["run"])
            if stands is None or place.after(stands.place):
                batch.receipts[value["run"]] = Receipt(value, place)

        return read

    def _decision(self, topic: Topic, topic_id: Callable[[str], str]) -> Read:
        check, name = self._check(topic), topic.name

        def read(message: Message, batch: Batch) -> None:
            place = Place(
                topic_id(name), _int(message.partition()), _offset(message),
                message.timestamp()[1],
            )  # fmt: skip
            key = message.key()
            about = decisions.parted(key if isinstance(key, bytes) else (key or "").encode())
            if about is None:
                raise Fault("its key is not <subject>/<action>")
            if message.value() is None:
                at = datetime.fromtimestamp(min(max(place.at, 0), _LAST_MS) / 1000, UTC)
                found = Decision(None, at.isoformat(), None, place)
            else:
                value, _ = _json(message)
                check(value)
                if (value["subject"], value["action"]) != about:
                    raise Fault("its key is not <subject>/<action>")
                found = Decision(value["value"], value["at"], value.get("by"), place)
            stands = batch.decisions.get(about)
            if stands is None or place.after(stands.place):
                batch.decisions[about] = found

        return read

    def _letter(self, group: str) -> Read:
        def read(message: Message, batch: Batch) -> None:
            headers = {_printable(name): _printable(content) for name, content in _headers(message)}
            said = {n.removeprefix(_ERRORS): v for n, v in headers.items() if n.startswith(_ERRORS)}
            try:
                partition, offset = int(said["partition"]), int(said["offset"])
                topic = said["topic"]
            except (KeyError, ValueError):
                raise Fault("it is no dead letter: its headers do not say where it stood") from None
            batch.letters.append(
                Letter(
                    group,
                    topic,
                    partition,
                    offset,
                    said.get("exception.message", ""),
                    said.get("exception.class.name", ""),
                    message.timestamp()[1],
                    message.key(),
                    message.value(),
                    headers,
                )
            )

        return read

    def _redo(self, message: Message, batch: Batch) -> None:
        """A message once more, as of the place where it stood first: with the headers that it had
        then and `hr_at`, or a raw record or an outcome with its lineage alone."""
        headers = _headers(message)
        if any(name == PLACE for name, _ in headers):
            origin = _origin(headers)
            if origin is None:
                raise Fault(f"its header {PLACE} cannot be read")
            place = _place(origin)
            self._incarnation = origin.topic_id
            self._read_again(place[0])(_Stood(message, place, origin.at), batch)  # type: ignore[arg-type]
            self._note_redone(batch, message, place)
            return
        root, run, input_rank, _, _, (name, partition, offset) = lineage = _lineage(message)
        topic = self._topology.by_name(name)
        stage = self._topology.stage_of(topic) if topic else None
        if topic is None or not (topic.is_raw or stage):
            raise Fault(f"its header {HEADER} names a topic that is not stored: {name}"[:_REASON])
        value, text = _json(message)
        self._check(topic)(value)
        if stage is None:
            _keep_record(batch, message, Raw(value, text, name, root, run))
            self._note_redone(batch, message, (name, partition, offset))
            return
        # What a store reads has the rank that it was written with; what its own input was is lost.
        out = Place(self._topic_id(name), partition, offset, message.timestamp()[1])
        known = lineage._replace(input_rank=0, rank=input_rank)
        _keep_outcome(batch, message, stage, value, known, out)
        self._note_redone(batch, message, (name, partition, offset))

    def _read_again(self, name: str) -> Read:
        if name not in self._again:
            topic = next((topic for topic in self._group.reads if topic.name == name), None)
            if topic is None:
                raise Fault(f"its header {PLACE} names a topic that is not read: {name}"[:_REASON])
            self._again[name] = self._read_for(topic, lambda _: self._incarnation)
        return self._again[name]

    def _note_redone(
        self, batch: Batch, message: Message, place: tuple[str, int, int], *, dead: bool = False
    ) -> None:
        key = message.key()
        name = key.decode(errors="replace") if isinstance(key, bytes) else key or ""
        batch.redone.append(Redone(self._group.short, _printable(name)[:_KEY], *place, dead))

    def _check(self, topic: Topic) -> Callable[[Any], None]:
        name = topic.schema
        if name is None:
            return _no_check
        if name not in self._checks:
            validator = schemas.validator(self._settings, name, tolerant=True)

            def check(value: Any) -> None:
                if not validator.is_valid(value):
                    raise Fault(
                        f"it does not fit its schema: {schemas.complaint(validator, value)}"
                    )

            self._checks[name] = check
        return self._checks[name]


class Lineage(NamedTuple):
    root: Place
    run: str
    input_rank: int
    rank: int
    parts: str
    input: tuple[str, int, int]


def _keep_record(batch: Batch, message: Message, raw: Raw) -> None:
    record_id = raw.value["id"]
    if message.key() != record_id.encode():
        raise Fault("its key is not the record's id")
    stands = batch.records.get(record_id)
    if stands is None or raw.place.after(stands.place):
        batch.records[record_id] = raw


def _keep_outcome(
    batch: Batch,
    message: Message,
    group: Group,
    value: Mapping[str, Any],
    lineage: Lineage,
    out: Place,
) -> None:
    stage, vector, graph = group.short, None, None
    record_id, outcome, result = value["id"], value["outcome"], value.get("result")
    if message.key() != record_id.encode():
        raise Fault("its key is not the record's id")
    if outcome not in OUTCOMES or value["stage"] != stage:
        raise Fault(f"it is no outcome of stage {stage}")
    if outcome != "ok":
        result = None
    elif not isinstance(result, dict):
        raise Fault("it is an outcome `ok` without a result")
    elif group.facet == VECTORS and "vector" in result:
        vector = _vector(result)
    elif group.facet == graphs.PERSONAS:
        if lineage.parts:
            raise Fault(f"an outcome of {stage} is whole, it has no parts")
        result, graph = graphs.taken(record_id, value["platform"], result)
    input_rank, parts = lineage.input_rank, None
    if lineage.parts:  # any whole outcome stands before them; not ok, they change nothing of it
        input_rank = NO_WHOLE
        if result is not None:
            order = [lineage.input_rank, lineage.rank, *out]
            parts = dict.fromkeys(lineage.parts.split(","), order)
            result = {name: result.get(name) for name in parts}
    state = State(
        record_id,
        stage,
        outcome,
        value.get("reason"),
        result,
        value["version"],
        lineage.rank,
        input_rank,
        lineage.root,
        lineage.input,
        out,
        value["at"],
        parts,
        None,
        lineage.root if outcome == "deleted" else None,
        vector,
    )
    key = (record_id, stage)
    if group.facet == graphs.PERSONAS:
        batch.graphs.setdefault(key, []).append(Came(state, graph))
    stands = batch.outcomes.get(key)
    if stands is None:
        batch.outcomes[key] = state
        return
    batch.outcomes[key] = merge(stands, state)
    last = batch.last.get(key, stands.out)
    batch.last[key] = out if out.after(last) else last


def _vector(result: dict[str, Any]) -> Vector:
    """Takes the vector out of a result: it has a table of its own."""
    model, dimensions, text = result["model"], result["dimensions"], result.pop("vector")
    try:
        return Vector(space(model, dimensions), dimensions, unpacked(text, dimensions))
    except ValueError as error:
        raise Fault(f"its vector cannot be read: {error}") from None


def _json(message: Message) -> tuple[Any, bytes]:
    text = message.value()
    if text is None:
        raise Fault("it has no value (a deletion is a record with `deleted: true`)")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Fault(f"its value is not JSON: {error}") from None
    if b"\\u0000" in text and _has_nul(value):
        raise Fault("it holds a NUL character, which PostgreSQL cannot store")
    return value, text


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in name or _has_nul(part) for name, part in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def _lineage(message: Message) -> Lineage:
    for name, content in _headers(message):
        if name == HEADER:
            found = _unpacked(content)
            if found is None:
                raise Fault(f"its header {HEADER} cannot be read")
            return found
    raise Fault(f"it has no header {HEADER}: it is not from one of our groups")


def _unpacked(packed: bytes | str | None) -> Lineage | None:
    """As `wire.Lineage.unpack`, in the shape of rows: a fifth of the time that a batch is read."""
    try:
        text = packed.decode() if isinstance(packed, bytes) else packed or ""
        revision, run, input_rank, rank, parts, position = text.split(";")
        topic_id, partition, offset, appended = revision.split(":")
        topic, input_partition, input_offset = position.rsplit(":", 2)
        lineage = Lineage(
            Place(topic_id, int(partition), int(offset), int(appended)),
            run,
            int(input_rank),
            int(rank),
            parts,
            (topic, int(input_partition), int(input_offset)),
        )
    except ValueError:  # UnicodeDecodeError is one
        return None
    # Names go into lines of COPY as they are; those that Kafka gives hold nothing else.
    names = topic_id + topic
    return lineage if names.isprintable() and "\\" not in names and "\0" not in run else None


class _Stood:
    """A message of the redo topic as it was read first; its bytes and headers are the same."""

    def __init__(self, message: Message, place: tuple[str, int, int], at: int) -> None:
        self.key, self.value, self.headers = message.key, message.value, message.headers
        self._place = place
        self._at = at

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._place[2]

    def timestamp(self) -> tuple[int, int]:
        return (1, self._at)


def _origin(headers: Iterable[tuple[str, bytes | str | None]]) -> Origin | None:
    """What `hr_at` says; None where there is none that can be read."""
    for name, content in headers:
        if name == PLACE:
            try:
                origin = Origin.unpack(content if isinstance(content, bytes) else b"")
            except ValueError:  # UnicodeDecodeError is one
                return None
            names = origin.topic_id + origin.position.topic
            plain = names.isprintable() and "\\" not in names  # they go into lines of COPY
            return origin if plain and _fits(_place(origin)) and abs(origin.at) < 2**62 else None
    return None


def _place(origin: Origin) -> tuple[str, int, int]:
    position = origin.position
    return (position.topic, position.partition, position.offset)


def _fits(place: tuple[str, int, int]) -> bool:
    """Whether a place that somebody names can be one, so that its dead letter can be written."""
    topic, partition, offset = place
    return len(topic) < 250 and partition < 2**31 and offset < 2**63


def _printable(content: bytes | str | None) -> str:
    """A header's content as text that PostgreSQL takes."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else content or ""
    return text.replace("\0", "\ufffd")


@lru_cache(maxsize=256)
def _run(source: bytes | str | None) -> str:
    return run_of(_printable(source))


def _headers(message: Message) -> list[tuple[str, bytes | str | None]]:
    try:
        return message.headers() or []  # type: ignore[return-value]
    except (UnicodeDecodeError, SystemError):
        return []  # names that are no text


def _int(number: int | None) -> int:
    return -1 if number is None else number


def _offset(message: Message) -> int:
    return _int(message.offset())


def _no_check(value: Any) -> None:
    if not isinstance(value, dict):
        raise Fault("its value is not a JSON object")
