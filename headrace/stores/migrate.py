"""Brings the project's schema up to date: tables by Alembic, views from topics.yaml's stages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.stores import postgres, scoring, views

if TYPE_CHECKING:
    from headrace.stream.topology import Group, Topology

log = logging.getLogger(__name__)

PACKAGE = "headrace.stores.migrations"
PATIENCE = "120s"  # another process may be migrating


def upgrade(settings: Settings, topology: Topology | None = None) -> bool:
    """Make the schema what this version needs; True if something was done.

    Safe from several processes at once, and one short query where nothing is to do. Raises
    HeadraceError where the database cannot be used or was made by a newer version.
    """
    if topology is None:
        from headrace.stream import topology as topologies

        topology = topologies.load(settings)
    stages = stage_rows(topology)
    statements = views.statements(stages, settings.processing.coverage_level)
    wanted = _signature(stages, statements, settings)
    with postgres.connect(settings, application="headrace migrate") as connection:
        if _noted(connection, settings.project) == wanted:
            return False
        try:
            return postgres.again(
                lambda: _migrate(connection, settings, stages, statements, wanted)
            )
        except psycopg.Error as error:
            if postgres.lost(error):
                raise ServerUnavailable(
                    f"PostgreSQL at {postgres.where(settings)} went away while its tables were "
                    "made: try again"
                ) from error
            raise HeadraceError(
                f"the tables of schema {settings.project} at {postgres.where(settings)} cannot be "
                f"brought up to date: {str(error).splitlines()[0]}"
            ) from error


def stage_rows(topology: Topology) -> list[views.StageRow]:
    """What views and coverage need to know of each stage, in topics.yaml's order."""
    return [
        views.StageRow(
            stage=group.short,
            facet=group.facet or group.short,
            semantic=bool(group.semantic),
            paid=group.paid,
            version=group.version,
            rank=group.rank,
            description=group.description,
            topics=tuple(sorted(_roots(topology, group), key=lambda root: root[0])),
        )
        for group in topology.stages()
    ]


def _roots(topology: Topology, group: Group) -> set[tuple[str, str | None]]:
    """The raw topics whose records reach a stage, through other stages too."""
    roots: set[tuple[str, str | None]] = set()
    for topic in group.reads:
        above = topology.stage_of(topic)
        roots |= {(topic.name, topic.platform)} if above is None else _roots(topology, above)
    return roots


def _versions() -> list[str]:
    folder = resources.files(PACKAGE) / "versions"
    return sorted(entry.name for entry in folder.iterdir() if entry.name[:4].isdigit())


def _signature(
    stages: Sequence[views.StageRow], statements: Sequence[str], settings: Settings
) -> str:
    password = settings.postgres.reader_password
    parts = [*_versions(), repr(stages), *statements, settings.postgres.reader_role]
    parts.append(password.get_secret_value() if password else "")
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _noted(connection: psycopg.Connection, schema: str) -> str | None:
    """The signature of what the schema was made from; None if there is none yet."""
    query = sql.SQL("SELECT value FROM {} WHERE key = 'made_from'").format(
        sql.Identifier(schema, "about")
    )
    try:
        row = connection.execute(query).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        row = None
    finally:
        connection.rollback()
    return str(row[0]) if row else None


def _migrate(
    connection: psycopg.Connection,
    settings: Settings,
    stages: Sequence[views.StageRow],
    statements: Sequence[str],
    wanted: str,
) -> bool:
    """The whole work in one transaction: readers see the old views or the new, never none."""
    with connection.transaction():
        connection.execute(
            "SELECT set_config(name, %s, true) FROM unnest(%s::text[]) AS name",
            (PATIENCE, ["lock_timeout", "statement_timeout"]),
        )
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            (f"headrace migrate {settings.project}",),
        )
        connection.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(settings.project))
        )
        noted = connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", (f"{settings.project}.about",)
        ).fetchone()
        if noted and noted[0]:
            row = connection.execute("SELECT value FROM about WHERE key = 'made_from'").fetchone()
            if row and row[0] == wanted:
                return False  # another process was quicker
        for view in views.NAMES:
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(sql.Identifier(view)))
        run_alembic(connection, settings.project)
        _note_stages(connection, stages)
        scoring.begin(connection, settings)
        for statement in statements:
            connection.execute(statement.encode())
        _let_read(connection, settings)
        connection.execute(
            "INSERT INTO about VALUES ('made_from', %s)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (wanted,),
        )
    log.info("the tables of schema %s are up to date", settings.project)
    return True


def run_alembic(connection: psycopg.Connection, schema: str, revision: str = "head") -> None:
    """Alembic on our own connection, inside our transaction. `search_path` names the schema."""
    # Here, since SQLAlchemy takes longer to import than an up-to-date schema takes to check.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: _Borrowed(connection),
        poolclass=StaticPool,
        pool_reset_on_return=None,
        use_native_hstore=False,
    )
    config = Config()
    config.set_main_option("script_location", PACKAGE.replace(".", ":", 1).replace(".", "/"))
    with engine.connect() as alchemy:
        config.attributes["connection"] = alchemy
        config.attributes["schema"] = schema
        try:
            command.upgrade(config, revision)
        except CommandError as error:
            raise HeadraceError(
                f"schema {schema} was made by a newer version of headrace ({error}): update "
                "headrace, or use another project"
            ) from error


class _Borrowed:
    """A connection whose transaction is not Alembic's to end."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...


def _note_stages(connection: psycopg.Connection, stages: Sequence[views.StageRow]) -> None:
    connection.execute("DELETE FROM stages")
    connection.execute("DELETE FROM stage_topics")
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO stages VALUES (%s, %s, %s, %s, %s, %s)",
            [(s.stage, s.facet, s.semantic, s.version, s.rank, s.description) for s in stages],
        )
        cursor.executemany(
            "INSERT INTO stage_topics VALUES (%s, %s, %s)",
            [(s.stage, topic, platform) for s in stages for topic, platform in s.topics],
        )


def _let_read(connection: psycopg.Connection, settings: Settings) -> None:
    """The reader role sees everything in the schema and changes nothing.

    A server on which we may not make roles is used without one.
    """
    role = settings.postgres.reader_role
    name, schema = sql.Identifier(role), sql.Identifier(settings.project)
    found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
    try:
        with connection.transaction():
            if not found:
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(name))
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        pass  # another project made it just now
    except psycopg.errors.InsufficientPrivilege:
        log.warning("no right to make role %s: grant SELECT to your readers yourself", role)
        return
    try:
        with connection.transaction():
            if settings.postgres.reader_password is not None:
                secret = settings.postgres.reader_password.get_secret_value()
                # Hashed here, so that the server's log cannot show it.
                hashed = connection.pgconn.encrypt_password(
                    secret.encode(), role.encode(), b"scram-sha-256"
                ).decode()
                connection.execute(
                    sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(hashed))
                )
            for grant in (
                "GRANT USAGE ON SCHEMA {schema} TO {role}",
                "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
            ):
                connection.execute(sql.SQL(grant).format(schema=schema, role=name))
    except psycopg.errors.InsufficientPrivilege:
        log.warning("no right to change role %s: grant SELECT to your readers yourself", role)


def revisions() -> tuple[str, ...]:
    """The migrations' numbers, the oldest first."""
    return tuple(name[:4] for name in _versions())


def head() -> str:
    """The newest migration's number."""
    return revisions()[-1]
