"""What `publish` leaves on topic `runs`: receipts, progress notes and claims.

- A *receipt* (key: run id) says what a run is publishing, or published. Written beside the rows,
  every few seconds and at the end.
- A *note* (key: progress id) says how far one file has come. It is part of the same transaction as
  the rows that it counts, so the two can never disagree.
- A *claim* (key: progress id + ":claim") says which run works on a file now. A publisher that finds
  itself fenced reads it: somebody else's claim means that the file was taken over, its own that the
  broker only ended a transaction that took too long.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.stream import clients

TOPIC = "runs"
_NAMESPACE = uuid.UUID("0b6ab7b5-54b4-5f0e-9a3c-6d2c1f3b1c51")

_MOST_FILES = 2_000  # a receipt is one message; a larger run names so many of its files

Offsets = dict[str, dict[int, int]]  # topic → partition → offset


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_run() -> str:
    """A run id that sorts by time: 20260314-101502-1f3a9c."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


def progress_id(*parts: str) -> str:
    """The id of one file's progress: the same content, read in the same way, has the same id."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))


@dataclass(frozen=True, slots=True)
class Note:
    """How far a file has come.

    rows_done     rows of the file that are decided, from its beginning: published or rejected
    communities   communities sent, where they are made (after the last row)
    complete      the whole file is out; `limited`: it stopped where --limit said
    until         the row where --limit stops the publish that wrote this
    generation    0 for the first publish, one more for each --again
    rejects_file, rejects_bytes   where the rejects of these rows end
    """

    run: str
    file: str
    rows_done: int = 0
    published: int = 0
    rejected: int = 0
    communities: int = 0
    complete: bool = False
    limited: bool = False
    until: int | None = None
    generation: int = 0
    rejects_file: str | None = None
    rejects_bytes: int = 0

    def value(self) -> bytes:
        fields: dict[str, Any] = {"type": "progress"}
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        return orjson.dumps(fields)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Note:
        return cls(**{name: value[name] for name in cls.__slots__ if name in value})


@dataclass(frozen=True, slots=True)
class Claim:
    run: str
    token: str  # one attempt of one process

    def value(self) -> bytes:
        claim = {"type": "claim", "run": self.run, "token": self.token, "at": now()}
        return orjson.dumps(claim)


@dataclass
class FileEntry:
    """One file in a receipt. `rows` = `published` + `rejected`, all of this run alone."""

    path: str
    fingerprint: str = ""
    mapping: str = ""
    rows: int = 0
    published: int = 0
    rejected: int = 0
    state: str = "waiting"  # waiting, running, done, known, limited, stopped, superseded, failed
    communities: int = 0
    resumed_at: int = 0  # rows that an earlier publish had done
    rejects_file: str | None = None
    message: str | None = None

    def value(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Receipt:
    run: str
    kind: str
    platform: str | None
    started_at: str = field(default_factory=now)
    state: str = "running"  # running, done, stopped, failed
    ended_at: str | None = None
    files: list[FileEntry] = field(default_factory=list)
    starts: Offsets = field(default_factory=dict)
    ends: Offsets = field(default_factory=dict)
    superseded: str | None = None

    def value(self) -> dict[str, Any]:
        files = [file.value() for file in self.files[:_MOST_FILES]]
        receipt: dict[str, Any] = {
            "type": "run",
            "run": self.run,
            "state": self.state,
            "started_at": self.started_at,
            "kind": self.kind,
            "files": files,
            "records": sum(file.published + file.communities for file in self.files),
            "rejected": sum(file.rejected for file in self.files),
            "starts": _as_json(self.starts),
            "offsets": _as_json(self.ends),
        }
        if self.platform is not None:
            receipt["platform"] = self.platform
        if self.ended_at is not None:
            receipt["ended_at"] = self.ended_at
        if self.superseded is not None:
            receipt["superseded"] = self.superseded
        return receipt


def merge_ends(into: Offsets, more: Mapping[str, Mapping[int, int]]) -> None:
    for topic, partitions in more.items():
        ours = into.setdefault(topic, {})
        for partition, offset in partitions.items():
            ours[partition] = max(offset, ours.get(partition, 0))


def merge_starts(into: Offsets, more: Mapping[str, Mapping[int, int]]) -> None:
    for topic, partitions in more.items():
        ours = into.setdefault(topic, {})
        for partition, offset in partitions.items():
            ours[partition] = min(offset, ours.get(partition, offset))


class Ledger:
    """Reads and writes topic `runs` for one process.

    Reading goes on from where it was left, so that a look after each file's start costs only what
    was written since.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self.topic = topic
        self._settings = settings
        self._notes: dict[str, Note] = {}
        self._claims: dict[str, Claim] = {}
        self._receipts: dict[str, dict[str, Any]] = {}
        self._position = 0
        self._admin = clients.admin(settings)
        self._reader: Consumer | None = None
        self._writer: Producer | None = None

    # -- reading

    def refresh(self, patience: float = 60.0) -> None:
        """Read what was decided up to this moment.

        Reads to the high watermark, not only to the last stable offset: a note of the publisher
        before us may stand behind another publisher's open transaction, which ends soon, since
        notes are written last before a commit.
        """
        deadline = time.monotonic() + patience
        end = self._end(deadline)
        if end <= self._position:
            return
        reader = self._open_reader()
        reader.assign([TopicPartition(self.topic, 0, self._position)])
        try:
            while self._position < end:
                # `consume` would wait for its whole timeout at the end
                if (message := reader.poll(0.5)) is not None:
                    self._take(message)
                if time.monotonic() > deadline:
                    raise ServerUnavailable(
                        f"topic {self.topic} could not be read to its end within {patience:.0f} s"
                        " (a transaction of another publish may be open): try again"
                    )
        finally:
            reader.unassign()

    def note(self, progress: str) -> Note | None:
        return self._notes.get(progress)

    def claim_of(self, progress: str) -> Claim | None:
        return self._claims.get(progress)

    def receipt(self, run: str) -> dict[str, Any] | None:
        return self._receipts.get(run)

    def ends(self, topic: str, patience: float = 60.0) -> dict[int, int]:
        """Where a topic's partitions end now, everybody's open transactions included."""
        deadline = time.monotonic() + patience
        while True:
            try:
                asked = [(topic, partition) for partition in range(self._admin.topics()[topic])]
                ends = self._admin.ends(asked, stable=False)
                return {partition: offset for (_, partition), offset in ends.items()}
            except (KafkaException, KeyError):  # a broker that just starts knows no topics
                if time.monotonic() > deadline:
                    raise ServerUnavailable(f"Kafka does not tell where {topic} ends") from None
                time.sleep(0.2)

    def max_message_bytes(self, topic: str) -> int:
        """The largest message that the topic takes."""
        return int(self._admin.configs([topic])[topic]["max.message.bytes"])

    def _end(self, deadline: float) -> int:
        while True:
            try:
                return self._admin.ends([(self.topic, 0)], stable=False)[self.topic, 0]
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _open_reader(self) -> Consumer:
        if self._reader is None:
            self._reader = Consumer(
                clients.consumer_conf(
                    self._settings,
                    "publish-runs",
                    **{
                        "group.protocol": "classic",  # never joined; offsets are assigned
                        "isolation.level": "read_committed",
                        "enable.partition.eof": True,
                        "fetch.wait.max.ms": 50,
                        "auto.offset.reset": "earliest",  # the topic may have been compacted
                    },
                )
            )
        return self._reader

    def _take(self, message: Message) -> None:
        error = message.error()
        offset = message.offset()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and offset is not None:
                self._position = max(self._position, offset)
            return
        assert offset is not None
        self._position = max(self._position, offset + 1)
        try:
            key = (message.key() or b"").decode()
            value = orjson.loads(message.value() or b"{}")
            match value.get("type"):
                case "progress":
                    self._notes[key] = Note.of(value)
                case "claim":
                    progress = key.removesuffix(":claim")
                    self._claims[progress] = Claim(value["run"], value["token"])
                case "run":
                    self._receipts[key] = value
        except (ValueError, TypeError, AttributeError, KeyError):
            return  # not ours; `doctor` tells about foreign messages

    # -- writing

    def write_receipt(self, receipt: Mapping[str, Any]) -> None:
        self._write(str(receipt["run"]), orjson.dumps(receipt))

    def claim(self, progress: str, claim: Claim) -> None:
        self._write(f"{progress}:claim", claim.value())

    def _write(self, key: str, value: bytes, patience: float = 60.0) -> None:
        """Written when this returns. Outside transactions, so that a claim is seen at once."""
        if self._writer is None:
            # Twice the same receipt or claim does no harm, so no producer id is waited for.
            over = {"enable.idempotence": False, "acks": "all", "max.in.flight": 1, "linger.ms": 0}
            self._writer = Producer(clients.producer_conf(self._settings, **over))
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        self._writer.produce(self.topic, value, key, partition=0, on_delivery=delivered)
        left = self._writer.flush(patience)
        if left or failures:
            why = failures[0].str() if failures else "no answer"
            raise ServerUnavailable(f"topic {self.topic} cannot be written: {why}")

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._writer = None
        self._admin.close()


def _as_json(offsets: Offsets) -> dict[str, dict[str, int]]:
    return {
        topic: {str(partition): offset for partition, offset in sorted(partitions.items())}
        for topic, partitions in sorted(offsets.items())
    }


def close_abandoned(ledger: Ledger, run: str, successor: str) -> None:
    """A run that was killed never closes its receipt: whoever goes on with its file does."""
    receipt = ledger.receipt(run)
    if receipt is None or run == successor or receipt.get("state") != "running":
        return
    ledger.write_receipt(
        {**receipt, "state": "stopped", "ended_at": now(), "superseded": successor}
    )
