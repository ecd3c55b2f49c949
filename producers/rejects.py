"""The rejects file: rows that became no record, one JSON line each, to mend and to try again.

    {"file": "posts.csv", "line": 12, "reason": "title is missing", "platform": "reddit",
     "kind": "posts", "mapping": "posts", "row": {"id": "a1", "title": "", …}}

A row that could not even be read stands as text under `raw`; one that says what it should have
been as an object under `row` instead is tried again like any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import HeadraceError
from producers.formats.base import BadRow, ReadOptions
from producers.formats.reader import open_rows


@dataclass(frozen=True, slots=True)
class Reject:
    """One rejected row, and what is needed to try it again."""

    file: str
    line: int  # line, sheet row or place in the file, from 1
    reason: str
    platform: str
    kind: str  # posts or communities, as published
    mapping: str
    row: dict[str, Any] | None = None
    raw: str | None = None

    def value(self) -> dict[str, Any] | None:
        """The row to try again: as read (or mended), or the raw text where that is JSON; None
        where there is no telling."""
        if self.row is not None:
            return self.row
        try:
            value = orjson.loads(self.raw or "")
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


class RejectsWriter:
    """Writes a rejects file, made with its first line.

    `keep_bytes`: what stands in an earlier file up to there is kept, what stands behind it is cut
    off (a publish that was killed writes those rows again).
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        self.path = path
        self.count = 0  # written by this writer
        self._kept = keep_bytes
        self._lines: list[bytes] = []
        self._file: Any = None
        if path.exists():
            self._open()

    def write(self, reject: Reject) -> None:
        said = {key: value for key, value in asdict(reject).items() if value is not None}
        self._lines.append(_json(said))
        self.count += 1
        if len(self._lines) >= 1000:
            self._put()

    def flush(self) -> int:
        """Bring all lines to the disk. Returns the file's size: `keep_bytes` of a later writer."""
        self._put()
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        size: int = self._file.tell()
        return size

    def close(self) -> None:
        self._put()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self) -> None:
        if not self._lines:
            return
        if self._file is None:
            self._open()
        try:
            self._file.write(b"".join(self._lines))
            self._file.flush()
        except OSError as error:
            raise HeadraceError(f"rejects cannot be written to {self.path}: {error}") from None
        self._lines.clear()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            self._file.truncate(min(self._kept, self._file.seek(0, os.SEEK_END)))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise HeadraceError(f"rejects cannot be written to {self.path}: {error}") from None


def read_rejects(path: Path | str) -> Iterator[Reject]:
    """The rejects of a file ("-": standard input). Raises HeadraceError naming the line that is
    no reject: the file is a person's to mend, so a slip in it should be seen."""
    with open_rows(path, ReadOptions(format="jsonl")) as rows:
        for row in rows:
            if isinstance(row, BadRow):
                raise HeadraceError(f"{rows.name}:{row.number}: the line {row.reason}")
            try:
                yield _reject(row.value)
            except (KeyError, TypeError, ValueError) as error:
                raise HeadraceError(
                    f"{rows.name}:{row.number}: no line of a rejects file ({error} is wrong or "
                    "lacking)"
                ) from None


def _reject(said: dict[str, Any]) -> Reject:
    words = {key: said[key] for key in ("file", "reason", "platform", "kind", "mapping")}
    for key, value in words.items():
        if not isinstance(value, str):
            raise ValueError(key)
    row, raw = said.get("row"), said.get("raw")
    if not isinstance(row, dict | None) or not isinstance(raw, str | None):
        raise ValueError("row")
    return Reject(line=int(said["line"]), row=row, raw=raw, **words)


def _json(said: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(said, str, orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # integers past 64 bits, nested too deeply
        shown = {key: said[key] for key in said if key != "row"}
        return orjson.dumps(
            {**shown, "raw": repr(said.get("row"))[:65536]}, str, orjson.OPT_APPEND_NEWLINE
        )
