"""What messages carry besides their value, and the order in which versions of a record stand.

Raw topics carry CloudEvents 1.0 attributes as headers (binary mode). Everything that groups write
(`enriched.*`, `*.redo`) carries one packed header, `hr`, because headers cost.

CloudEvents ↔ hr: ce_source "/runs/<run>" ↔ run; ce_id "<file>:<row>" stays with the raw message,
which `revision` names.
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER = "hr"
PLACE = "hr_at"  # on a store's redo topic, beside the headers that the message first had
CE_ID, CE_SOURCE, CE_TYPE, CE_SPEC = "ce_id", "ce_source", "ce_type", "ce_specversion"
TRACEPARENT = "traceparent"


@dataclass(frozen=True, slots=True)
class Revision:
    """Which raw version of a record: where its message stands in its raw topic.

    `topic_id` is Kafka's UUID of the topic's incarnation (22 characters of base64), `appended` the
    log append time in milliseconds. Within one incarnation offsets decide (a key has one
    partition); across incarnations the append time does.
    """

    topic_id: str
    partition: int
    offset: int
    appended: int

    def __str__(self) -> str:
        return f"{self.topic_id}:{self.partition}:{self.offset}:{self.appended}"

    @classmethod
    def parse(cls, text: str) -> Revision:
        topic_id, partition, offset, appended = text.split(":")
        return cls(topic_id, int(partition), int(offset), int(appended))


@dataclass(frozen=True, slots=True)
class Position:
    """Where a message stands: topic (full name), partition, offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        topic, partition, offset = text.rsplit(":", 2)
        return cls(topic, int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the header `hr` says.

    revision    root revision of the record
    run         the publish that brought that revision; empty if unknown
    input_rank  rank of the outcome that was read; 0 for a raw input
    rank        own rank of the group's version; 0 on a redo topic
    parts       names of the parts that this outcome holds; empty for a whole outcome
    input       where the input stood first (for redone work, not the redo topic)
    """

    revision: Revision
    run: str
    input_rank: int
    rank: int
    parts: tuple[str, ...]
    input: Position

    def pack(self) -> bytes:
        parts = ",".join(self.parts)
        return (
            f"{self.revision};{self.run};{self.input_rank};{self.rank};{parts};{self.input}"
        ).encode()

    @classmethod
    def unpack(cls, packed: bytes) -> Lineage:
        """Raises ValueError where the bytes are not such a header."""
        revision, run, input_rank, rank, parts, position = packed.decode().split(";")
        return cls(
            Revision.parse(revision),
            run,
            int(input_rank),
            int(rank),
            tuple(parts.split(",")) if parts else (),
            Position.parse(position),
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message stood that a store is to read once more, as the header `hr_at` says it:
    `topic:partition:offset;topic id;time in milliseconds`."""

    position: Position
    topic_id: str
    at: int

    def pack(self) -> bytes:
        return f"{self.position};{self.topic_id};{self.at}".encode()

    @classmethod
    def unpack(cls, packed: bytes) -> Origin:
        """Raises ValueError where the bytes are not such a header."""
        position, topic_id, at = packed.decode().split(";")
        return cls(Position.parse(position), topic_id, int(at))


def run_of(source: str) -> str:
    """The run id in a raw message's ce_source ("/runs/<run>"); empty if there is none."""
    return source.removeprefix("/runs/") if source.startswith("/runs/") else ""


def source_of(run: str) -> str:
    return f"/runs/{run}"
