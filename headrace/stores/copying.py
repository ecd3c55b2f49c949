"""Rows as blocks of COPY's text format: a call a row would cost more than the row."""

from __future__ import annotations

import re
from collections.abc import Iterable

import psycopg
from psycopg import sql

NULL = "\\N"
_BLOCK = 1 << 17  # characters sent at once; PostgreSQL works on them while we make the next


def escaped(text: str | None) -> str:
    """A field of COPY's text format. PostgreSQL refuses NUL characters; they are not looked for."""
    if text is None:
        return NULL
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\n" in text:
        text = text.replace("\n", "\\n")
    if "\t" in text:
        text = text.replace("\t", "\\t")
    if "\r" in text:
        text = text.replace("\r", "\\r")
    return text


_SIGNS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPE = re.compile(r"\\(.)", re.S)


def unescaped(field: str) -> str | None:
    """A field of COPY's text format as PostgreSQL writes it, read."""
    if field == NULL:
        return None
    return _ESCAPE.sub(lambda found: _SIGNS.get(found[1], found[1]), field)


def copy(
    connection: psycopg.Connection, table: str, columns: Iterable[str], lines: Iterable[str]
) -> None:
    """COPY lines (fields escaped and joined by tabs, without a line end) into a table."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as stream:
        block: list[str] = []
        size = 0
        for line in lines:
            block.append(line)
            size += len(line)
            if size > _BLOCK:
                stream.write(_encoded(block))
                block, size = [], 0
        if block:
            stream.write(_encoded(block))


def _encoded(block: list[str]) -> bytes:
    block.append("")
    return "\n".join(block).encode()
