"""Making a snapshot: one read-only transaction sees every table and the offsets of one moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from headrace import __version__
from headrace.backlog import database
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.snapshots import folder, positions, tables
from headrace.snapshots.manifest import Manifest
from headrace.stream import clients
from headrace.stream import topology as topologies

Say = Callable[[str], object]

_SAY_SECONDS = 5.0
_COLUMNS = """
SELECT c.table_name, array_agg(c.column_name::text ORDER BY c.ordinal_position)
FROM information_schema.columns c
JOIN information_schema.tables t USING (table_schema, table_name)
WHERE c.table_schema = current_schema() AND t.table_type = 'BASE TABLE'
  AND c.is_generated = 'NEVER' AND c.table_name = ANY(%s)
GROUP BY c.table_name
"""


def create(settings: Settings, name: str | None = None, say: Say = lambda line: None) -> Manifest:
    """A snapshot of the project's rows; without a name it gets one of the time.

    Readers and writers of the database go on meanwhile. Killed at any time it leaves `NAME.partial`
    behind, which the next one clears away. Raises HeadraceError where there is nothing to copy.
    """
    if name is not None:
        folder.check_name(name)
    topology = topologies.load(settings)
    with folder.locked(settings, say) as place:
        for swept in folder.sweep(place):
            say(f"cleared away what was left of {swept}")
        now = datetime.now(UTC)
        name = name or _free_name(settings, now)
        if (place / name).exists():
            raise HeadraceError(f"there is a snapshot {name} already: choose another name")
        with clients.admin(settings) as admin:
            # Before the transaction: what is gone by then a store cannot have missed after it.
            logs = positions.logs(admin, topology)
        half = place / f"{name}{folder.PARTIAL}"
        half.mkdir()
        try:
            with database.reading(settings) as connection:
                connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
                manifest = Manifest(
                    name=name,
                    project=settings.project,
                    created_at=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
                    headrace=__version__,
                    revision=_one(connection, "SELECT version_num FROM alembic_version"),
                    postgres=_one(connection, "SHOW server_version"),
                    record_changes=int(_one(connection, "SELECT last_value FROM record_changes")),
                    positions=positions.read(connection, topology, logs),
                    files={},
                )
                columns = columns_of(connection, tables.INCLUDED)
                files = {}
                for table in tables.INCLUDED:
                    if table not in columns:
                        continue  # of a schema that is older than this program
                    blocks = _rows(connection, table, columns[table], say)
                    path = half / f"{table}.copy.zst"
                    files[table] = file = folder.pack(path, blocks, columns[table])
                    if file.rows:
                        say(f"{table}: {file.rows:,} rows in {file.bytes:,} bytes")
        except BaseException:
            shutil.rmtree(half, ignore_errors=True)
            raise
        manifest = manifest.with_files(files)
        folder.write(half, manifest)
        half.rename(place / name)
        folder.sync(place)
    return manifest


def columns_of(connection: psycopg.Connection, wanted: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The columns of those tables that are there, without generated ones."""
    rows = connection.execute(_COLUMNS, [list(wanted)])
    found: dict[str, list[str]] = {table: columns for table, columns in rows}  # noqa: C416
    return {table: tuple(found[table]) for table in wanted if table in found}


def _rows(
    connection: psycopg.Connection, table: str, columns: tuple[str, ...], say: Say
) -> Iterator[bytes]:
    statement = sql.SQL("COPY {} ({}) TO STDOUT").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    rows, told = 0, time.monotonic()
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for block in copy:
            piece = bytes(block)
            rows += piece.count(b"\n")
            if time.monotonic() - told > _SAY_SECONDS:
                told = time.monotonic()
                say(f"{table}: {rows:,} rows so far")
            yield piece


def _free_name(settings: Settings, now: datetime) -> str:
    taken = {each.name for each in folder.listed(settings)}
    base = name = now.strftime("%Y%m%d-%H%M%S")
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def _one(connection: psycopg.Connection, query: str) -> str:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])
