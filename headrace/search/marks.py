"""The queue in front of the projector: marks of records that changed, in table search_dirty."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import psycopg

from headrace.config import Settings
from headrace.stores import postgres
from headrace.stores.copying import copy, escaped

SHARDS = 8  # as the table's generated column has them

_WAITING = """
SELECT count(*), count(*) FILTER (WHERE rebuild), min(marked_at), now(),
       coalesce((SELECT last_value FROM pg_sequences
                 WHERE schemaname = current_schema() AND sequencename = 'search_dirty_id_seq'), 0)
FROM search_dirty
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """`marks` includes those of a `rebuild`; `ever` is the number of the last mark made."""

    marks: int
    rebuild: int
    oldest: datetime | None
    now: datetime
    ever: int

    @property
    def age(self) -> float:
        """Seconds since the oldest mark; 0 where none waits."""
        return max((self.now - self.oldest).total_seconds(), 0.0) if self.oldest else 0.0


def mark(connection: psycopg.Connection, records: Collection[str]) -> None:
    """Have records projected again; call it in the transaction that changes them."""
    if records:
        copy(connection, "search_dirty", ["record_id"], map(escaped, records))


def waiting(connection: psycopg.Connection) -> Waiting:
    row = connection.execute(_WAITING).fetchone()
    assert row is not None
    return Waiting(*row)


def left(settings: Settings) -> int:
    """Marks waiting, counted up to a thousand; asked on a connection of its own."""
    with postgres.connect(settings, readonly=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM (SELECT FROM search_dirty LIMIT 1000) AS first"
        ).fetchone()
    return int(row[0]) if row else 0


def errors(connection: psycopg.Connection) -> int:
    """How many records Weaviate did not take."""
    row = connection.execute("SELECT count(*) FROM search_errors").fetchone()
    return int(row[0]) if row else 0


def projectors(connection: psycopg.Connection, application: str) -> int:
    """How many projectors are connected to this database."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database()"
        " AND application_name = left(%s || ' ' || current_schema(), 63)",
        [application],
    ).fetchone()
    return int(row[0]) if row else 0
