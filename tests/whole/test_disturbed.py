"""Whatever is killed, frozen or restarted, and whenever: the final tables are those of a world in
which nothing of it happened.

The moments are drawn by a seed and told in messages that were read, not in seconds: so a slow
machine sees the same as a fast one, later.
"""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.backlog import doctor
from headrace.servers import LocalServer
from tests.whole import corpus, running, tables
from tests.whole.tables import Tables
from tests.world import World, wait_for

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

SEED = 4
WAVES = corpus.waves(10, 100)
ROWS = 900
MESSAGES = sum(map(len, WAVES)) + len(WAVES) * len(corpus.BAD) + ROWS
FLAGS = {
    "processing.batch_size": 10,
    "processing.retry_seconds": 0.2,
    "processing.retry_max_seconds": 1.0,
    "publishing.transaction_records": 5,
    "kafka.transaction_timeout_ms": 5000,
    "postgres.lock_timeout": "4s",
}
PATIENCE = 180


class Telling:
    """Tells a world all there is to tell, in the one order: a wave, a file, more waves."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._file = corpus.write_file(world.home / "posts.jsonl", ROWS)
        self._next = 0
        self._chance = random.Random(SEED)

    def wave(self) -> None:
        corpus.publish(self._world, WAVES[self._next], self._next)
        self._next += 1

    def file(self) -> None:
        """Publishes it, or goes on with it; whatever comes now comes behind it."""
        self._world.command("publish", "--platform", "reddit", self._file)

    def publisher(self) -> subprocess.Popen[bytes]:
        """A publish of the file that has begun: some of it is out. To be waited for before what
        comes next."""
        before = self._written()
        publisher = self._world.start("publish", "--platform", "reddit", str(self._file))
        some = self._chance.randrange(30, 300)
        wait_for(
            lambda: self._written() > before + some or publisher.poll() is not None,
            PATIENCE,
            lambda: self._world.log_of(publisher),
        )
        return publisher

    def rest(self) -> None:
        while self._next < len(WAVES):
            self.wave()

    def under_way(self, *groups: str) -> None:
        """A wave; returns when each of the groups has read some of it."""
        before = wait_for(lambda: {name: self._passed(name) for name in groups}, PATIENCE)
        self.wave()
        for name, position in before.items():
            some = self._chance.randrange(len(WAVES[0]) // 2)
            wait_for(lambda n=name, p=position + some: self._passed(n) > p, PATIENCE, name)

    def _passed(self, group: str) -> int:
        return running.passed(self._world, group)

    def _written(self) -> int:
        return running.written(self._world, "raw.posts.reddit")


@pytest.fixture(scope="module")
def undisturbed(kafka: str, postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The final tables where nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed")
    world = World(folder, kafka, postgres, flags=FLAGS, change=running.always_on)
    try:
        told = Telling(world)
        told.wave()
        told.file()
        told.rest()
        world.run()
        tables.assert_answered_once(world, MESSAGES)
        found = tables.tables(world)
        assert all(found.values())
        return found
    finally:
        world.drop()


def until_nothing_is_left(world: World, supervisor: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: not running.left(world), PATIENCE, lambda: world.log_of(supervisor)[-3000:])


def assert_as_if_nothing_happened(
    world: World, supervisor: subprocess.Popen[bytes], undisturbed: Tables
) -> None:
    """All that was told has come to its end, once."""
    until_nothing_is_left(world, supervisor)
    running.end(world, supervisor)
    tables.assert_equal(tables.tables(world), undisturbed)
    tables.assert_answered_once(world, MESSAGES)
    diagnosis = doctor.examine(world.settings)
    assert all(sums.balanced and not sums.pending for sums in diagnosis.sums), diagnosis.sums
    found = [f for f in diagnosis.findings if f.level == "finding" and f.check != "retention"]
    assert found == []


def test_workers_publisher_and_supervisor_come_to_harm(
    worlds: Callable[..., World], undisturbed: Tables
) -> None:
    """kill -9 in the midst of the work of each; of each group's two members one is frozen until
    the other has done everything."""
    world = worlds(flags=FLAGS, change=running.two_members_each).apply()
    running.shorten_sessions(world)
    told = Telling(world)
    told.wave()
    supervisor = world.start("run")
    publisher = told.publisher()
    running.kill(publisher.pid)
    publisher.wait()
    told.file()
    places = ["text/0", "entities/1", "sentiment/0", "postgres/1"]
    random.Random(SEED).shuffle(places)
    for place in places:
        told.under_way(place.partition("/")[0])
        running.kill(running.workers(world, supervisor)[place])
    told.under_way(*world.topology.groups)
    running.kill(supervisor.pid)  # one member of each group with it; the others end by themselves
    running.kill(*(running.workers(world, supervisor)[f"{g}/1"] for g in world.topology.groups))
    supervisor.wait()

    supervisor = world.start("run")
    told.under_way(*world.topology.groups)
    frozen = freeze_one_member_each(told, world, supervisor)
    told.wave()
    until_nothing_is_left(world, supervisor)
    running.send(signal.SIGCONT, *frozen)
    told.rest()
    assert_as_if_nothing_happened(world, supervisor, undisturbed)


def freeze_one_member_each(
    told: Telling, world: World, supervisor: subprocess.Popen[bytes]
) -> list[int]:
    """That of the store stands inside a transaction of PostgreSQL's."""
    pids = running.workers(world, supervisor)
    stores = [pids["postgres/0"], pids["postgres/1"]]
    with running.locked(world, "records"):
        told.wave()
        store, *_ = wait_for(lambda: running.waiting(world, stores), PATIENCE)
        frozen = [store, *(pids[f"{stage.short}/0"] for stage in world.topology.stages())]
        running.send(signal.SIGSTOP, *frozen)
    return frozen


@pytest.fixture
def own_servers(
    local_server: Callable[[str], LocalServer], tmp_path: Path
) -> Iterator[tuple[World, LocalServer, LocalServer]]:
    """A world on servers that may be killed."""

    def change(content: dict[str, Any]) -> None:
        running.always_on(content)
        running.two_members_each(content)

    broker, database = local_server("kafka"), local_server("postgres")
    world = World(tmp_path, broker.address, database.address, flags=FLAGS, change=change)
    try:
        yield world.apply(), broker, database
    finally:
        world.drop()


def test_servers_are_killed(
    own_servers: tuple[World, LocalServer, LocalServer], undisturbed: Tables
) -> None:
    """Broker and database, each alone and both at once, in the midst of the work. They are killed
    again only when everybody is at work again: a broker that is killed while it starts may lose
    the ends of transactions (Kafka 4.3.1), which no client can mend."""
    world, broker, database = own_servers
    told = Telling(world)
    told.wave()
    supervisor = world.start("run")
    publisher = told.publisher()
    restart(broker)
    assert publisher.wait(PATIENCE) == 0, world.log_of(publisher)
    for servers in ([database], [broker, database]):
        told.under_way(*world.topology.groups)
        restart(*servers)
    told.rest()
    assert_as_if_nothing_happened(world, supervisor, undisturbed)


def restart(*servers: LocalServer) -> None:
    for server in servers:
        server.kill()
    for server in servers:
        server.start()
