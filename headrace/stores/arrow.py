"""Answers of PostgreSQL as Arrow tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pyarrow as pa
from psycopg.types.json import set_json_loads

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stores import postgres
from headrace.stores.commands import explained

ROWS = 10_000  # that become one piece of a table

_MOMENT = pa.timestamp("us", tz="UTC")
# By PostgreSQL's names. What is not among them comes as text, JSON too.
_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(), "int2": pa.int64(), "int4": pa.int64(), "int8": pa.int64(),
    "float4": pa.float64(), "float8": pa.float64(), "numeric": pa.float64(),
    "date": pa.date32(), "timestamptz": _MOMENT, "timestamp": pa.timestamp("us"),
    "bytea": pa.binary(),
}  # fmt: skip


def query(settings: Settings, text: str) -> pa.Table:
    """The answer to a query, which can change nothing. Numbers of any size in PostgreSQL's
    `numeric` become floats; JSON stays text.

    Raises HeadraceError for what PostgreSQL does not understand or refuses, ServerUnavailable.
    """
    if not text.strip():
        raise HeadraceError("sql: the query is empty")
    with postgres.connect(settings, readonly=True, application="headrace python") as connection:
        connection.read_only = True
        set_json_loads(_as_written, connection)
        try:
            with connection.cursor() as cursor:
                return _read(connection, cursor, text)
        except psycopg.Error as error:
            raise HeadraceError(explained(connection, settings, error)) from None


def _read(connection: psycopg.Connection, cursor: psycopg.Cursor, text: str) -> pa.Table:
    pieces: list[pa.RecordBatch] = []
    rows: list[tuple[Any, ...]] = []
    schema: pa.Schema | None = None
    turn: list[Callable[[Any], Any]] = []
    for row in cursor.stream(text.encode()):
        if schema is None:
            schema, turn = _described(connection, cursor)
        rows.append(row)
        if len(rows) == ROWS:
            pieces.append(_piece(rows, schema, turn))
            rows = []
    if schema is None:  # a stream without rows does not tell its columns
        cursor.execute(text.encode())
        schema, turn = _described(connection, cursor)
    if rows:
        pieces.append(_piece(rows, schema, turn))
    return pa.Table.from_batches(pieces, schema)


def _described(
    connection: psycopg.Connection, cursor: psycopg.Cursor
) -> tuple[pa.Schema, list[Callable[[Any], Any]]]:
    """The columns' types, and how a value becomes one of its type."""
    fields, turn = [], []
    for column in cursor.description or ():
        known = connection.adapters.types.get(column.type_code)
        name = known.name if known else ""
        many = known is not None and column.type_code == known.array_oid
        one = _TYPES.get(name)
        if many:
            fields.append(pa.field(column.name, pa.list_(one or pa.string())))
            turn.append(_many(_turn(name)))
        else:
            fields.append(pa.field(column.name, one or pa.string()))
            turn.append(_turn(name))
    return pa.schema(fields), turn


def _piece(
    rows: Sequence[tuple[Any, ...]], schema: pa.Schema, turn: Sequence[Callable[[Any], Any]]
) -> pa.RecordBatch:
    arrays = []
    for number, field in enumerate(schema):
        values = [None if row[number] is None else turn[number](row[number]) for row in rows]
        arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _turn(name: str) -> Callable[[Any], Any]:
    if name == "numeric":
        return float
    if name == "bytea":
        return bytes
    return _same if name in _TYPES else str


def _many(turn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [None if value is None else turn(value) for value in values]


def _same(value: Any) -> Any:
    return value


def _as_written(json: str | bytes) -> str:
    return json if isinstance(json, str) else bytes(json).decode()
