"""Putting a snapshot's rows in the place of those that are there, in one transaction.

look     files, schema version, and whether the topics reach back to the snapshot's offsets
lock     the tables, offsets first as stores do; a store that runs would find itself overtaken
load     DELETE and COPY: until the commit readers see the old rows, and writers wait (TRUNCATE
         would show empty tables to whoever began to read before)
forget   what was forgotten since
mark     every record that is there now or was there before, so that search follows
offsets  Kafka's copies of the stores' offsets, so that the lag says what is to be caught up
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
from confluent_kafka import KafkaException
from psycopg import sql

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.snapshots import checking, folder, positions, tables
from headrace.snapshots.creation import columns_of
from headrace.snapshots.manifest import Manifest
from headrace.stores import migrate, postgres
from headrace.stream import clients
from headrace.stream import topology as topologies
from headrace.stream.clients import Admin, Partition
from headrace.words import count

Say = Callable[[str], object]

_PATIENCE = 120.0  # seconds to wait for transactions that hold the tables

_COUNTERS = """
SELECT table_name, column_name,
       pg_get_serial_sequence(quote_ident(table_name), column_name)
FROM information_schema.columns
WHERE table_schema = current_schema() AND is_identity = 'YES' AND table_name = ANY(%s)
"""
_MARK_ALL = """
INSERT INTO search_dirty (record_id)
SELECT id FROM searched WHERE NOT deleted UNION SELECT id FROM records_before
"""

_FORGOTTEN = """
CREATE TEMPORARY TABLE records_forgotten ON COMMIT DROP AS
SELECT f.record_id FROM forget_records f LEFT JOIN records r ON r.id = f.record_id
GROUP BY f.record_id
HAVING NOT coalesce(bool_or(r.topic = f.topic AND r."offset" > f."offset"), false)
"""

# No store works meanwhile: nobody remembers their ids.
_NAMELESS = """
DELETE FROM dim_author a WHERE NOT EXISTS (SELECT FROM records r WHERE r.author_id = a.id)
  AND EXISTS (SELECT FROM records_forgotten)
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """`behind`: messages that the stores have to catch up."""

    rows: int
    behind: int


def restore(settings: Settings, name: str, say: Say = lambda line: None) -> Restored:
    """Make the stores what they were. Killed at any time, the old rows are there.

    Raises HeadraceError where store workers run, where the snapshot is damaged or of a newer
    schema, and where catching up from it would miss what topics no longer hold.
    """
    topology = topologies.load(settings)
    with folder.locked(settings, say) as place:
        folder.sweep(place)
        path = folder.find(settings, name)
        manifest = folder.read(path)
        _insist(name, checking.of_origin(settings, manifest) + checking.of_files(path, manifest))
        with clients.admin(settings) as admin:
            nobody_works(admin, [store.name for store in topology.stores()])
            now = positions.logs(admin, topology)
            _insist(name, positions.out_of_reach(manifest.positions, topology, now))
            begin = {
                store.name: positions.starting_points(
                    manifest.positions, store.short, topology, now
                )
                for store in topology.stores()
            }
            migrate.upgrade(settings, topology)
            with postgres.connect(settings, application="headrace restore") as connection:
                try:
                    _replace(connection, settings, path, manifest, admin, begin, say)
                except psycopg.Error as error:
                    raise _explained(settings, name, error) from error
                _tidy(connection)
            behind = sum(
                now[where].end - at for starts in begin.values() for where, at in starts.items()
            )
    return Restored(manifest.rows, behind)


def nobody_works(admin: Admin, groups: list[str]) -> None:
    """Raises HeadraceError where one of the groups (full names) has members."""
    for group in groups:
        members = admin.members(group)
        if members:
            raise HeadraceError(
                f"{count(len(members), 'worker')} of {group} at work: end them"
                " first (`headrace run`, containers); a killed one counts for some seconds more"
            )


def _insist(name: str, faults: list[str]) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more: `headrace snapshot verify {name}`)"
        raise HeadraceError(
            f"snapshot {name} cannot be restored, and nothing was changed: {faults[0]}"
            f"{more if len(faults) > 1 else ''}"
        )


def _explained(settings: Settings, name: str, error: psycopg.Error) -> HeadraceError:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return HeadraceError(
            f"snapshot {name} does not fit the tables, and nothing was changed: {line}. Where a"
            f" table was dropped, drop the schema {settings.project} and restore again"
        )
    if postgres.passing(error):
        return ServerUnavailable(
            f"PostgreSQL at {postgres.where(settings)}: {line}; nothing was changed, try again"
        )
    return HeadraceError(f"snapshot {name} cannot be loaded, and nothing was changed: {line}")


# -- the transaction


