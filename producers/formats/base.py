"""What every reader gives: rows and bad rows, and what was detected on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "xlsx"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "json", "jsonl", "parquet", "xlsx")
MIB = 2**20


class Row(NamedTuple):
    """One row. `number` is its line (csv, tsv, jsonl; the first line of a row that has several),
    its sheet row (xlsx) or its place (json, parquet), from 1 and strictly rising in a file."""

    number: int
    value: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be read. `raw` is its text as far as it could be read (at most 64 KiB;
    bytes that are no text stand as \\xNN), good to show and to keep in a rejects file."""

    number: int
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a person may set instead of having it detected; None means detect."""

    format: Format | None = None
    encoding: str | None = None  # a Python codec name: utf-8, cp1252, utf-16, …
    delimiter: str | None = None  # one character
    header: int | bool | None = None  # csv, tsv, xlsx: line of the header, from 1; False: none
    columns: tuple[str, ...] | None = None  # names instead of the header's, or of col1, col2, …
    json_path: str | None = None  # "data.items": where the array stands; ".": the root is a record
    sheet: str | None = None  # xlsx: name of the sheet; None: the first
    known_columns: frozenset[str] = frozenset()  # names that mark a line as the header
    max_row_bytes: int = 64 * MIB  # a longer row is a bad row, or ends the file where it must
    max_expansion: int = 200  # a compressed file may grow so many times …
    max_expansion_free_bytes: int = 256 * MIB  # … once it is past so many bytes
    max_load_bytes: int = 512 * MIB  # what may be loaded at once: a sheet, a Parquet row group


@dataclass(frozen=True, slots=True)
class Detected:
    """What the reader found, or was told."""

    format: Format
    compression: Literal["gz", "zst"] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    header: int | None = None  # line or sheet row of the header; None: there is none
    columns: tuple[str, ...] | None = None  # None where every row names its own
    json_path: str | None = None  # "" for a root array
    sheet: str | None = None

    def __str__(self) -> str:
        """One line for people: `csv, cp1252, semicolons, header on line 2`."""
        parts: list[str] = [
            f"{self.format}.{self.compression}" if self.compression else self.format
        ]
        if self.encoding:
            parts.append(self.encoding)
        if self.delimiter:
            names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
            parts.append(names.get(self.delimiter, f"delimiter {self.delimiter!r}"))
        elif self.format == "csv":
            parts.append("one column")
        if self.format in ("csv", "tsv", "xlsx"):
            line = "row" if self.format == "xlsx" else "line"
            parts.append(f"header on {line} {self.header}" if self.header else "no header")
        if self.json_path:
            parts.append(f"rows under {self.json_path}")
        if self.sheet:
            parts.append(f"sheet {self.sheet}")
        return ", ".join(parts)


class Rows:
    """The rows of one file, once. Iterating gives Row and BadRow, and raises HeadraceError where
    the rest of the file cannot be read (damaged, truncated, too large); what came before stands.

    `detected` is known before the first row. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        name: str,
        detected: Detected,
        rows: Iterator[Row | BadRow],
        fraction: Callable[[], float | None],
        close: Callable[[], None],
    ) -> None:
        self.name = name
        self.detected = detected
        self._rows = rows
        self._fraction = fraction
        self._close = close

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self._rows

    @property
    def fraction(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where nobody knows (stdin)."""
        return self._fraction()

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
