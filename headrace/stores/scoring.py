"""The weights of the dimensions, and the weighted scores that follow from them.

Weights in force stand in table score_dimensions, beside what was reckoned with them; the settings
say what they are to be. The SQL function `weighted_score` is the only one that reckons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psycopg

from headrace.config import Dimension, Settings
from headrace.errors import HeadraceError
from headrace.stores import postgres

CHUNK = 10_000

# Held shared by whoever writes scores: when this is had alone, all that was reckoned by older
# weights can be seen.
LOCK = "hashtextextended('headrace scores ' || current_schema(), 0)"
_ONE = "hashtextextended('headrace recompute ' || current_schema(), 0)"  # at a time

_DIMENSIONS = "SELECT name, description, weight FROM score_dimensions ORDER BY place"
_SET = """
INSERT INTO score_dimensions AS d (name, description, weight, place) VALUES (%s, %s, %s, %s)
ON CONFLICT (name) DO UPDATE SET
  description = excluded.description, weight = excluded.weight, place = excluded.place,
  since = CASE WHEN d.weight = excluded.weight THEN d.since ELSE now() END
"""
_RECKON = """
WITH page AS (
  SELECT record_id, weighted, weighted_score(scores) AS now_ FROM scores
  WHERE record_id > %(after)s ORDER BY record_id LIMIT %(chunk)s
), changed AS (
  UPDATE scores s SET weighted = page.now_ FROM page
  WHERE s.record_id = page.record_id AND page.now_ IS DISTINCT FROM page.weighted
  RETURNING 1
)
SELECT max(record_id), count(*), (SELECT count(*) FROM changed) FROM page
"""


def in_force(connection: psycopg.Connection) -> dict[str, Dimension]:
    """The dimensions as everything stored was reckoned with, in their order."""
    rows = connection.execute(_DIMENSIONS).fetchall()
    return {name: Dimension(description=text, weight=weight) for name, text, weight in rows}


def begin(connection: psycopg.Connection, settings: Settings) -> None:
    """The settings' dimensions where there are none yet."""
    if not in_force(connection):
        _put(connection, settings.scores.dimensions)


def differs(connection: psycopg.Connection, settings: Settings) -> bool:
    """Whether the settings name other dimensions or weights than those in force."""
    known = {name: found.weight for name, found in in_force(connection).items()}
    return known != {name: found.weight for name, found in settings.scores.dimensions.items()}


def recompute(
    connection: psycopg.Connection,
    settings: Settings,
    tell: Callable[[int], Any] = lambda done: None,
) -> tuple[int, int]:
    """Put the settings' weights in force and reckon every record's score anew, a chunk a
    transaction; asks no model. Returns how many were looked at and how many changed. Whoever is
    killed in between calls it again. `connection` is in autocommit mode. Raises HeadraceError
    while another process does the same."""
    if connection.execute(f"SELECT pg_try_advisory_lock({_ONE})".encode()).fetchone() != (True,):
        raise HeadraceError("another command is reckoning the scores: wait until it has ended")
    try:
        with connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})".encode())
            _put(connection, settings.scores.dimensions)
        return _reckon(connection, tell)
    finally:
        with suppress(psycopg.Error):  # it ends with the session at the latest
            connection.execute(f"SELECT pg_advisory_unlock({_ONE})".encode())


def _reckon(connection: psycopg.Connection, tell: Callable[[int], Any]) -> tuple[int, int]:
    done, changed, after = 0, 0, ""
    while True:
        page = {"after": after, "chunk": CHUNK}
        row = postgres.again(lambda: connection.execute(_RECKON, page).fetchone())  # noqa: B023
        if row is None or row[0] is None:
            return done, changed
        after, done, changed = row[0], done + row[1], changed + row[2]
        tell(done)


def _put(connection: psycopg.Connection, wanted: Mapping[str, Dimension]) -> None:
    connection.execute("DELETE FROM score_dimensions WHERE name <> ALL(%s)", [list(wanted)])
    with connection.cursor() as cursor:
        cursor.executemany(
            _SET,
            [
                (name, one.description, one.weight, place)
                for place, (name, one) in enumerate(wanted.items())
            ],
        )
