"""The projector: takes marks, builds whole objects from PostgreSQL, writes them to Weaviate.

    lock    a shard that has marks, for the time of the transaction: nobody else writes its records
    read    the oldest marks (those of a rebuild last), then the records as they stand now
    write   one call a collection; what Weaviate does not take becomes a row of search_errors
    commit  the marks are gone, and what was written is noted, to be compared once more

A crash before the commit leaves the marks, so the same is written again. A write that was on its
way meanwhile and lands late is found by the comparison, and so is what Weaviate lost in a crash of
its own: it may forget what it took since its last start, as long as that is not in a segment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from consumers.search import objects
from consumers.search.objects import Object
from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.log import get
from headrace.search import collections, compare, marks
from headrace.search.collections import Collection
from headrace.search.versions import key
from headrace.stores import migrate, postgres, weaviate
from headrace.stream.stage import Pause, Retry
from headrace.stream.topology import Projector, Topology
from headrace.stream.worker import Backoff, Post

if TYPE_CHECKING:
    from weaviate import WeaviateClient

log = get(__name__)

IDLE_SECONDS = 0.25  # between two looks for marks
SWEEP_SECONDS = 10.0  # between two looks for what is to be compared, if there was no more
SWEEP_WRITES = 10  # compared at a time

_SHARDS = """
SELECT s.shard FROM generate_series(0, %s) AS s (shard), LATERAL (
  SELECT d.rebuild, d.id FROM search_dirty d WHERE d.shard = s.shard
  ORDER BY d.shard, d.rebuild, d.id LIMIT 1) AS first
ORDER BY first.rebuild, first.id
"""
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('headrace search ' || current_schema()), %s)"
_MARKS = """
SELECT id, record_id, rebuild FROM search_dirty WHERE shard = %s
ORDER BY shard, rebuild, id LIMIT %s
"""
_DONE = "DELETE FROM search_dirty WHERE shard = %s AND rebuild = %s AND id = ANY(%s)"
_WRITTEN = "INSERT INTO search_written (record_ids) VALUES (%s)"
_ERROR = """
INSERT INTO search_errors (record_id, collection, reason) VALUES (%s, %s, %s)
ON CONFLICT (record_id) DO UPDATE SET
  collection = excluded.collection, reason = excluded.reason, at = now()
"""
_NO_ERROR = "DELETE FROM search_errors WHERE record_id = ANY(%s)"
_REBUILT = f"""
SELECT EXISTS (SELECT FROM search_collections WHERE state = 'building')
   AND NOT EXISTS (SELECT FROM generate_series(0, {marks.SHARDS - 1}) AS s (shard)
                   JOIN search_dirty d ON d.shard = s.shard AND d.rebuild)
