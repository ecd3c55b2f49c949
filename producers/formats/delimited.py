"""CSV and TSV: delimiter and header found, cells with line breaks, stray quotes survived."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from headrace.errors import HeadraceError
from producers.formats.base import MIB, BadRow, ReadOptions, Row
from producers.formats.source import Source
from producers.formats.table import column_names, find_header
from producers.formats.text import (
    ESCAPE,
    SURROGATE,
    bad_bytes_seen,
    not_in,
    printable,
    wrong_encoding,
)

# The lines are counted before the csv module sees them (`_Lines`), so its own limit may go.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

_DELIMITERS = (",", ";", "\t", "|")
ONE_COLUMN = "\x1f"  # stands nowhere: prose, a line a row
_SAMPLE_ROWS = 200
# Stands behind the last line. In a row of its own it is the end; inside a cell, a quote was open.
_END = "\x1c\x1d headrace: end of file \x1d\x1c"


class Layout:
    """Delimiter, width, header line (from 1, or None) and column names of one file."""

    def __init__(self, head: str, whole: bool, tabs: bool, options: ReadOptions) -> None:
        self.delimiter = options.delimiter or _find_delimiter(head, whole, tabs)
        lines, rows = _sample(head, whole, self.delimiter)
        if isinstance(options.header, int) and not isinstance(options.header, bool):
            if options.header < 1:
                raise HeadraceError("the header's line is counted from 1")
            index = next((i for i, line in enumerate(lines) if line >= options.header), None)
            if index is None:
                raise HeadraceError(f"there is no line {options.header} to take the header from")
            width = len(rows[index])
        else:
            width = len(options.columns or ()) or _usual_width(rows)
            index = None
            if options.header is not False:
                index = find_header(rows, width, options.known_columns)
                if index is None and options.header is True:
                    index = 0
                if index is not None:
                    width = len(rows[index])
        header = None if index is None else rows[index]
        self.header = None if index is None else lines[index]
        self.columns = column_names(header, width, options)
        self.width = width


def read_delimited(
    source: Source, encoding: str, layout: Layout, options: ReadOptions
) -> Iterator[Row | BadRow]:
    clean = bad_bytes_seen()
    text = io.TextIOWrapper(
        source.stream(), encoding=encoding, errors=ESCAPE, newline="", write_through=True
    )
    lines = _Lines(text.readline, options.max_row_bytes)
    columns, width = layout.columns, layout.width
    if layout.header:
        lines.skip_to_row(layout.header, layout.delimiter)
    pending, number = lines.pending, lines.number
    try:
        while True:
            reader = csv.reader(iter(lines), delimiter=layout.delimiter)
            again = False  # whether lines were given back, so that the reader must begin anew
            try:
                for cells in reader:
                    count = len(pending)
                    if (
                        len(cells) == width > 1
                        and count == 1
                        and clean == bad_bytes_seen()
                        and any(cells)
                    ):
                        yield Row(number, dict(zip(columns, cells, strict=True)))
                        pending.clear()
                        number += 1
                        continue
                    if pending[-1] is _END:
                        if cells == [_END]:
                            return
                        yield BadRow(number, "opens a quote that is never closed", _raw(pending[0]))
                        number = lines.give_back(number)
                        again = True
                        break
                    row, intact = _look(
                        number, cells, pending, layout, encoding, clean == bad_bytes_seen()
                    )
                    if row is not None:
                        yield row
                    if not intact:
                        number = lines.give_back(number)
                        again = True
                        break
                    pending.clear()
                    number += count
            except _RowTooLong:
                again = True
                yield BadRow(
                    number, f"is longer than {options.max_row_bytes:,} bytes", _raw(pending[0])
                )
                number = lines.give_back(number)
            except csv.Error as error:
                again = True
                yield BadRow(number, f"is broken: {error}", _raw(pending[0]))
                number = lines.give_back(number)
            if not again:
                return
    except UnicodeError as error:
        raise wrong_encoding(source.name, encoding, error) from None


def _look(
    number: int, cells: list[str], pending: list[str], layout: Layout, encoding: str, clean: bool
) -> tuple[Row | BadRow | None, bool]:
    """(what to give for a row that is not plain, whether its lines belong together)."""
    if not any(cell.strip() for cell in cells):
        return None, True
    if not clean and any(SURROGATE.search(cell) for cell in cells):
        return BadRow(number, not_in(encoding), _raw("".join(pending))), True
    width = layout.width
    if len(cells) > width and not any(cells[width:]):
        cells = cells[:width]  # empty cells behind the last column
    if len(cells) == width:
        return Row(number, dict(zip(layout.columns, cells, strict=True))), True
    reason = f"has {len(cells)} cells, not {width}"
    if len(pending) > 1 and not _well_quoted(pending, layout.delimiter):
        return BadRow(number, "holds a stray quote", _raw(pending[0])), False
    return BadRow(number, reason, _raw("".join(pending))), True


def _well_quoted(lines: list[str], delimiter: str) -> bool:
    try:
        return len(list(csv.reader(lines, delimiter=delimiter, strict=True))) == 1
    except csv.Error:
        return False


class _RowTooLong(Exception):
    """The lines of one row are more than may be kept."""


class _Lines:
    """The lines of a file, with those of the row that is being read kept in `pending`.

    A row that went wrong gives its lines but the first back, to be read again as rows of their own.
    """

    def __init__(self, readline: Callable[[int], str], limit: int) -> None:
        self._readline = readline
        self._limit = limit
        self._returned: deque[str] = deque()
        self.pending: list[str] = []
        self.number = 1  # of the next row's first line

    def __iter__(self) -> Iterator[str]:
        pending, readline, limit = self.pending, self._readline, self._limit
        returned = self._returned
        size = 0
        while True:
            line = returned.popleft() if returned else readline(limit) or _END
            if pending:
                size += len(line)
                if size > limit:
                    returned.appendleft(line)
                    raise _RowTooLong
            else:
                size = len(line)
            pending.append(line)
            if size >= limit and line[-1] not in "\r\n" and line is not _END:
                self._skip_line()
                raise _RowTooLong
            yield line
            if line is _END:
                return

    def give_back(self, number: int) -> int:
        """Give back all pending lines but the first; returns the next row's line number."""
        self._returned.extendleft(reversed(self.pending[1:]))
        self.pending.clear()
        return number + 1

    def skip_to_row(self, header: int, delimiter: str) -> None:
        """Read up to the end of the row that begins on line `header`."""
        for _ in range(header - 1):
            self._readline(self._limit)
        self.number = header
        next(csv.reader(iter(self), delimiter=delimiter), None)
        self.number += len(self.pending)
        self.pending.clear()

    def _skip_line(self) -> None:
        while piece := self._readline(MIB):
            if piece[-1] in "\r\n":
                return