def _replace(
    connection: psycopg.Connection,
    settings: Settings,
    path: Path,
    manifest: Manifest,
    admin: Admin,
    begin: dict[str, dict[Partition, int]],
    say: Say,
) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0")
        _lock(connection, say)
        connection.execute(
            "CREATE TEMPORARY TABLE records_before ON COMMIT DROP AS"
            " SELECT id FROM searched WHERE NOT deleted"
        )
        for table in tables.INCLUDED:
            connection.execute(_all("DELETE FROM {}", [table]))
        if manifest.revision == migrate.head():
            for table in manifest.files:
                _copy_in(connection, path, manifest, table, say)
        else:
            _copy_older(connection, settings.project, path, manifest, say)
        _heed_forgotten(connection)
        _count_on(connection, manifest)
        if settings.search.enabled:
            connection.execute(_MARK_ALL)
        # With the tables locked, and last: Kafka refuses where a worker has joined meanwhile, who
        # may have read the old offsets. Should the commit fail, the lag is too large until the
        # next worker mirrors what is true; the other way round it would be too small.
        for group, starts in begin.items():
            try:
                admin.alter_offsets(group, starts)
            except ServerUnavailable:
                raise
            except KafkaException as error:
                nobody_works(admin, [group])
                raise HeadraceError(
                    f"Kafka does not take the offsets of {group}: {error}"
                ) from None


def _tidy(connection: psycopg.Connection) -> None:
    """The old rows' room, and what the planner knows: everything is right without it."""
    connection.autocommit = True
    with suppress(psycopg.Error):
        connection.execute("SET statement_timeout = 0")
        connection.execute(_all("VACUUM (ANALYZE) {}", tables.INCLUDED))


def _lock(connection: psycopg.Connection, say: Say) -> None:
    """All tables; writers wait from here on. In the stores' order, offsets first; those who hold
    them in another one are given the way."""
    order = ["offsets", *(table for table in tables.INCLUDED if table != "offsets")]
    give_up = time.monotonic() + _PATIENCE
    connection.execute("SET LOCAL lock_timeout = '5s'")
    while True:
        try:
            with connection.transaction():  # a savepoint
                connection.execute(_all("LOCK TABLE {} IN EXCLUSIVE MODE", order))
            break
        except (psycopg.errors.LockNotAvailable, *postgres.COLLISIONS):
            if time.monotonic() > give_up:
                raise
            say("waiting for transactions that hold the tables")
    connection.execute("SET LOCAL lock_timeout = 0")


def _copy_in(
    connection: psycopg.Connection, path: Path, manifest: Manifest, table: str, say: Say
) -> None:
    file = manifest.files[table]
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, file.columns))
    )
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for piece in folder.unpack(path / file.name):
                copy.write(piece)
        if cursor.rowcount != file.rows:
            raise HeadraceError(
                f"{path / file.name} has {cursor.rowcount:,} rows instead of {file.rows:,};"
                " nothing was changed"
            )
    if file.rows:
        say(f"{table}: {file.rows:,} rows")


def _copy_older(
    connection: psycopg.Connection, project: str, path: Path, manifest: Manifest, say: Say
) -> None:
    """By way of a schema as it was then, which is brought up to date with the rows in it."""
    other = f"{project}$restore"  # no project's name
    go = sql.SQL("SET LOCAL search_path = {}")
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(other)))
    connection.execute(go.format(sql.Identifier(other)))
    migrate.run_alembic(connection, other, manifest.revision)
    for table in manifest.files:
        _copy_in(connection, path, manifest, table, say)
    say(f"brings the rows from schema version {manifest.revision} to {migrate.head()}")
    migrate.run_alembic(connection, other)
    for table, columns in columns_of(connection, tables.INCLUDED).items():
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
                sql.Identifier(project, table),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.SQL(", ").join(map(sql.Identifier, columns)),
                sql.Identifier(other, table),
            )
        )
    connection.execute(go.format(sql.Identifier(project)))
    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(other)))


def _heed_forgotten(connection: psycopg.Connection) -> None:
    """A snapshot that was out of reach when records were forgotten brings none of them back. One
    that was made when a record had been published anew keeps that."""
    connection.execute(_FORGOTTEN)
    for table, content in tables.INCLUDED.items():
        if content is None:
            continue
        statement = "DELETE FROM {} WHERE {} IN (SELECT record_id FROM records_forgotten)"
        if content.of_node:
            statement = statement.replace("WHERE {}", "WHERE record_of({})")
        parts: list[sql.Composable] = [sql.Identifier(table), sql.Identifier(content.record)]
        if content.tombstone is not None:
            statement += " AND {} <> {}"
            name, value = content.tombstone
            parts += [sql.Identifier(name), sql.Literal(value)]
        connection.execute(sql.SQL(statement).format(*parts))
    connection.execute(_NAMELESS)


def _count_on(connection: psycopg.Connection, manifest: Manifest) -> None:
    """Sequences go on behind whatever they gave before and whatever stands in the rows. They know
    no rollback, and need none."""
    for table, column, sequence in connection.execute(
        _COUNTERS, [list(tables.INCLUDED)]
    ).fetchall():
        connection.execute(
            sql.SQL(
                "SELECT setval(%s, greatest(last_value, (SELECT max({}) FROM {}))) FROM {}"
            ).format(sql.Identifier(column), sql.Identifier(table), sql.SQL(sequence)),
            [sequence],
        )
    connection.execute(
        "SELECT setval('record_changes', greatest(last_value, %s,"
        " (SELECT max(row_version) FROM records), (SELECT max(row_version) FROM outcomes),"
        " (SELECT max(row_version) FROM nodes), (SELECT max(row_version) FROM decisions)))"
        " FROM record_changes",
        [manifest.record_changes],
    )


def _all(statement: LiteralString, names: Iterable[str]) -> sql.Composed:
    return sql.SQL(statement).format(sql.SQL(", ").join(map(sql.Identifier, names)))
