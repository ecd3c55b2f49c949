"""Real servers for tests.

A configured address is used as it is (HEADRACE_KAFKA__BOOTSTRAP_SERVERS and so on); else the
session starts servers of its own in a temporary folder, which end with it, however it ends. A
server that cannot be had skips the test with the reason, and fails it where CI=true.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from headrace import servers
from headrace.errors import ServerUnavailable
from headrace.servers import docker
from headrace.servers.guard import throwaway_folder
from headrace.servers.local import KINDS
from tests import containers
from tests.world import world, worlds

__all__ = ["world", "worlds"]  # fixtures of tests/world.py

THROWAWAY = servers.Tuning(throwaway=True)
ADDRESS_VARIABLES = {
    "kafka": "HEADRACE_KAFKA__BOOTSTRAP_SERVERS",
    "postgres": "HEADRACE_POSTGRES__DSN",
    "weaviate": "HEADRACE_WEAVIATE__URL",
}


BUILDS_SECONDS = 1800  # with an empty cache Weaviate is built first, within its first test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "weaviate" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(BUILDS_SECONDS))


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """The data folder of the session's own servers."""
    with throwaway_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[str]:
    """Bootstrap servers of a real Kafka."""
    yield from _server("kafka", request)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of a real PostgreSQL, with an administrator's rights."""
    yield from _server("postgres", request)


@pytest.fixture(scope="session")
def weaviate(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a real Weaviate."""
    yield from _server("weaviate", request)


@pytest.fixture
def local_server() -> Iterator[Callable[..., servers.LocalServer]]:
    """A factory: `local_server("kafka")` is started, private, and may be killed."""
    with ExitStack() as stack:

        def make(name: str, tuning: servers.Tuning = THROWAWAY) -> servers.LocalServer:
            folder = stack.enter_context(throwaway_folder())
            server = servers.LocalServer(name, folder, tuning=tuning)
            try:
                server.start()
            except ServerUnavailable as error:
                _cannot_be_had(error)
            return server

        yield make


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """For tests marked `docker`."""
    if not docker.engine_available():
        pytest.skip("no Docker engine with the compose plugin answers")


def _server(name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    configured = os.environ.get(ADDRESS_VARIABLES[name])
    if configured:
        yield configured
        return
    with ExitStack() as stack:
        try:
            if not KINDS[name].installed() and docker.engine_available():
                address = stack.enter_context(containers.started(name))
            else:
                folder = request.getfixturevalue("servers_dir")
                address = servers.up([name], data_dir=folder, tuning=THROWAWAY)[name]
        except ServerUnavailable as error:
            _cannot_be_had(error)
        yield str(address)


def _cannot_be_had(error: ServerUnavailable) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))
