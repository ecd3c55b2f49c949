"""What a snapshot is: manifest.json, written last and at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

FORMAT = 1


@dataclass(frozen=True, slots=True)
class File:
    """A table's rows, COPY's text format, zstd. `bytes` and `sha256` are of the file itself."""

    name: str
    columns: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where a store group has to read on from: its own offset, or the log's start of that time
    where it had read nothing yet. `group` is the short name, `topic` the full one."""

    group: str
    topic: str
    partition: int
    topic_id: str
    next: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """`created_at` RFC 3339; `revision` of the schema; `record_changes`: the last row_version."""

    name: str
    project: str
    created_at: str
    headrace: str
    revision: str
    postgres: str
    record_changes: int
    positions: tuple[Position, ...]
    files: dict[str, File]  # by table
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files.values())

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.bytes for file in self.files.values())

    def with_files(self, changed: dict[str, File]) -> Manifest:
        return replace(self, files=self.files | changed)

    def dump(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load(content: bytes) -> Manifest:
    """Raises ValueError where it is no manifest that this version can read."""
    try:
        found: dict[str, Any] = orjson.loads(content)
        if found["format"] > FORMAT:
            raise ValueError("a newer version of headrace made it")
        files = {
            table: File(**(file | {"columns": tuple(file["columns"])}))
            for table, file in found["files"].items()
        }
        positions = tuple(Position(**position) for position in found["positions"])
        return Manifest(**(found | {"files": files, "positions": positions}))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no manifest of a snapshot: {error}") from None
