"""Whatever is killed, frozen or restarted, and whenever: the final tables are those of a world in
which nothing of it happened."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.backlog import doctor
from headrace.servers import LocalServer
from tests.whole import corpus, running, tables
from tests.whole.tables import Tables
from tests.world import World, wait_for

pytestmark = pytest.mark.crash

WAVES = corpus.waves(9, 300)
MESSAGES = sum(map(len, WAVES)) + len(WAVES) * len(corpus.BAD)
FLAGS = {
    "processing.batch_size": 20,
    "processing.retry_seconds": 0.2,
    "processing.retry_max_seconds": 1.0,
    "kafka.transaction_timeout_ms": 5000,
    "postgres.lock_timeout": "5s",
}
PATIENCE = 180


class Telling:
    """Publishes the waves one by one to a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next = 0

    def wave(self) -> None:
        corpus.publish(self._world, WAVES[self._next], self._next)
        self._next += 1

    def rest(self) -> None:
        while self._next < len(WAVES):
            self.wave()

    def until_under_way(self, *groups: str) -> None:
        """A wave; returns when each of the groups is at work on it."""
        before = dict(zip(groups, self._positions(groups), strict=True))
        self.wave()
        for group, position in before.items():
            wait_for(lambda g=group, p=position: running.passed(self._world, g) > p, PATIENCE)

    def _positions(self, groups: Sequence[str]) -> list[int]:
        return wait_for(lambda: [running.passed(self._world, group) for group in groups], PATIENCE)


@pytest.fixture(scope="module")
def undisturbed(kafka: str, postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The final tables where nothing happened."""
    world = World(
        tmp_path_factory.mktemp("undisturbed"),
        kafka,
        postgres,
        flags=FLAGS,
        change=running.always_on,
    )
    try:
        Telling(world).rest()
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
    world.run()
    tables.assert_equal(tables.tables(world), undisturbed)
    tables.assert_answered_once(world, MESSAGES)
    diagnosis = doctor.examine(world.settings)
    assert all(sums.balanced and not sums.pending for sums in diagnosis.sums), diagnosis.sums
    found = [f for f in diagnosis.findings if f.level == "finding" and f.check != "retention"]
    assert found == []


def test_workers_and_supervisor_are_killed(
    worlds: Callable[..., World], undisturbed: Tables
) -> None:
    """Two members of each group; kill -9 in the middle of the work of each kind."""
    world = worlds(flags=FLAGS, change=running.two_members_each).apply()
    running.shorten_sessions(world)
    told = Telling(world)
    told.wave()
    supervisor = world.start("run")
    for place in ("text/0", "entities/1", "sentiment/0", "postgres/1"):
        told.until_under_way(place.partition("/")[0])
        running.kill(running.workers(world, supervisor)[place])
    told.until_under_way("sentiment", "postgres")
    running.kill(supervisor.pid)  # its workers drain and end by themselves
    supervisor.wait()

    supervisor = world.start("run")
    told.until_under_way("text", "postgres")
    for pid in (supervisor.pid, *running.workers(world, supervisor).values()):
        running.kill(pid)  # as when the power goes
    supervisor.wait()

    supervisor = world.start("run")
    told.rest()
    assert_as_if_nothing_happened(world, supervisor, undisturbed)


@pytest.fixture
def own_servers(
    local_server: Callable[[str], LocalServer], tmp_path: Path
) -> Iterator[tuple[World, LocalServer, LocalServer]]:
    """A world on servers that may be killed."""
    broker, database = local_server("kafka"), local_server("postgres")
    world = World(tmp_path, broker.address, database.address, flags=FLAGS, change=running.always_on)
    try:
        yield world.apply(), broker, database
    finally:
        world.drop()


def test_servers_are_killed(
    own_servers: tuple[World, LocalServer, LocalServer],
    undisturbed: Tables,
) -> None:
    """Broker and database, each alone and both at once, in the middle of the work."""
    world, broker, database = own_servers
    told = Telling(world)
    told.wave()
    supervisor = world.start("run")
    for servers in ([broker], [database], [broker, database]):
        told.until_under_way("text", "postgres")
        for server in servers:
            server.kill()
        for server in servers:
            server.start()
    told.rest()
    assert_as_if_nothing_happened(world, supervisor, undisturbed)


@pytest.fixture
def frozen() -> Iterator[list[int]]:
    """Processes that are frozen now; none stays so."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_members_are_frozen(
    worlds: Callable[..., World],
    frozen: list[int],
    undisturbed: Tables,
) -> None:
    """One of the two members of each group stands still until the other has all its partitions
    and has done everything; then it goes on where it stood."""
    world = worlds(flags=FLAGS, change=running.two_members_each).apply()
    running.shorten_sessions(world)
    told = Telling(world)
    told.wave()
    supervisor = world.start("run")
    told.until_under_way(*world.topology.groups)
    pids = running.workers(world, supervisor)
    with running.locked(world, "records"):  # so that one of the store stands inside a transaction
        told.wave()
        store = wait_for(
            lambda: (
                running.waiting(world, pids["postgres/0"])
                or running.waiting(world, pids["postgres/1"])
            ),
            PATIENCE,
        )
        frozen += [store, *(pids[f"{stage.short}/0"] for stage in world.topology.stages())]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
    told.wave()
    until_nothing_is_left(world, supervisor)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    told.rest()
    assert_as_if_nothing_happened(world, supervisor, undisturbed)
