"""How quickly a stage works, by what it said of itself: its status events."""

from __future__ import annotations

import time
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, TopicPartition

from headrace.config import Settings
from headrace.stream import clients
from headrace.stream.clients import Admin
from headrace.stream.topology import Group, Topology

EVENTS = 2_000  # of all groups, the latest
_SECONDS = 10.0  # the longest to read them


def per_second(settings: Settings, admin: Admin, topology: Topology, group: Group) -> float | None:
    """Records a second of one worker while it works, by its latest batches; None where nothing is
    known of any."""
    name = topology.topic("status").name
    partitions = [(name, n) for n in range(admin.topics().get(name, 0))]
    ends, starts = admin.ends(partitions), admin.starts(partitions)
    busy = {p: max(starts[p], end - EVENTS) for p, end in ends.items() if end > starts[p]}
    if not busy:
        return None
    consumer = Consumer(
        clients.consumer_conf(
            settings,
            f"{settings.project}.redo",
            **{"group.protocol": "classic", "enable.partition.eof": True},
        )
    )
    records, seconds, open_ = 0, 0.0, set(busy)
    deadline = time.monotonic() + _SECONDS
    try:
        consumer.assign([TopicPartition(*p, start) for p, start in busy.items()])
        while open_ and time.monotonic() < deadline:
            for message in consumer.consume(500, 0.5):
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        open_.discard((message.topic() or "", message.partition() or 0))
                    continue
                event = _event(message.value())
                if event.get("group") == group.short:
                    records += int(event.get("records") or 0)
                    seconds += float(event.get("seconds") or 0.0)
    finally:
        consumer.close()
    return records / seconds if records and seconds else None


def _event(value: Any) -> dict[str, Any]:
    try:
        event = orjson.loads(value)
    except (orjson.JSONDecodeError, TypeError):
        return {}
    return event if isinstance(event, dict) else {}
