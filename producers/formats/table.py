"""Where the header of a table stands, and what its columns are called: pure functions on cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from producers.formats.base import ReadOptions

_LOOK = 12  # rows from the top among which a header is looked for
_NOT_A_NAME = re.compile(r"^[-+]?[\d.,:/ ]*\d[\d.,:/ ]*(e[+-]?\d+)?%?$|://|[\n\r]|\d{5}", re.I)

_DIGITS = re.compile(r"\d+")


def find_header(rows: Sequence[Sequence[Any]], width: int, known: frozenset[str]) -> int | None:
    """Which of the first rows (from 0) is the header, or None if there is none.

    A row with several known names is one. Else it is the first full row, unless a cell of it is no
    name (a number, an address, prose) or comes again below in its own column, as a label does, but
    for its digits (post_17, post_18).
    """
    best, hits = None, 0
    for index, row in enumerate(rows[:_LOOK]):
        found = len({_cell(c) for c in row} & known)
        if found > hits:
            best, hits = index, found
    if hits >= min(2, width):
        return best
    for index, row in enumerate(rows[:_LOOK]):
        filled = [_cell(c) for c in row if _cell(c)]
        if len(row) != width or (len(filled) <= 1 < width):
            continue  # a title above the table
        return index if _is_header(row, rows[index + 1 :]) else None
    return None


def _is_header(row: Sequence[Any], below: Sequence[Sequence[Any]]) -> bool:
    names = [_cell(c) for c in row]
    filled = [n for n in names if n]
    if not filled or len(filled) < len(names) / 2 or len(set(filled)) <= len(filled) / 2:
        return False
    for value, name in zip(row, names, strict=True):
        if not isinstance(value, str) or _NOT_A_NAME.search(name):
            return False
        if len(name) > 80 or (len(name) > 40 and len(name.split()) > 7):
            return False
    shapes = [_shape(name) for name in names]
    return not any(
        name and (_cell(cell) == name or (shape != name and _shape(_cell(cell)) == shape))
        for other in below
        if list(other) != list(row)
        for name, shape, cell in zip(names, shapes, other, strict=False)
    )


def _shape(text: str) -> str:
    """post_17 and post_18 are of one shape."""
    return _DIGITS.sub("#", text)


def column_names(header: Sequence[Any] | None, width: int, options: ReadOptions) -> tuple[str, ...]:
    """One name a column: as set, else the header's (made different), else col1, col2, …"""
    given: Sequence[Any] = options.columns or header or ()
    names: list[str] = []
    taken: set[str] = set()
    for place in range(max(width, len(given))):
        base = _cell(given[place]) if place < len(given) else ""
        name = base = base or f"col{place + 1}"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        names.append(name)
    return tuple(names)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip().lstrip("\ufeff")
