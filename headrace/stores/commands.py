"""`headrace sql` and `headrace migrate`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

import click
import orjson
import psycopg

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stores import migrate as migrations
from headrace.stores import postgres
from headrace.words import count

SHOWN = 1000  # rows of a table on a terminal
_NARROW = 10  # columns of a terminal that a column of a table needs, on average
_WIDE = 10_000  # characters, where nobody's terminal ends the line


@click.command()
@click.argument("query")
@click.option("--csv", "form", flag_value="csv", help="Comma-separated, with a header.")
@click.option("--json", "form", flag_value="json", help="An array of objects.")
@click.option("--table", "form", flag_value="table", default="table", hidden=True)
@click.pass_obj
def sql(load: Callable[[], Settings], query: str, form: str) -> None:
    """Ask the database (`-` reads the query from standard input). Nothing can be changed by it.

    Views: posts, entities, communities, record_status, coverage, platform_metrics,
    metrics_current, metrics_history.
    """
    settings = load()
    if query == "-":
        query = sys.stdin.read()
    if not query.strip():
        raise HeadraceError("sql: the query is empty")
    with postgres.connect(settings, readonly=True, application="headrace sql") as connection:
        connection.read_only = True
        try:
            with connection.cursor() as cursor:
                # In single-row mode, so that an answer larger than memory can be piped away.
                rows = cursor.stream(query.encode())
                first = next(rows, None)
                names = [column.name for column in cursor.description or ()]
                every = rows if first is None else _chain(first, rows)
                _WAYS[form](names, every)
        except psycopg.Error as error:
            raise HeadraceError(explained(connection, settings, error)) from None


@click.command()
@click.pass_obj
def migrate(load: Callable[[], Settings]) -> None:
    """Bring the project's tables and views up to date; harmless where they are."""
    settings = load()
    done = migrations.upgrade(settings)
    state = "are now" if done else "were already"
    click.echo(f"the tables of schema {settings.project} {state} at version {migrations.head()}")


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def explained(connection: psycopg.Connection, settings: Settings, error: psycopg.Error) -> str:
    """What went wrong with somebody's query, in one line."""
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return f"sql only reads, and this would write: {_first_line(error)}"
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return "sql: the query gives no rows: write a SELECT"
    hint = ""
    if isinstance(error, psycopg.errors.UndefinedTable):
        connection.rollback()
        found = connection.execute("SELECT to_regclass('records') IS NULL").fetchone()
        if found and found[0]:
            hint = f" (schema {settings.project} has no tables yet: `headrace migrate` makes them)"
    elif error.diag.message_hint:
        hint = f" ({error.diag.message_hint})"
    return f"sql: {_first_line(error)}{hint}"


def _first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# -- ways to show rows


def _as_table(names: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = iter(rows)
    shown = list(islice(rows, SHOWN))
    more = next(rows, None) is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(names):
        numeric = any(isinstance(row[number], int | float | Decimal) for row in shown)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*(Text(_plain(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    if len(names) * _NARROW > console.width:
        for line in _upright(names, shown):
            console.print(line, highlight=False)
    else:
        console.print(table)
    if more:
        console.print(f"the first {SHOWN:,} rows; --csv and --json give them all")
    else:
        console.print(count(len(shown), "row"))


def _upright(names: list[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """A line a value, for more columns than a terminal has room for."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for number, row in enumerate(rows, 1):
        yield Text(f"row {number}", style="bold")
        table = Table.grid(padding=(0, 2))
        for name, value in zip(names, row, strict=True):
            table.add_row(Text(name, style="dim"), Text(_plain(value), overflow="fold"))
        yield Padding(table, (0, 0, 1, 2))


def _as_csv(names: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    out = csv.writer(sys.stdout)
    out.writerow(names)
    for row in rows:
        out.writerow(["" if value is None else _text(value) for value in row])


def _as_json(names: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    write = sys.stdout.write
    separator = "[\n"
    for row in rows:
        line = orjson.dumps(dict(zip(names, row, strict=True)), default=_simple)
        write(f"{separator}{line.decode()}")
        separator = ",\n"
    write("[]\n" if separator == "[\n" else "\n]\n")


_WAYS: dict[str, Callable[[list[str], Iterable[tuple[Any, ...]]], None]] = {
    "table": _as_table,
    "csv": _as_csv,
    "json": _as_json,
}


def _plain(value: Any) -> str:
    """A value in one line, without characters that a terminal obeys."""
    if value is None:
        return ""
    text = " ".join(_text(value).split())
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat(sep=" ") if isinstance(value, datetime) else value.isoformat()
    if isinstance(value, bytes | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, dict | list):
        return orjson.dumps(value, default=_simple).decode()
    return str(value)


def _simple(value: Any) -> Any:
    """What JSON has no type for."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    return _text(value)
