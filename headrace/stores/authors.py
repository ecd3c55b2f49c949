"""Names of authors are remembered by whoever writes records, and may be forgotten meanwhile.

A writer shares a lock while it writes and looks whether names were taken out since it learned their
ids; whoever takes names out holds the lock alone, and says so by a sequence.
"""

from __future__ import annotations

import psycopg

LOCK = "hashtext('headrace authors ' || current_schema())"
_SHARE = f"SELECT pg_advisory_xact_lock_shared({LOCK})"
_CHANGES = "SELECT last_value, is_called FROM author_changes"


def hold(connection: psycopg.Connection) -> tuple[int, bool]:
    """Nobody takes names out until the transaction ends. Returns how often it has happened."""
    connection.execute(_SHARE)
    return seen(connection)


def seen(connection: psycopg.Connection) -> tuple[int, bool]:
    """How often names were taken out until now."""
    row = connection.execute(_CHANGES).fetchone()
    return (int(row[0]), bool(row[1])) if row else (0, False)
