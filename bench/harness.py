"""What every measurement shares: topics with append times, input, rates, rounds, a table."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console
from rich.table import Table

PARTITIONS = 4
WORDS = [
    "battery",
    "screen",
    "store",
    "friendly",
    "waiting",
    "delivery",
    "phone",
    "update",
    "price",
    "refund",
    "camera",
    "honest",
    "really",
    "great",
    "broken",
    "slow",
    "happy",
    "never",
    "again",
    "everyone",
    "today",
    "coffee",
    "match",
    "season",
    "ticket",
]


@dataclass(slots=True)
class Figure:
    """One contender's readings, a number a round; `better` says which way is good."""

    name: str
    unit: str
    readings: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.readings)

    def show(self) -> str:
        low, high = min(self.readings), max(self.readings)
        digits = 0 if high >= 100 else 1
        return f"{self.median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


@dataclass(slots=True)
class Goal:
    """A ratio of two figures of one run (or one figure), and the least or most it should be."""

    what: str
    ratio: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        return (self.least is None or self.ratio >= self.least) and (
            self.most is None or self.ratio <= self.most
        )

    def row(self) -> tuple[str, str, str, str]:
        limit = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        return self.what, f"{self.ratio:.2f}", limit, "met" if self.met else "short"


def print_figures(title: str, figures: Sequence[Figure]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    table.add_column("median (least to most)", justify="right")
    table.add_column("unit")
    for figure in figures:
        table.add_row(figure.name, figure.show(), figure.unit)
    Console().print(table)


def print_goals(goals: Sequence[Goal]) -> None:
    table = Table(title="Goals", title_justify="left")
    for name in ("ratio", "measured", "goal", ""):
        table.add_column(name)
    for goal in goals:
        table.add_row(*goal.row())
    Console().print(table)


def post(number: int) -> bytes:
    """A post of about 374 bytes as `publish` writes it."""
    draw = random.Random(number)
    value = {
        "id": f"post:reddit:b{number:08d}",
        "kind": "post",
        "platform": "reddit",
        "native_id": f"b{number:08d}",
        "text": " ".join(draw.choices(WORDS, k=24)),
        "author": f"user{number % 5000}",
        "community": "technology",
        "created_at": "2026-01-02T03:04:05Z",
        "metrics": {"score": number % 100, "comments": number % 7},
    }
    return orjson.dumps(value)


def create_topic(bootstrap: str, name: str, partitions: int = PARTITIONS) -> str:
    """A topic that stamps its messages when they arrive, so every contender has one clock."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = NewTopic(
        name,
        num_partitions=partitions,
        replication_factor=1,
        config={"message.timestamp.type": "LogAppendTime"},
    )
    admin.create_topics([new])[name].result(30)
    return name


def delete_topics(bootstrap: str, names: Sequence[str]) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.delete_topics(list(names)).values():
        try:
            future.result(30)
        except Exception:  # already gone is fine
            continue


def fill(bootstrap: str, topic: str, count: int, start: int = 0) -> None:
    """Write `count` posts with the headers of `publish`."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 200_000,
        }
    )
    for number in range(start, start + count):
        headers: list[tuple[str, str | bytes | None]] = [
            ("ce_specversion", b"1.0"),
            ("ce_id", f"bench.jsonl:{number}".encode()),
            ("ce_source", b"/runs/bench"),
            ("ce_type", b"headrace.raw.post.v1"),
        ]
        while True:
            try:
                producer.produce(topic, post(number), f"post:reddit:b{number:08d}", headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1000 == 0:
            producer.poll(0)
    producer.flush()


def append_times(bootstrap: str, topic: str, partitions: int = PARTITIONS) -> list[int]:
    """Sorted append times in milliseconds of every committed message."""
    return sorted(m.timestamp()[1] for m in messages(bootstrap, topic, partitions))


def messages(bootstrap: str, topic: str, partitions: int = PARTITIONS) -> Iterator[Message]:
    """Every committed message."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"read-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    ended = 0
    while ended < partitions:
        for message in consumer.consume(10_000, 1.0):
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                ended += 1
    consumer.close()


def rate(times: Sequence[int]) -> float:
    """Messages a second between the first and the last append, start-up left out."""
    first, last = times[0], times[-1]
    later = sum(1 for moment in times if moment > first)
    return later / max(1e-3, (last - first) / 1000)


def run_python(words: Sequence[str], timeout: float = 600, **environment: str) -> None:
    """Run a Python process to its end; a failure shows what it said."""
    import os

    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )


@contextmanager
def peak_memory(pid: int) -> Iterator[Callable[[], int]]:
    """The peak resident bytes that the kernel noted for a process, as a function."""
    path = Path(f"/proc/{pid}/status")

    def peak() -> int:
        for line in path.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"{path} names no VmHWM")

    assert psutil.pid_exists(pid)
    yield peak


def rounds(count: int, contenders: Sequence[tuple[Figure, Callable[[int], float]]]) -> None:
    """Each round runs every contender once, in turn, so that a busy minute hits all alike."""
    for number in range(count):
        for figure, measure in contenders:
            began = time.monotonic()
            figure.readings.append(measure(number))
            seconds = time.monotonic() - began
            line = f"round {number + 1}: {figure.name}: {figure.readings[-1]:,.0f} {figure.unit}"
            print(f"{line}  [{seconds:.0f} s]", file=sys.stderr, flush=True)


def to_json(figures: Sequence[Figure], goals: Sequence[Goal]) -> str:
    return json.dumps(
        {
            "figures": {figure.name: figure.readings for figure in figures},
            "goals": {goal.what: [goal.ratio, goal.met] for goal in goals},
        },
        indent=2,
    )
