"""XLSX. A sheet is loaded as a whole (python-calamine), so its size has a limit."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from python_calamine import CalamineError, CalamineWorkbook

from headrace.errors import HeadraceError
from producers.formats.base import MIB, BadRow, ReadOptions, Row
from producers.formats.table import column_names, find_header

_SAMPLE_ROWS = 200
_EXACT = 2**53  # up to here a spreadsheet's numbers are exact


class Sheet:
    """One loaded sheet."""

    def __init__(self, file: IO[bytes], name: str, options: ReadOptions) -> None:
        _refuse_bomb(file, name, options.max_load_bytes)
        file.seek(0)
        try:
            book = CalamineWorkbook.from_filelike(file)
            names = book.sheet_names
            self.name = options.sheet or (names[0] if names else "")
            if self.name not in names:
                raise HeadraceError(
                    f"{name} has no sheet {self.name!r}: it has {', '.join(names) or 'none'}"
                )
            rows = book.get_sheet_by_name(self.name).to_python(skip_empty_area=False)
        except (CalamineError, OSError, ValueError) as error:
            raise HeadraceError(f"{name} cannot be read as XLSX: {error}") from None
        self._rows = rows
        sample = [(i, row) for i, row in enumerate(rows) if _filled(row)][:_SAMPLE_ROWS]
        width = max((len(row) for _, row in sample), default=0)
        place: int | None = None
        if isinstance(options.header, int) and not isinstance(options.header, bool):
            place = options.header - 1
            if not 0 <= place < len(rows):
                raise HeadraceError(f"{name} has no row {options.header} to take the header from")
        elif options.header is not False and sample:
            found = find_header([row for _, row in sample], width, options.known_columns)
            if found is None and options.header is True:
                found = 0
            place = None if found is None else sample[found][0]
        self.header = None if place is None else place + 1
        self.columns = column_names(None if place is None else rows[place], width, options)
        self.done = self.header or 0

    def __iter__(self) -> Iterator[Row | BadRow]:
        for index in range(self.header or 0, len(self._rows)):
            cells = self._rows[index]
            self.done = index + 1
            if _filled(cells):
                values = map(_plain, cells)
                yield Row(index + 1, dict(zip(self.columns, values, strict=False)))

    def fraction(self) -> float | None:
        return self.done / len(self._rows) if self._rows else 1.0


def _filled(cells: list[Any]) -> bool:
    return any(cell not in ("", None) for cell in cells)


def _plain(cell: Any) -> Any:
    """A spreadsheet knows no integers: 3.0 is 3, while it is exact."""
    if type(cell) is float and cell.is_integer() and abs(cell) < _EXACT:
        return int(cell)
    return cell


def _refuse_bomb(file: IO[bytes], name: str, limit: int) -> None:
    """Unpack without keeping anything, and stop at the limit: what a zip says of itself may lie."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise HeadraceError(
            f"{name} is no whole XLSX file ({error}): it may be truncated; fetch it again"
        ) from None
    if not any(entry.filename.startswith("xl/") for entry in entries):
        raise HeadraceError(
            f"{name} is a zip archive, not XLSX: unpack it and publish what it holds"
        )
    total = sum(entry.file_size for entry in entries)
    for entry in entries:
        if total > limit:
            break
        if entry.compress_type == zipfile.ZIP_DEFLATED and entry.compress_size > limit // 1100:
            total += max(0, _unpacked(file, entry, limit) - entry.file_size)
    if total > limit:
        raise HeadraceError(
            f"{name} is more than {limit:,} bytes when unpacked, and a sheet is loaded as a whole: "
            "save it as CSV, which is streamed"
        )


def _unpacked(file: IO[bytes], entry: zipfile.ZipInfo, limit: int) -> int:
    file.seek(entry.header_offset)
    start = file.read(30)
    file.seek(int.from_bytes(start[26:28], "little") + int.from_bytes(start[28:30], "little"), 1)
    unpacker, size, left = zlib.decompressobj(-15), 0, entry.compress_size
    while left > 0 and size <= limit and not unpacker.eof:
        data = file.read(min(left, 65536))
        if not data:
            break
        left -= len(data)
        while data and size <= limit:
            try:
                size += len(unpacker.decompress(data, MIB))
            except zlib.error:
                return size  # calamine will say what is wrong
            data = unpacker.unconsumed_tail
    return size
