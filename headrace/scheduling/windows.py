"""The windows of scheduled groups and jobs: rows of table windows.

Whoever opens is fenced by the session that holds the scheduler's lock; everything here may be done
twice and changes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import psycopg
from psycopg.types.json import Jsonb

from headrace.scheduling.units import Key

Ends = Mapping[str, Mapping[str, int]]  # topic (full name): partition: next offset
State = Literal["asked", "open", "done", "skipped"]

_COLUMNS = """
id, "group", platform, due, state, reason, asked_at, opened_at, ends, waiting, done_at
"""
_CLOSE = """
UPDATE windows SET state = 'skipped', reason = reason || ' (' || %s::text || ')', done_at = now()
WHERE state IN ('asked', 'open') AND "group" = %s
"""


@dataclass(frozen=True, slots=True)
class Window:
    """`ends` is what has to be passed; `waiting` the messages that waited when it was opened."""

    id: int
    group: str
    platform: str | None
    due: datetime
    state: State
    reason: str
    asked_at: datetime
    opened_at: datetime | None
    ends: Ends
    waiting: int
    done_at: datetime | None

    @property
    def key(self) -> Key:
        return self.group, self.platform


def open_windows(connection: psycopg.Connection, group: str | None = None) -> list[Window]:
    """The windows that are open now, of one group or of all."""
    return _select(
        connection, "state = 'open' AND (%(group)s::text IS NULL OR \"group\" = %(group)s)", group
    )


def unfinished(connection: psycopg.Connection) -> list[Window]:
    """The windows that are open or asked for."""
    return _select(connection, "state IN ('open', 'asked')", None)


def latest(connection: psycopg.Connection) -> dict[Key, Window]:
    """The window of each unit with a schedule noted that stands for its latest due time, whatever
    became of it."""
    return _last(connection, "true")


def last_worked(connection: psycopg.Connection) -> dict[Key, Window]:
    """The same of those that were opened."""
    return _last(connection, "opened_at IS NOT NULL")


def open_window(
    connection: psycopg.Connection,
    group: str,
    platform: str | None,
    ends: Ends,
    reason: str,
    due: datetime,
    now: datetime,
    *,
    waiting: int = 0,
    done: bool = False,
) -> Window | None:
    """Open a window for a due time; `done`: nothing is to do in it, so it is done at once. None
    where that due time has had its window, or another is open."""
    rows = connection.execute(
        f"""
        INSERT INTO windows ("group", platform, due, state, reason, asked_at, opened_at, ends,
                             waiting, done_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT DO NOTHING RETURNING {_COLUMNS}
        """,
        [group, platform, due, "done" if done else "open", reason, now, now, Jsonb(ends), waiting,
         now if done else None],
    ).fetchall()  # fmt: skip
    return Window(*rows[0]) if rows else None


def open_asked(
    connection: psycopg.Connection,
    group: str,
    platform: str | None,
    ends: Ends,
    now: datetime,
    *,
    waiting: int = 0,
    done: bool = False,
) -> None:
    """Open the window that somebody has asked for, if none is open."""
    connection.execute(
        """
        UPDATE windows SET state = %s, opened_at = %s, ends = %s, waiting = %s, done_at = %s
        WHERE "group" = %s AND platform IS NOT DISTINCT FROM %s AND state = 'asked'
        """,
        ["done" if done else "open", now, Jsonb(ends), waiting, now if done else None,
         group, platform],
    )  # fmt: skip


def skip(
    connection: psycopg.Connection,
    group: str,
    platform: str | None,
    reason: str,
    due: datetime,
    now: datetime,
) -> None:
    """Note that a due time gets no window."""
    connection.execute(
        """
        INSERT INTO windows ("group", platform, due, state, reason, asked_at, done_at)
        VALUES (%s, %s, %s, 'skipped', %s, %s, %s) ON CONFLICT DO NOTHING
        """,
        [group, platform, due, reason, now, now],
    )


def ask(
    connection: psycopg.Connection, keys: Iterable[Key], reason: str, now: datetime
) -> list[int]:
    """Ask for a window of each unit, as soon as may be; one that was asked for before stands for
    it. Returns the windows' ids."""
    ids = []
    for group, platform in keys:
        connection.execute(
            """
            INSERT INTO windows ("group", platform, due, state, reason, asked_at)
            VALUES (%s, %s, %s, 'asked', %s, %s) ON CONFLICT DO NOTHING
            """,
            [group, platform, now, reason, now],
        )
        rows = connection.execute(
            """
            SELECT id FROM windows WHERE "group" = %s AND platform IS NOT DISTINCT FROM %s
            AND state IN ('asked', 'open') ORDER BY state LIMIT 1
            """,
            [group, platform],
        ).fetchall()
        ids += [int(row[0]) for row in rows]
    return ids


def finish(connection: psycopg.Connection, window: int) -> bool:
    """A window is done; False where it was already."""
    return (
        connection.execute(
            "UPDATE windows SET state = 'done', done_at = now() WHERE id = %s AND state = 'open'",
            [window],
        ).rowcount
        > 0
    )


def close(connection: psycopg.Connection, key: Key, reason: str) -> None:
    """Nobody may work in these windows any more."""
    connection.execute(f"{_CLOSE} AND platform IS NOT DISTINCT FROM %s", [reason, *key])


def close_all(connection: psycopg.Connection, group: str, reason: str) -> list[str | None]:
    """The same for all windows of a group or job; of which platforms there were any."""
    rows = connection.execute(f"{_CLOSE} RETURNING platform", [reason, group]).fetchall()
    return [platform for (platform,) in rows]


def since(connection: psycopg.Connection) -> dict[Key, datetime]:
    """From when each unit's schedule counts."""
    rows = connection.execute('SELECT "group", platform, since FROM schedules').fetchall()
    return {(group, platform): moment for group, platform, moment in rows}


def note_schedules(
    connection: psycopg.Connection,
    schedules: Mapping[Key, str],
    disabled: Collection[Key],
    now: datetime,
) -> None:
    """Notes schedules; one that is new, or was changed, counts from now. What is disabled is
    forgotten, and so is new when it comes back."""
    rows = connection.execute('SELECT "group", platform, schedule FROM schedules').fetchall()
    known = {(group, platform): text for group, platform, text in rows}
    gone = known.keys() & disabled
    changed = {key: text for key, text in schedules.items() if known.get(key) != text}
    if not gone and not changed:
        return
    with connection.transaction():
        for group, platform in gone:
            connection.execute(
                'DELETE FROM schedules WHERE "group" = %s AND platform IS NOT DISTINCT FROM %s',
                [group, platform],
            )
        for (group, platform), text in changed.items():
            connection.execute(
                """
                INSERT INTO schedules ("group", platform, schedule, since)
                VALUES (%s, %s, %s, %s) ON CONFLICT ("group", platform)
                DO UPDATE SET schedule = excluded.schedule, since = excluded.since
                """,
                [group, platform, text, now],
            )


def _select(connection: psycopg.Connection, condition: str, group: str | None) -> list[Window]:
    query = f"SELECT {_COLUMNS} FROM windows WHERE {condition} ORDER BY id"
    return [Window(*row) for row in connection.execute(query, {"group": group}).fetchall()]


def _last(connection: psycopg.Connection, condition: str) -> dict[Key, Window]:
    """The one of each unit that was due last: a step into an index, however many there were."""
    found = f"""
        SELECT {_COLUMNS} FROM windows w WHERE w."group" = s."group" AND {condition}
        AND w.platform %s ORDER BY due DESC LIMIT 1
    """
    query = f"""
        SELECT w.* FROM schedules s CROSS JOIN LATERAL (
          ({found % "= s.platform"}) UNION ALL ({found % "IS NULL AND s.platform IS NULL"})) w
    """
    return {(window := Window(*row)).key: window for row in connection.execute(query).fetchall()}
