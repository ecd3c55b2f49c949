"""A bare confluent-kafka loop: read, write the same bytes on, nothing else.

python -m bench.peers.bare BOOTSTRAP SOURCE TARGET COUNT BATCH [--transactional]
"""

from __future__ import annotations

import sys

from confluent_kafka import Consumer, Producer, TopicPartition


def main(bootstrap: str, source: str, target: str, count: int, batch: int, exact: bool) -> None:
    conf: dict[str, str | int | float | bool] = {
        "bootstrap.servers": bootstrap,
        "linger.ms": 5,
        "compression.type": "lz4",
        "queue.buffering.max.messages": 1_000_000,
    }
    if exact:
        conf |= {"transactional.id": f"bare-{target}", "transaction.timeout.ms": 10_000}
    producer = Producer(conf)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"bare-{target}",
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    if exact:
        producer.init_transactions()
    consumer.subscribe([source])
    done = 0
    while done < count:
        messages = consumer.consume(batch, timeout=0.5)
        if not messages:
            continue
        if exact:
            producer.begin_transaction()
        for message in messages:
            if message.error() is None:
                producer.produce(target, message.value(), message.key())
                done += 1
        if exact:
            positions: list[TopicPartition] = [
                position
                for position in consumer.position(consumer.assignment())
                if position.offset >= 0
            ]
            producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata())
            producer.commit_transaction()
        else:
            producer.poll(0)
    producer.flush()
    consumer.close()


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], words[2], int(words[3]), int(words[4]), "--transactional" in words)
