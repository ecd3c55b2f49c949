"""Conditions to wait for."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import KafkaException

from tests.world import World


def stored(world: World, rows: int) -> Callable[[], bool]:
    return lambda: world.sql("SELECT count(*) FROM records") == [(rows,)]


def caught_up(world: World) -> bool:
    """PostgreSQL has everything, and Kafka's copy of the positions says so too."""
    group = world.topology.group("postgres")
    partitions = [
        (topic.name, number)
        for topic in (*group.reads, group.redo)
        for number in range(topic.partitions)
    ]
    try:
        ends = world.admin.ends(partitions, stable=True)
        ids = world.admin.topic_ids()
        mirrored = world.admin.committed(group.name, partitions)
    except KafkaException:  # a topic that was made this moment, say
        return False
    rows = world.sql(
        "SELECT topic, partition, topic_id, next FROM offsets WHERE \"group\" = 'postgres'"
    )
    ours = {
        (topic, part): following for topic, part, uid, following in rows if ids.get(topic) == uid
    }
    busy = {partition: end for partition, end in ends.items() if end > 0}
    return busy.items() <= ours.items() and busy.items() <= mirrored.items()
