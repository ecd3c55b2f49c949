"""Where a group's messages come from: batches cut by count, bytes and time out of several topics.

Everything happens in the caller's thread. librdkafka heartbeats by itself but runs its callbacks
only inside a poll, so nothing is revoked between `take` and `done`: poll, work, commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.log import get
from headrace.stream import clients
from headrace.stream.faults import fences, passes
from headrace.stream.stage import Retry
from headrace.stream.topology import Batch, Topic

log = get(__name__)

Partition = tuple[str, int]  # full name of the topic, partition
Start = Callable[[Sequence[Partition]], Mapping[Partition, int | None]]

_POLL = 0.25  # seconds: how long a poll may keep us from noticing that we should stop


@dataclass(frozen=True, slots=True)
class Cut:
    """A batch as it was cut: its messages, and where the group stands before and after it.

    `before` and `after` are next offsets by partition, only of partitions that moved. A cut may
    have no messages: then the position moved past transaction markers alone. `member` is the
    consumer_group_metadata of that moment, which fences a commit by a member that is gone.
    """

    messages: list[Message]
    before: Mapping[Partition, int]
    after: Mapping[Partition, int]
    member: Any

    def offsets(self) -> list[TopicPartition]:
        return [TopicPartition(*partition, offset) for partition, offset in self.after.items()]


class Source:
    """A consumer group's member.

    start     says where to begin newly assigned partitions: the next offset, or None where nothing
              is committed yet, which begins at the log's start. It may raise Retry to be asked
              again. Left out: Kafka's own commits.
    stopping  ends long waits early
    on_lost   hears how many messages were gone before the group came to them
    client    how this member calls itself to the broker; left out: the project's name

    Every method that talks to the broker raises KafkaException; `faults.passes` says which of them
    are worth waiting for.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Iterable[Topic],
        batch: Batch,
        admin: clients.Admin,
        *,
        start: Start | None = None,
        stopping: Callable[[], bool] = lambda: False,
        on_lost: Callable[[int], object] = lambda messages: None,
        client: str | None = None,
    ) -> None:
        self.group = group
        self.topics = {topic.name: topic for topic in topics}
        self._on_lost = on_lost
        self._batch = batch
        self._admin = admin
        self._start = start or self._committed
        self._stopping = stopping
        conf = clients.consumer_conf(settings, group, **({"client.id": client} if client else {}))
        strategy = str(conf.get("partition.assignment.strategy", ""))
        self._incremental = conf["group.protocol"] == "consumer" or "cooperative" in strategy
        self._consumer = Consumer(conf)
        self._positions: dict[Partition, int] = {}  # what is assigned, and where we stand there
        self._unstartable: Exception | None = None
        self._gathered: list[Message] = []
        self._taken_away: set[Partition] = set()  # during the poll that is going on
        self._paused = False
        self._polled = False
        self._typical = 2048.0  # bytes of a message
        self._topic_ids: dict[str, str] = {}

    def open(self) -> None:
        self._consumer.subscribe(
            list(self.topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )

    def take(self) -> Cut | None:
        """The next batch, or None where nothing came and no position moved."""
        messages = self._gathered = []
        size = 0
        ends = time.monotonic() + self._batch.milliseconds / 1000
        while True:
            room = (self._batch.bytes - size) / self._typical
            want = min(self._batch.records - len(messages), max(1, int(room)))
            got = self._consume(want, ends - time.monotonic())
            messages += got  # `_gathered` too: a partition that is taken away leaves both
            if got:
                grown = sum(map(len, got))
                size += grown
                self._typical = max(grown / len(got), self._typical * 0.8, 1.0)
            full = len(messages) >= self._batch.records or size >= self._batch.bytes
            if full or time.monotonic() >= ends or self._stopping():
                return self._cut(messages)

    def done(self, cut: Cut) -> None:
        """The cut is committed."""
        self._positions.update(cut.after)

    def rewind(self, cut: Cut) -> None:
        """The cut is not committed: read it again.

        Raises RuntimeError where that cannot be had: a position left behind would be committed with
        the next batch, and what stands before it would be lost.
        """
        for partition, offset in cut.before.items():
            try:
                self._seek(partition, offset)
            except KafkaException as error:
                raise RuntimeError(f"cannot go back to {offset} of {partition}") from error

    def rest(self, seconds: float) -> None:
        """Reads nothing for so long, and stays a member of the group meanwhile."""
        ends = time.monotonic() + seconds
        self._pause(True)
        try:
            while (left := ends - time.monotonic()) > 0 and not self._stopping():
                strays = self._consume(1, min(left, _POLL))
                for message in strays:  # one that was on its way when the pause began
                    partition = (str(message.topic()), int(message.partition() or 0))
                    if partition in self._positions:
                        self._seek(partition, self._positions[partition])
        finally:
            self._pause(False)

    def assigned(self) -> dict[Partition, int]:
        """What this member reads, and how far everything is committed."""
        return dict(self._positions)

    def topic_id(self, topic: str) -> str:
        """Kafka's UUID of the topic's present incarnation."""
        if topic not in self._topic_ids:
            self._topic_ids = dict(self._admin.topic_ids())
        return self._topic_ids[topic]

    def commit(self, positions: Mapping[Partition, int], *, wait: bool) -> None:
        """Mirrors positions to Kafka, for a group whose home is elsewhere."""
        offsets = [TopicPartition(*partition, offset) for partition, offset in positions.items()]
        if not wait:
            self._consumer.commit(offsets=offsets, asynchronous=True)
            return
        for answer in self._consumer.commit(offsets=offsets, asynchronous=False) or ():
            if answer.error is not None:
                raise KafkaException(answer.error)

    def move(self, positions: Mapping[Partition, int]) -> None:
        """Goes on from here, where the group's home says that it stands; what is not ours stays."""
        for partition, offset in positions.items():
            if partition in self._positions:
                self._positions[partition] = offset
                self._seek(partition, offset)

    def lag(self) -> dict[Partition, int]:
        """Messages after the last commit, as far as this member has heard (no request is made)."""
        lag = {}
        for partition, offset in self._positions.items():
            _, end = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
            lag[partition] = max(0, end - offset)
        return lag

    def close(self) -> None:
        """Leaves the group; without ever having polled it just goes, since that close may hang."""
        if self._polled:
            self._consumer.close()

    # -- one poll

    def _consume(self, count: int, timeout: float) -> list[Message]:
        self._taken_away.clear()
        self._polled = True
        try:
            got: list[Message] = self._consumer.consume(count, max(timeout, 0.0))
        except KafkaException as error:
            # Out of a callback of ours. What the client had in its hands is gone, while its
            # positions have moved past it: nobody may go on from there.
            if fences(error):
                raise
            raise RuntimeError("a poll failed, and its messages with it") from error
        if isinstance(self._unstartable, HeadraceError):
            raise self._unstartable
        if self._unstartable is not None:
            raise RuntimeError("cannot find where to start") from self._unstartable
        bad = [message for message in got if message.error() is not None]
        if bad:
            got = [message for message in got if message.error() is None]
            for message in bad:
                self._complain(message)
        if self._taken_away:
            # What came in this very poll may be from before or after: read what is still ours anew.
            away = set(self._taken_away)
            got = [message for message in got if (message.topic(), message.partition()) not in away]
            for partition in away & self._positions.keys():
                # Refused where nothing was read of it yet, and then there is nothing to undo.
                with suppress(KafkaException):
                    self._seek(partition, self._positions[partition])
        return got

    def _cut(self, messages: list[Message]) -> Cut | None:
        # Behind a seek there is none until something was read from there, a marker at least.
        positions = self._consumer.position([TopicPartition(*p) for p in self._positions])
        before, after = {}, {}
        for position in positions:
            partition = (position.topic, position.partition)
            if position.offset > self._positions[partition]:
                before[partition] = self._positions[partition]
                after[partition] = position.offset
        self._gathered = []
        if not after and not messages:
            return None
        member = self._consumer.consumer_group_metadata()
        return Cut(messages, before, after, member)

    def _seek(self, partition: Partition, offset: int) -> None:
        self._consumer.seek(TopicPartition(*partition, offset))

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._steer([TopicPartition(*partition) for partition in self._positions])

    def _steer(self, partitions: list[TopicPartition]) -> None:
        # A pause outlives an assignment, so whoever gets a partition says which it is.
        (self._consumer.pause if self._paused else self._consumer.resume)(partitions)

    def _complain(self, message: Message) -> None:
        error = message.error()
        if error is None:
            return
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            log.warning("a batch took longer than kafka.max_poll_interval_ms; joining again")
        elif error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
            # The latter: what we stood at is gone. A new start says what was lost and goes on.
            raise KafkaException(error)
        else:
            log.warning("trouble while reading", topic=message.topic(), reason=error.str())

    # -- who reads what; called inside a poll

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._topic_ids.clear()
        try:
            starts = self._starts([(p.topic, p.partition) for p in partitions])
        except Exception as error:
            # Without a start of ours librdkafka would choose one, and we would not know it.
            self._unstartable, starts = error, {}
        given = [TopicPartition(*partition, offset) for partition, offset in starts.items()]
        if self._incremental:
            self._consumer.incremental_assign(given)
        else:
            self._consumer.assign(given)
        self._positions.update(starts)
        self._steer(given)
        _tell("reads", self._positions)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        gone = {(p.topic, p.partition) for p in partitions}
        self._taken_away |= gone
        for partition in gone:
            self._positions.pop(partition, None)
        self._gathered[:] = [
            message
            for message in self._gathered
            if (message.topic(), message.partition()) not in gone
        ]
        _tell("no longer reads", gone)

    def _starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Where to begin. What was committed and is no longer there is said aloud and counted.

        Waits for whoever has to answer; nothing where we should stop meanwhile.
        """
        while not self._stopping():
            try:
                committed = self._start(partitions)
                first = self._admin.starts(partitions)
                last = self._admin.ends(partitions, stable=False)
                break
            except Retry as retry:
                time.sleep(min(retry.after, 1.0))
            except KafkaException as error:
                if not passes(error):
                    raise
                log.warning("cannot find where to start yet", reason=str(error))
                time.sleep(_POLL)
        else:
            return {}
        starts = {}
        for partition in partitions:
            low, high, offset = first[partition], last[partition], committed.get(partition)
            if offset is not None and not low <= offset <= high:
                lost = max(0, low - offset)
                self._on_lost(lost)
                log.error(
                    "DATA_LOSS: what comes next is no longer there; going on with what is",
                    group=self.group,
                    partition=f"{partition[0]}-{partition[1]}",
                    committed=offset,
                    there=f"{low} to {high}",
                    lost=lost or "unknown: the topic was made anew or cut off",
                )
                offset = low
            starts[partition] = low if offset is None else offset
        return starts

    def _committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """What the group has committed; an open transaction must have ended first."""
        asked = [TopicPartition(*partition) for partition in partitions]
        found = self._consumer.committed(asked, timeout=2.0)
        for partition in found:
            if partition.error:
                raise KafkaException(partition.error)
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else None for p in found}


def _tell(what: str, partitions: Iterable[Partition]) -> None:
    found = list(partitions)
    topics = len({topic for topic, _ in found})
    log.info(what, partitions=len(found), topics=topics)
    log.debug(what, names=_named(found))


def _named(partitions: Iterable[Partition]) -> str:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in sorted(partitions):
        by_topic.setdefault(topic, []).append(partition)
    return ", ".join(f"{t} {','.join(map(str, ps))}" for t, ps in by_topic.items()) or "nothing"