"""
_NEXT_WRITTEN = "SELECT id, record_ids FROM search_written WHERE id > %s ORDER BY id LIMIT 1"
_OLD = """
DELETE FROM search_written WHERE id IN (
  SELECT id FROM search_written WHERE written_at < now() - make_interval(secs => %s)
  ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
RETURNING record_ids
"""


def build(post: Post, topology: Topology, projector: Projector) -> SearchLoop:
    return SearchLoop(post, topology, projector)


class SearchLoop:
    """See `headrace.stream.worker.Loop`."""

    def __init__(self, post: Post, topology: Topology, projector: Projector) -> None:
        self._post = post
        self._settings: Settings = post.settings
        self._topology = topology
        self._application = projector.application
        self._most = post.settings.processing.batch_size or projector.batch.records
        self._backoff = Backoff(post.settings)
        self._connection: psycopg.Connection | None = None
        self._client: WeaviateClient | None = None
        self._away: float | None = None  # since when a server does not answer
        self._swept = time.monotonic()

    def open(self) -> None:
        """Servers that do not answer are waited for in `work`."""

    def work(self) -> bool:
        try:
            connection, client = self._connected()
            with self._post.watchdog.step("projection", 600.0):
                started = time.perf_counter()
                counts = self._take(connection, client)
                self._sweep(connection, client)
        except Exception as error:
            self._lost(error)
            raise
        self._away = None
        self._backoff.reset()
        if counts is None:
            self.rest(IDLE_SECONDS)
            return False
        self._post.metrics.committed(counts, time.perf_counter() - started)
        return True

    def rest(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._post.stopping():
            time.sleep(min(left, 0.25))

    def close(self) -> None:
        self._disconnect()

    # -- one transaction of work

    def _take(
        self, connection: psycopg.Connection, client: WeaviateClient
    ) -> dict[str, int] | None:
        """One shard's oldest marks; None where no mark is to be had."""
        counts = None
        with connection.transaction():
            shard = self._shard(connection)
            if shard is not None:
                counts = self._project(connection, client, shard)
        if connection.execute(_REBUILT).fetchone() == (True,):
            self._turn_over(connection, client)
        return counts

    def _shard(self, connection: psycopg.Connection) -> int | None:
        """A shard with marks, the one whose turn it is, locked until the transaction ends."""
        for (shard,) in connection.execute(_SHARDS, [marks.SHARDS - 1]).fetchall():
            if connection.execute(_LOCK, [shard]).fetchone() == (True,):
                return int(shard)
        return None

    def _project(
        self, connection: psycopg.Connection, client: WeaviateClient, shard: int
    ) -> dict[str, int]:
        taken = connection.execute(_MARKS, [shard, self._most]).fetchall()
        # A record that changed goes everywhere; one that is marked for a rebuild only, there.
        changed = {record_id for _, record_id, rebuild in taken if not rebuild}
        ids = sorted({record_id for _, record_id, _ in taken})
        known = collections.read(connection)
        spaces = {c.space for found in known.values() for c in found if c.space}
        if not spaces:
            spaces = {self._space()}
        records = objects.read(connection, ids, sorted(spaces))
        failed: dict[str, tuple[str, str]] = {}
        deleted = 0
        for of, group in self._by_alias(records.values()).items():
            if of not in known:
                if all(record.deleted for record in group):
                    continue
                known[of] = [collections.make(connection, client, self._settings, of)]
            alone = len(known[of]) == 1
            for collection in known[of]:
                every = alone or collection.building
                here = [r for r in group if every or r.record_id in changed]
                gone = [record for record in here if record.deleted]
                deleted += 0 if collection.building else len(gone)
                self._write(client, collection, [r for r in here if not r.deleted], failed)
                self._delete(client, collection, [record.record_id for record in gone])
        # Of a record that is not even a row any more nobody knows where it stood.
        unknown = [record_id for record_id in ids if record_id not in records]
        for collection in [c for found in known.values() for c in found] if unknown else ():
            self._delete(client, collection, unknown)
        for rebuild in (False, True):
            done = [number for number, _, of_rebuild in taken if of_rebuild == rebuild]
            if done:
                connection.execute(_DONE, [shard, rebuild, done])
        connection.execute(_WRITTEN, [ids])
        connection.execute(_NO_ERROR, [ids])
        with connection.cursor() as cursor:
            cursor.executemany(_ERROR, [(key, *why) for key, why in sorted(failed.items())])
        for record_id, (where, reason) in list(failed.items())[:3]:
            log.warning("Weaviate does not take a record", collection=where, reason=reason)
            log.debug("it is", record=record_id)
        return {"ok": len(ids) - len(failed) - deleted, "dead": len(failed), "deleted": deleted}

    def _space(self) -> str:
        from headrace.models import embedding

        return embedding.space_of(self._settings.embeddings)

    def _by_alias(self, records: Any) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = {}
        names: dict[tuple[str, str], str] = {}
        for record in records:
            place = (record.platform, record.kind)
            if place not in names:
                names[place] = collections.alias(self._settings, *place)
            found.setdefault(names[place], []).append(record)
        return found

    # -- Weaviate

    def _write(
        self,
        client: WeaviateClient,
        collection: Collection,
        records: Sequence[Object],
        failed: dict[str, tuple[str, str]],
    ) -> None:
        """Whole objects, replaced as such. What is refused is looked for by halves."""
        from weaviate.classes.data import DataObject
        from weaviate.exceptions import WeaviateInsertManyAllFailedError

        if not records:
            return
        space = collection.space or ""
        data: list[Any] = [
            DataObject(
                properties=record.properties,
                uuid=record.uuid,
                vector={"default": record.vectors[space]} if space in record.vectors else None,
            )
            for record in records
        ]
        try:
            said = client.collections.use(collection.name).data.insert_many(data)
        except Exception as error:
            message = weaviate.line(error)
            refused = isinstance(error, WeaviateInsertManyAllFailedError)
            if weaviate.passing(message) if refused else weaviate.lost(error):
                raise ServerUnavailable(f"Weaviate: {message}") from error
            if not client.is_ready() or not client.collections.exists(collection.name):
                raise ServerUnavailable(f"Weaviate: {message}") from error
            if len(records) == 1:
                failed[records[0].record_id] = (collection.name, message)
                return
            middle = len(records) // 2
            self._write(client, collection, records[:middle], failed)
            self._write(client, collection, records[middle:], failed)
            return
        for index, problem in said.errors.items():
            message = " ".join(problem.message.split())[:300]
            if weaviate.passing(message):
                raise ServerUnavailable(f"Weaviate: {message}")
            failed[records[index].record_id] = (collection.name, message)

    def _delete(self, client: WeaviateClient, collection: Collection, ids: Sequence[str]) -> None:
        from weaviate.classes.query import Filter

        if ids:
            keys = [key(record_id) for record_id in ids]
            found = client.collections.use(collection.name).data
            said = found.delete_many(Filter.by_id().contains_any(keys))
            if said.failed:
                raise ServerUnavailable(f"Weaviate: {said.failed} objects could not be deleted")
            if said.successful < len(keys):
                # Never there, or one that a crash has left where no query finds it.
                for name in keys:
                    found.delete_by_id(name)

    # -- rebuild, and what is compared later

    def _turn_over(self, connection: psycopg.Connection, client: WeaviateClient) -> None:
        with connection.transaction():
            collections.lock_shards(connection)
            if connection.execute(_REBUILT).fetchone() == (True,):
                collections.turn_over(connection, client)
        self._tidy(connection, client)

    def _tidy(self, connection: psycopg.Connection, client: WeaviateClient) -> None:
        with connection.transaction():
            own = collections.aliases(self._settings)
            collections.sweep_out(connection, client, own)

    def _sweep(self, connection: psycopg.Connection, client: WeaviateClient) -> None:
        """Compare what was written a while ago once more, and mark what differs."""
        if time.monotonic() - self._swept < min(
            SWEEP_SECONDS, self._settings.search.settle_seconds
        ):
            return
        with connection.transaction():
            settled = self._settings.search.settle_seconds
            rows = connection.execute(_OLD, [settled, SWEEP_WRITES]).fetchall()
            ids = sorted({record_id for (some,) in rows for record_id in some})
            apart = compare.differing(connection, client, self._settings, ids)
            compare.again(connection, client, self._settings, apart)
        if len(rows) < SWEEP_WRITES:
            self._swept = time.monotonic()
        if apart:
            log.warning("Weaviate and PostgreSQL differ; marked again", records=len(apart))

    def _recheck(self, connection: psycopg.Connection, client: WeaviateClient) -> None:
        """Compare at once what was written lately: a killed Weaviate may have lost what it had
        acknowledged since it started. The sweep looks once more when that is on its disk."""
        last = 0
        while row := connection.execute(_NEXT_WRITTEN, [last]).fetchone():
            last, ids = row
            apart = compare.differing(connection, client, self._settings, ids)
            compare.again(connection, client, self._settings, apart)
            if apart:
                log.warning("Weaviate lost what it had taken; marked again", records=len(apart))

    # -- the servers

    def _connected(self) -> tuple[psycopg.Connection, WeaviateClient]:
        if self._connection is None:
            migrate.upgrade(self._settings, self._topology)
            self._connection = postgres.connect(
                self._settings, autocommit=True, application=self._application
            )
            self._connection.prepare_threshold = None
            set_json_loads(orjson.loads, self._connection)
        if self._client is None:
            self._client = weaviate.connect(self._settings)
            with self._connection.transaction():
                gone = collections.missing(self._connection, self._client)
                compare.mark_all(self._connection, self._settings, {c.alias for c in gone})
            self._tidy(self._connection, self._client)
            self._recheck(self._connection, self._client)
        return self._connection, self._client

    def _lost(self, error: Exception) -> None:
        """Raises Retry or Pause where a server is away; the transaction is rolled back."""
        ours = isinstance(error, psycopg.Error)
        passing = postgres.passing(error) if ours else weaviate.lost(error)
        if not passing:
            self._disconnect()
            return
        if not ours or postgres.lost(error):
            self._disconnect()
        self._post.metrics.rollbacks.inc()
        said = weaviate.line(error)
        name = "PostgreSQL" if ours else "Weaviate"
        reason = said if isinstance(error, ServerUnavailable) else f"{name}: {said}"
        now = time.monotonic()
        self._away = self._away if self._away is not None else now
        if now - self._away > self._settings.processing.retry_max_seconds:
            raise Pause(reason) from error
        raise Retry(self._backoff.next(), reason) from error

    def _disconnect(self) -> None:
        for connection in (self._connection, self._client):
            if connection is not None:
                with suppress(Exception):
                    connection.close()
        self._connection = self._client = None
