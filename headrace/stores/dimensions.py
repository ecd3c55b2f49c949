"""Names resolved to ids: one select and at most one insert a batch, however many names it holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psycopg
from psycopg import sql

Key = tuple[Any, ...]


class Dimension:
    """One table `dim_*` with an `id`; several workers may fill it at once.

    columns  name → SQL type of what identifies a row, in the order of the keys
    extra    further columns of a new row, in the order of the values given for it
    """

    def __init__(
        self,
        table: str,
        columns: dict[str, str],
        extra: dict[str, str] | None = None,
        *,
        kept: int = 50_000,
    ) -> None:
        self._ids: dict[Key, int] = {}
        self._kept = kept
        self._width = len(columns)
        every = columns | (extra or {})
        arrays = ", ".join(f"%s::{kind}[]" for kind in every.values())
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        wanted = sql.SQL("unnest({}) AS wanted ({})")
        own = sql.SQL(", ").join(sql.Identifier("known", name) for name in columns)
        self._select = sql.SQL("SELECT known.id, {} FROM {} known JOIN {} USING ({})").format(
            own,
            sql.Identifier(table),
            wanted.format(sql.SQL(", ".join(f"%s::{kind}[]" for kind in columns.values())), names),
            names,
        )
        filled = sql.SQL(", ").join(map(sql.Identifier, every))
        # In one order everywhere, so that two workers never wait for each other in a circle.
        self._insert = sql.SQL(
            "INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY {} ON CONFLICT DO NOTHING"
            " RETURNING id, {}"
        ).format(
            sql.Identifier(table),
            filled,
            filled,
            wanted.format(sql.SQL(arrays), filled),
            names,
            names,
        )

    def resolve(self, connection: psycopg.Connection, rows: Collection[Key]) -> None:
        """Afterwards `self[key]` is known for each row (its key, then its extra values)."""
        if len(self._ids) > self._kept:
            self._ids.clear()
        missing = {row[: self._width]: row for row in rows if row[: self._width] not in self._ids}
        if not missing:
            return
        self._look(connection, missing)
        if missing:
            columns = [list(column) for column in zip(*missing.values(), strict=True)]
            self._note(connection.execute(self._insert, columns), missing)
        if missing:  # another worker inserted them meanwhile
            self._look(connection, missing)

    def forget(self) -> None:
        """For after a rollback: ids of that transaction do not exist."""
        self._ids.clear()

    def __getitem__(self, key: Key) -> int:
        return self._ids[key]

    def _look(self, connection: psycopg.Connection, missing: dict[Key, Any]) -> None:
        columns = [list(column) for column in zip(*missing, strict=True)]
        self._note(connection.execute(self._select, columns), missing)

    def _note(self, found: psycopg.Cursor[Any], missing: dict[Key, Any]) -> None:
        for number, *key in found:
            self._ids[tuple(key)] = number
            missing.pop(tuple(key), None)
