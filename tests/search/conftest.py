"""A world whose records can be searched, and a projector inside the test where that is enough."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from weaviate import WeaviateClient

from consumers.search import projector
from headrace import servers
from headrace.search import collections, compare, marks
from headrace.search.versions import key
from headrace.stores import postgres
from headrace.stores import weaviate as stores
from headrace.stream.metrics import Metrics
from headrace.stream.watchdog import Watchdog
from headrace.stream.worker import Post
from tests.world import World


@pytest.fixture(scope="session")
def search_flags(weaviate: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings that name the session's Weaviate."""
    port = os.environ.get("HEADRACE_WEAVIATE__GRPC_PORT")
    if port is None:
        found = servers.running(request.getfixturevalue("servers_dir")).get("weaviate")
        port = str(found.ports["grpc"]) if found else "50051"
    return {"weaviate.url": weaviate, "weaviate.grpc_port": int(port)}


class Search:
    """The projector's own loop on a world's servers, called from the test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.settings = world.settings
        self.client: WeaviateClient = stores.connect(world.settings)
        self._stop = threading.Event()
        self.loop = self.projector()

    def projector(self) -> projector.SearchLoop:
        topology = self.world.topology
        post = Post(
            self.settings, 0, Metrics(self.settings, "search"), Watchdog(), self._stop.is_set
        )
        return projector.build(post, topology, topology.projectors["search"])

    def project(self) -> None:
        """Until no mark waits and no rebuild goes on."""
        while self.loop.work():
            pass

    def connection(self) -> Any:
        return postgres.connect(self.settings, autocommit=True)

    def names(self) -> dict[str, list[str]]:
        with self.connection() as own:
            return {of: [c.name for c in found] for of, found in collections.read(own).items()}

    def objects(self, of: str = "RedditPost") -> dict[str, dict[str, Any]]:
        """What stands behind an alias: properties by record id."""
        project = self.world.project
        collection = self.client.collections.use(f"{project[0].upper()}{project[1:]}_{of}")
        return {str(o.properties["record_id"]): dict(o.properties) for o in collection.iterator()}

    def object(self, record_id: str, of: str = "RedditPost") -> Any:
        project = self.world.project
        collection = self.client.collections.use(f"{project[0].upper()}{project[1:]}_{of}")
        return collection.query.fetch_object_by_id(key(record_id), include_vector=True)

    def compare(self) -> compare.Compared:
        with self.connection() as own:
            return compare.everything(own, self.client, self.settings)

    def waiting(self) -> int:
        return marks.left(self.settings)

    def close(self) -> None:
        self._stop.set()
        self.loop.close()
        for name in self.client.collections.list_all(simple=True):
            if name.lower().startswith(f"{self.world.project}_"):
                self.client.collections.delete(name)
        self.client.close()


@pytest.fixture
def searches(
    worlds: Callable[..., World], search_flags: dict[str, Any], tmp_path: Path
) -> Iterator[Callable[..., Search]]:
    """Makes worlds with a Weaviate: `searches(flags={…})`."""
    made: list[Search] = []

    def make(flags: dict[str, Any] | None = None, **options: Any) -> Search:
        search = Search(worlds(flags={**search_flags, **(flags or {})}, **options))
        made.append(search)
        return search

    yield make
    for search in made:
        search.close()


@pytest.fixture
def search(searches: Callable[..., Search]) -> Search:
    return searches()