def _raw(text: str) -> str:
    return printable(text.replace(_END, "").rstrip("\r\n"))


def _sample(head: str, whole: bool, delimiter: str) -> tuple[list[int], list[list[Any]]]:
    """(first line of each, cells of each) of the first rows that are not blank."""
    lines: list[int] = []
    rows: list[list[Any]] = []
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=delimiter)
    line = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                lines.append(line)
                rows.append(row)
            line = reader.line_num + 1
            if len(rows) >= _SAMPLE_ROWS:
                return lines, rows
    except csv.Error:
        pass
    if not whole and len(rows) > 1:  # the last one is cut off
        lines.pop()
        rows.pop()
    return lines, rows


def _usual_width(rows: list[list[Any]]) -> int:
    widths = Counter(len(row) for row in rows)
    return max(widths, key=lambda w: (widths[w], w), default=1)


def _find_delimiter(head: str, whole: bool, tabs: bool) -> str:
    """The delimiter by which most of the first rows have one and the same number of cells."""

    def score(delimiter: str) -> tuple[float, int]:
        rows = _sample(head, whole, delimiter)[1]
        width = _usual_width(rows)
        if width < 2:
            return 0.0, 0
        same = sum(len(row) == width for row in rows) / len(rows)
        # Commas and semicolons of prose may agree by chance: several columns are better evidence.
        return round(same * (1 - 0.5**width), 3), width

    scores = {delimiter: score(delimiter) for delimiter in _DELIMITERS}
    if tabs and scores["\t"][0] >= 0.5:
        return "\t"
    best = max(_DELIMITERS, key=lambda d: scores[d])
    if scores[best][0] >= 0.4:
        return best
    return "\t" if tabs else ONE_COLUMN
