"""A broker of our own whose cleaner comes at once, and looks into everything that may hold text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from psycopg import sql

from headrace import servers
from headrace.backlog import lag
from headrace.errors import ServerUnavailable
from headrace.servers import kafka as kafka_server
from headrace.servers.guard import throwaway_folder
from headrace.stores import postgres as stores
from headrace.stream import clients
from headrace.stream.metrics import Metrics
from headrace.stream.watchdog import Watchdog
from headrace.stream.worker import Loop, Place
from tests.conftest import THROWAWAY
from tests.stores.conftest import database, databases, shared_database
from tests.world import World, wait_for

__all__ = ["database", "databases", "shared_database"]  # fixtures of tests/stores

# Of a broker that cleans and deletes at once; else it takes its minutes.
_AT_ONCE = {
    "log.cleaner.backoff.ms": "200",
    "log.initial.task.delay.ms": "200",
    "log.retention.check.interval.ms": "300",
    "log.segment.delete.delay.ms": "200",
}


class Broker:
    def __init__(self, server: servers.LocalServer, folder: Path) -> None:
        self.address = str(server.address)
        self.folder = folder

    def files_with(self, project: str, mark: bytes) -> list[str]:
        """The files of the project's topics that hold these bytes."""
        found = []
        for path in self.folder.rglob("*"):
            if path.parent.name.startswith(f"{project}."):
                try:
                    if path.is_file() and mark in path.read_bytes():
                        found.append(f"{path.parent.name}/{path.name}")
                except FileNotFoundError:
                    continue  # deleted meanwhile
        return found


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with pytest.MonkeyPatch.context() as patch, throwaway_folder() as folder:
        for key, value in _AT_ONCE.items():
            patch.setitem(kafka_server.SETTINGS, key, value)
        server = servers.LocalServer("kafka", folder, tuning=THROWAWAY)
        try:
            server.start()
        except ServerUnavailable as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield Broker(server, folder)


@pytest.fixture
def here(broker: Broker, postgres: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds on that broker whose bytes are not compressed, so that they can be found."""
    made: list[World] = []

    def make(flags: dict[str, Any] | None = None, **options: Any) -> World:
        home = tmp_path / f"here{len(made)}"
        home.mkdir()
        plain = {"kafka.client": {"compression.type": "none"}}
        made.append(World(home, broker.address, postgres, flags=plain | (flags or {}), **options))
        return made[-1]

    yield make
    for world in made:
        world.drop()


class Workers:
    """Groups at work in this process, whenever the test says so."""

    def __init__(self, world: World, *groups: str) -> None:
        self._world = world
        self._loops: list[Loop] = []
        self._groups = [world.topology.group(short) for short in groups]
        for group in self._groups:
            place = Place(
                world.settings, 0, Metrics(world.settings, group.name), Watchdog(), lambda: False,
                world.topology, group, (*group.reads, group.redo), world.admin,
            )  # fmt: skip
            module = import_module(f"headrace.stream.{group.kind}_worker")
            self._loops.append(module.build(place))
            self._loops[-1].open()

    def catch_up(self) -> None:
        names = [group.short for group in self._groups]
        with lag.Reader(self._world.settings) as reader:

            def caught_up() -> bool:
                while sum(loop.work() for loop in self._loops):
                    pass
                return all(group.caught_up for group in reader.read(names, members=False))

            wait_for(caught_up, timeout=120)

    def close(self) -> None:
        for loop in self._loops:
            loop.close()


def topics_with(world: World, mark: bytes) -> list[str]:
    """The topics on which a message holds these bytes, what was aborted included."""
    found = []
    for topic, count in world.admin.topics().items():
        if not topic.startswith(f"{world.project}."):
            continue
        for message in _everything(world, topic, count):
            parts = [message.key() or b"", message.value() or b""]
            parts += [content or b"" for _, content in message.headers() or ()]
            if any(mark in part for part in parts):
                found.append(f"{topic} {message.partition()}:{message.offset()}")
    return found


def _everything(world: World, topic: str, count: int) -> Iterator[Any]:
    consumer = Consumer(
        clients.consumer_conf(
            world.settings,
            f"{world.project}.test-looker",
            **{
                "group.protocol": "classic",
                "isolation.level": "read_uncommitted",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
            },
        )
    )
    starts = world.admin.starts([(topic, number) for number in range(count)])
    ended: set[int] = set()
    try:
        consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])
        while len(ended) < count:
            message = consumer.poll(30)
            assert message is not None, f"{topic} cannot be read to its end"
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition() or 0)
    finally:
        consumer.close()


def tables_with(world: World, mark: bytes) -> list[str]:
    """The tables of which a row holds these bytes, as text or in bytes."""
    found = []
    with stores.connect(world.settings, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = %s AND table_type = 'BASE TABLE'",
            [world.project],
        ).fetchall()
        for (table,) in tables:
            query = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
            for (row,) in connection.execute(query):
                if mark.decode() in row or mark.hex() in row:
                    found.append(table)
                    break
    return found
