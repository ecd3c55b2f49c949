"""A topic of one partition that is small enough to be read as a whole: receipts, decisions.

They are written outside of transactions. Reading the uncommitted sees them though a transaction of
somebody else's may be open before them (a publisher's, with its progress notes).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.stream import clients

READ_SECONDS = 60.0


def read(settings: Settings, topic: str) -> Iterator[Message]:
    """Every message on partition 0 of a topic (full name), up to its end of this moment.

    Raises ServerUnavailable where it cannot be read to its end.
    """
    where = (topic, 0)
    with clients.admin(settings) as admin:
        if topic not in admin.topics():
            return
        end = admin.ends([where], stable=False)[where]
        position = admin.starts([where])[where]
    if position >= end:
        return
    consumer = Consumer(
        clients.consumer_conf(
            settings,
            f"{settings.project}.whole",
            **{
                "group.protocol": "classic",
                "isolation.level": "read_uncommitted",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",  # compaction may move the start meanwhile
            },
        )
    )
    deadline = time.monotonic() + READ_SECONDS
    try:
        consumer.assign([TopicPartition(topic, 0, position)])
        while position < end:
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"topic {topic} could not be read to its end within {READ_SECONDS:.0f} s"
                )
            # Not `consume`: that waits for its whole timeout at the end.
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is None:
                position = (message.offset() or 0) + 1
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                position = max(position, message.offset() or 0, end)
            elif not error.retriable():
                raise ServerUnavailable(f"Kafka does not show {topic}: {error.str()}")
    finally:
        consumer.close()
