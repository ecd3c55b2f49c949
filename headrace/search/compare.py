"""PostgreSQL and Weaviate beside each other: the version of whatever is searched, and its vector.

Records and personas alike: view `searched` says what there is."""

from __future__ import annotations

import time
from collections.abc import Collection as Ids
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from headrace.config import Settings
from headrace.search import collections, marks
from headrace.search.collections import Collection
from headrace.search.versions import key

if TYPE_CHECKING:
    from weaviate import WeaviateClient

CHUNK = 1_000
_SETTLE_SECONDS = 2.0

_VERSIONS = """
SELECT s.id, p.name, s.kind, s.deleted, s.row_version
FROM searched s JOIN dim_platform p ON p.id = s.platform_id
WHERE s.id = ANY(%s)
"""
_PLACE = """
SELECT s.id, p.name, s.kind FROM searched s JOIN dim_platform p ON p.id = s.platform_id
WHERE s.id = ANY(%s)
"""
_WITH_VECTOR = "SELECT record_id FROM vectors WHERE space = %s AND record_id = ANY(%s)"
_EXCUSED = """
SELECT record_id FROM search_errors WHERE record_id = ANY(%(ids)s)
UNION SELECT record_id FROM search_dirty WHERE record_id = ANY(%(ids)s)
"""
_KNOWN = """
SELECT id FROM searched WHERE id = ANY(%(ids)s) AND NOT deleted
UNION SELECT record_id FROM search_dirty WHERE record_id = ANY(%(ids)s)
"""
_PLACES = (
    "SELECT DISTINCT p.name, s.kind FROM searched s JOIN dim_platform p ON p.id = s.platform_id"
)
_MARK_PLACE = """
INSERT INTO search_dirty (record_id)
SELECT s.id FROM searched s JOIN dim_platform p ON p.id = s.platform_id
WHERE p.name = %s AND s.kind = %s AND NOT s.deleted
"""
_NEXT = (
    "SELECT id FROM records WHERE id > %s ORDER BY id LIMIT %s",
    "SELECT id FROM nodes WHERE kind = 'persona' AND id > %s ORDER BY id LIMIT %s",
)


@dataclass(frozen=True, slots=True)
class Compared:
    """`apart` are records that differ (the first few by name), `unknown` objects of no record."""

    records: int
    apart: int
    unknown: int
    examples: tuple[str, ...]


def differing(
    connection: psycopg.Connection,
    client: WeaviateClient,
    settings: Settings,
    ids: Sequence[str],
    *,
    vectors: bool = False,
) -> list[str]:
    """Which of the records Weaviate shows otherwise than PostgreSQL has them; those that Weaviate
    refused, or that are marked anyway, left out. `vectors`: look whether each has its own, too.

    What a query does not find may yet be there in half, after a crash of Weaviate's; so deleted
    records are asked for by name (but with `vectors`: see `_strangers`)."""
    found: list[str] = []
    for first in range(0, len(ids), CHUNK):
        part = list(ids[first : first + CHUNK])
        apart = _differing(connection, client, settings, part, vectors)
        if apart:
            excused = {row[0] for row in connection.execute(_EXCUSED, {"ids": apart})}
            found += [record_id for record_id in apart if record_id not in excused]
    return found


def _differing(
    connection: psycopg.Connection,
    client: WeaviateClient,
    settings: Settings,
    ids: list[str],
    vectors: bool,
) -> list[str]:
    wanted: dict[str, dict[str, int | None]] = {}
    for record_id, platform, kind, deleted, version in connection.execute(
        _VERSIONS.encode(), [ids]
    ):
        of = collections.alias(settings, platform, kind)
        wanted.setdefault(of, {})[record_id] = None if deleted else version
    known = collections.read(connection)
    apart: set[str] = set()
    for of, records in wanted.items():
        if of not in known:
            apart |= {record_id for record_id, version in records.items() if version is not None}
        # One that is being built, too: what it lacks so far is marked.
        for collection in known.get(of, ()):
            apart.update(_differing_in(connection, client, collection, records, vectors))
    return sorted(apart)


