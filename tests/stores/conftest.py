"""A project's schema on a real PostgreSQL, a store on it, and messages as Kafka brings them."""

from __future__ import annotations

import itertools
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import yaml
from confluent_kafka import Message

from consumers.postgres.store import PostgresStore, build
from headrace import config
from headrace.config import Settings
from headrace.stores import migrate
from headrace.stores import postgres as servers
from headrace.stream import topology
from headrace.stream.wire import Lineage, Position, Revision
from headrace.vectors import packed
from tests.world import CLONE

ENTITY = {
    "text": "apple", "name": "Apple", "type": "brand", "start": 0, "end": 5,
    "method": "dictionary", "confidence": 0.9,
}  # fmt: skip


class Database:
    """A schema of its own, and the store's way into it. Stage entities counts as semantic here."""

    def __init__(self, home: Path, dsn: str, **flags: Any) -> None:
        self.project = f"t{uuid.uuid4().hex[:10]}"
        topics = yaml.safe_load((CLONE / "topics.yaml").read_text())
        topics["groups"]["entities"]["semantic"] = True
        path = home / f"{self.project}.yaml"
        path.write_text(yaml.safe_dump(topics, sort_keys=False))
        own = {"project": self.project, "topics": path, "snapshots.dir": home / "snapshots"}
        self.settings: Settings = config.load({**own, "postgres.dsn": dsn, **flags})
        self.topology = topology.load(self.settings)
        self.numbers = itertools.count()
        self._connection: psycopg.Connection | None = None
        self._store: PostgresStore | None = None

    def upgrade(self) -> bool:
        return migrate.upgrade(self.settings, self.topology)

    def connect(self, **options: Any) -> psycopg.Connection:
        return servers.connect(self.settings, autocommit=True, **options)

    def store(self, connection: psycopg.Connection) -> PostgresStore:
        made = build(self.settings, self.topology, self.topology.group("postgres"), self.topic_id)
        made.open(connection)
        return made

    def topic_id(self, topic: str) -> str:
        return f"{topic.removeprefix(self.project)}-A"

    @property
    def connection(self) -> psycopg.Connection:
        if self._connection is None:
            self.upgrade()
            self._connection = self.connect()
        return self._connection

    def write(self, messages: Sequence[Message]) -> list[str]:
        """Store messages in one transaction; returns the reasons of the store's own letters."""
        self._store = self._store or self.store(self.connection)
        batch = self._store.read(messages)
        self._store.resolve(self.connection, batch)
        with self.connection.transaction():
            self._store.write(self.connection, batch)
        return batch.own

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        self.sql(
            "TRUNCATE records, outcomes, entity_mentions, vectors, dead_letters, offsets, redo,"
            " runs, nodes, edges, decisions"
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        with psycopg.connect(self.settings.postgres.dsn.get_secret_value(), autocommit=True) as own:  # type: ignore[union-attr]
            own.execute(f'DROP SCHEMA IF EXISTS "{self.project}" CASCADE'.encode())

    # -- messages

    def message(
        self,
        short: str,
        key: str | bytes | None,
        value: Any,
        headers: Sequence[tuple[str, bytes]] = (),
        offset: int | None = None,
        at: int | None = None,
    ) -> Message:
        number = next(self.numbers)
        return Message(
            topic=f"{self.project}.{short}",
            partition=0,
            offset=number if offset is None else offset,
            key=key.encode() if isinstance(key, str) else key,
            value=value if isinstance(value, bytes | None) else orjson.dumps(value),
            headers=list(headers),
            timestamp=(1, 1_700_000_000_000 + (number if at is None else at)),
        )

    def raw(
        self, native: str, offset: int, *, at: int | None = None, run: str = "r1", **fields: Any
    ) -> Message:
        """A post of reddit (`deleted=True`: its deletion) at an offset of its raw topic."""
        value = {"id": f"post:reddit:{native}", "kind": "post", "platform": "reddit", **fields}
        if not fields.get("deleted"):
            value = {"native_id": native, "text": "some text", **value}
        source = ("ce_source", f"/runs/{run}".encode())
        return self.message(
            "raw.posts.reddit", value["id"], value, [source], offset, offset if at is None else at
        )

    def outcome(
        self,
        native: str,
        root: int,
        stage: str = "sentiment",
        outcome: str = "ok",
        *,
        result: Any = None,
        rank: int = 1,
        input_rank: int = 0,
        parts: tuple[str, ...] = (),
        offset: int | None = None,
        incarnation: str | None = None,
        at: int | None = None,
        reason: str | None = None,
        version: str = "1",
    ) -> Message:
        """An outcome of the raw message at offset `root`."""
        topic = f"{self.project}.raw.posts.reddit"
        revision = Revision(
            incarnation or self.topic_id(topic),
            0,
            root,
            1_700_000_000_000 + (root if at is None else at),
        )
        lineage = Lineage(revision, "r1", input_rank, rank, parts, Position(topic, 0, root))
        value = {
            "id": f"post:reddit:{native}", "kind": "post", "platform": "reddit", "stage": stage,
            "outcome": outcome, "version": version, "at": "2026-11-21T09:00:00.123Z",
        }  # fmt: skip
        if outcome == "ok":
            value["result"] = RESULTS[stage] if result is None else result
        elif reason or outcome != "deleted":
            value["reason"] = reason or "because"
        output = self.topology.group(stage).output(self.topology.topic("raw.posts.reddit"))
        short = output.short if output else f"enriched.{stage}"
        return self.message(short, value["id"], value, [("hr", lineage.pack())], offset)


def embedded(*numbers: float, model: str = "m") -> dict[str, Any]:
    """A result of stage embeddings with these numbers."""
    vector = packed(struct.pack(f"<{len(numbers)}f", *numbers))
    return {"clean": "some text", "vector": vector, "model": model, "dimensions": len(numbers)}


RESULTS = {
    "sentiment_ml": {"label": "negative", "score": -0.5, "confidence": 0.7, "language": "en"},
    "sentiment": {"label": "positive", "score": 0.5, "confidence": 0.8, "language": "en"},
    "entities": {"entities": [ENTITY], "language": "en"},
    "text": {
        "clean": "some text", "language": "en", "language_confidence": 0.9, "hashtags": [],
        "mentions": [], "links": [], "characters": 9, "words": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def databases(
    postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Database]]:
    made: list[Database] = []
    home = tmp_path_factory.mktemp("stores")

    def make(**flags: Any) -> Database:
        made.append(Database(home, postgres, **flags))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture(scope="session")
def shared_database(databases: Callable[..., Database]) -> Database:
    return databases()


@pytest.fixture
def database(shared_database: Database) -> Database:
    """An empty schema with its tables."""
    shared_database.empty()
    return shared_database
