"""Personas as a file: JSON lines, CSV or a workbook, a row each."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import orjson

from consumers.personas.reading import COLUMNS, Row
from headrace.errors import HeadraceError

FORMATS = ("jsonl", "csv", "xlsx")
BETWEEN = "; "  # entries of a list in a cell
_WIDTHS = {"id": 34, "name": 18, "occupation": 34, "tone_of_voice": 40, "typical_posts": 80}
_LONGEST_CELL = 32_767  # characters that a workbook's cell holds


def write(rows: Iterable[Row], form: str, path: Path | None, stream: IO[str]) -> int:
    """Write rows to `path`, or as text to `stream`; returns how many. A file is there whole or not
    at all. Raises HeadraceError where a workbook has no path."""
    if path is None:
        if form == "xlsx":
            raise HeadraceError("a workbook cannot go to a terminal: say --output FILE.xlsx")
        return _TEXTS[form](rows, stream)
    part = path.with_name(f"{path.name}.part")
    try:
        if form == "xlsx":
            count = _workbook(rows, part)
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                count = _TEXTS[form](rows, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _jsonl(rows: Iterable[Row], stream: IO[str]) -> int:
    count = 0
    for row in rows:
        stream.write(f"{orjson.dumps(row).decode()}\n")
        count += 1
    return count


def _csv(rows: Iterable[Row], stream: IO[str]) -> int:
    out = csv.writer(stream, lineterminator="\n")
    out.writerow(COLUMNS)
    count = 0
    for row in rows:
        out.writerow([_cell(row[name]) for name in COLUMNS])
        count += 1
    return count


_TEXTS: dict[str, Callable[[Iterable[Row], IO[str]], int]] = {"jsonl": _jsonl, "csv": _csv}


def _workbook(rows: Iterable[Row], path: Path) -> int:
    import xlsxwriter

    # What a model wrote is text, whatever it looks like.
    plain = {"strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    with xlsxwriter.Workbook(str(path), {"constant_memory": True, **plain}) as book:
        sheet = book.add_worksheet("personas")
        head = book.add_format({"bold": True})
        sheet.freeze_panes(1, 1)
        for column, name in enumerate(COLUMNS):
            sheet.set_column(column, column, _WIDTHS.get(name, 20))
            sheet.write_string(0, column, name, head)
        count = 0
        for count, row in enumerate(rows, 1):
            for column, name in enumerate(COLUMNS):
                value = _cell(row[name])
                sheet.write(
                    count, column, value[:_LONGEST_CELL] if isinstance(value, str) else value
                )
    return count


def _cell(value: Any) -> str | int | bool:
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return value
    return BETWEEN.join(map(str, value)) if isinstance(value, list) else str(value)