def _differing_in(
    connection: psycopg.Connection,
    client: WeaviateClient,
    collection: Collection,
    records: Mapping[str, int | None],
    vectors: bool,
) -> Iterator[str]:
    with_vector: set[str] = set()
    if vectors and collection.space:
        rows = connection.execute(_WITH_VECTOR, [collection.space, list(records)])
        with_vector = {row[0] for row in rows}
    objects = client.collections.use(collection.name)
    there = {
        found.uuid: found
        for found in objects.query.fetch_objects_by_ids(
            [key(record_id) for record_id in records],
            limit=len(records),
            include_vector=vectors,
            return_properties=["row_version"],
        ).objects
    }
    for record_id, version in records.items():
        found = there.get(key(record_id))
        shown = None if found is None else found.properties["row_version"]
        right = shown == version
        if version is None and found is None and not vectors:  # doctor counts instead
            right = not objects.data.exists(key(record_id))
        if vectors and right and found is not None:
            right = bool(found.vector) == (record_id in with_vector)
        if not right:
            yield record_id


def again(
    connection: psycopg.Connection, client: WeaviateClient, settings: Settings, ids: Sequence[str]
) -> None:
    """Have records that differ projected anew, without the objects that are there: a killed
    Weaviate may come back with half of one, which no query finds and no new version mends."""
    known = collections.read(connection)
    for record_id, platform, kind in connection.execute(_PLACE, [list(ids)]).fetchall():
        of = collections.alias(settings, platform, kind)
        for collection in known.get(of, ()):
            client.collections.use(collection.name).data.delete_by_id(key(record_id))
    marks.mark(connection, ids)


def everything(
    connection: psycopg.Connection, client: WeaviateClient, settings: Settings
) -> Compared:
    """Compare all records, and mark what differs. The connection is in autocommit mode."""
    records, apart, unknown = 0, 0, 0
    examples: list[str] = []
    for ids in _chunks(connection):
        records += len(ids)
        wrong = differing(connection, client, settings, ids, vectors=True)
        if wrong:  # it may have changed between the two looks
            time.sleep(_SETTLE_SECONDS)
            wrong = differing(connection, client, settings, wrong, vectors=True)
            again(connection, client, settings, wrong)
        apart += len(wrong)
        examples += wrong[: 3 - len(examples)]
    for ids in _strangers(connection, client):
        marks.mark(connection, ids)
        unknown += len(ids)
        examples += ids[: 3 - len(examples)]
    return Compared(records, apart, unknown, tuple(examples))


def _chunks(connection: psycopg.Connection) -> Iterator[list[str]]:
    """Every record's and persona's id, by keyset."""
    for query in _NEXT:
        last = ""
        while rows := connection.execute(query, [last, CHUNK]).fetchall():
            yield [row[0] for row in rows]
            last = rows[-1][0]


def _strangers(connection: psycopg.Connection, client: WeaviateClient) -> Iterator[list[str]]:
    """Objects whose record PostgreSQL does not have, or as deleted; looked for where Weaviate has
    too many."""
    row = connection.execute("SELECT count(*) FROM searched WHERE NOT deleted").fetchone()
    serving = [found[0].name for found in collections.read(connection).values()]
    totals = [
        client.collections.use(name).aggregate.over_all(total_count=True).total_count or 0
        for name in serving
    ]
    if sum(totals) <= (row[0] if row else 0):
        return
    for name in serving:
        part: list[str] = []
        for found in client.collections.use(name).iterator(return_properties=["record_id"]):
            part.append(str(found.properties["record_id"]))
            if len(part) == CHUNK:
                yield _unknown(connection, part)
                part = []
        yield _unknown(connection, part)


def _unknown(connection: psycopg.Connection, ids: list[str]) -> list[str]:
    known = {row[0] for row in connection.execute(_KNOWN, {"ids": ids})}
    return [record_id for record_id in ids if record_id not in known]


def mark_all(connection: psycopg.Connection, settings: Settings, aliases: Ids[str]) -> None:
    """Mark every record that is searched under one of the aliases."""
    if not aliases:
        return
    for platform, kind in connection.execute(_PLACES).fetchall():
        if collections.alias(settings, platform, kind) in aliases:
            connection.execute(_MARK_PLACE, [platform, kind])
