from __future__ import annotations

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from headrace.stream import clients
from tests.search.conftest import search, search_flags, searches
from tests.world import World

__all__ = ["search", "search_flags", "searches"]


def expire(world: World, short: str) -> tuple[tuple[str, int], int]:
    """Cut off the one message that a topic holds, as retention would; its partition, and the log's
    start from then on."""
    topic = world.topology.topic(short)
    ends = world.admin.ends([(topic.name, number) for number in range(topic.partitions)])
    ((where, end),) = [(where, end) for where, end in ends.items() if end]
    client = AdminClient(clients.base_conf(world.settings))  # named: it must outlive the call
    (future,) = client.delete_records([TopicPartition(*where, end)]).values()
    future.result(60)
    return where, end
