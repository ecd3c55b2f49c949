"""Rows of forgotten records taken out of rejects files.

A line is written over with blanks where it stands, which readers of the file pass by. So nothing
moves: a publish that is writing to the file, or goes on with it later, finds it as it knows it, and
whenever this is killed the file is whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import orjson

from headrace.config import Settings
from producers.mapping import FileName, Mapper, Mappings, load_mappings

_LINES = 500  # asked about together
_WORD = re.compile(r"[\w.:-]+")
_KINDS = ("post", "comment")


class Wanted(Protocol):
    """What is forgotten (see headrace.forget.orders)."""

    def offsets(self, records: set[str]) -> dict[str, int]: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def by(self, author: object, platform: str | None) -> bool: ...


Line = tuple[int, bytes]  # where it begins, its bytes without the end of line


def take_out(settings: Settings, wanted: Wanted, *, look: bool = False) -> int:
    """Blank every line that belongs to what is forgotten, in all rejects files of
    `publishing.rejects_dir`; returns how many lines. `look`: only count."""
    folder = settings.under(settings.publishing.rejects_dir)
    if not folder.is_dir():
        return 0
    reader = _Reader(load_mappings(settings.path("platforms")), wanted)
    return sum(_file(path, reader, look) for path in sorted(folder.rglob("*.rejects.jsonl")))


def _file(path: Path, reader: _Reader, look: bool) -> int:
    taken = 0
    with path.open("rb" if look else "r+b") as file:
        size = os.fstat(file.fileno()).st_size  # what a publisher appends meanwhile is for later
        for lines in _chunks(file.fileno(), size):
            for start, line in reader.forgotten(lines):
                taken += 1
                if not look:
                    os.pwrite(file.fileno(), b" " * len(line), start)
        if taken and not look:
            os.fsync(file.fileno())
    return taken


def _chunks(file: int, size: int) -> Iterator[list[Line]]:
    lines: list[Line] = []
    position, rest = 0, b""
    while position < size:
        piece = os.pread(file, min(1 << 20, size - position), position)
        if not piece:
            break
        start = position - len(rest)
        position += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                lines.append((start, line))
            start += len(line) + 1
            if len(lines) >= _LINES:
                yield lines
                lines = []
    if rest.strip():  # what a killed publisher has left
        lines.append((size - len(rest), rest))
    if lines:
        yield lines


class _Reader:
    """Tells which lines belong to what is forgotten: by the id and author that the mapping of the
    row finds; of a row that cannot be read, by every word that it holds."""

    def __init__(self, mappings: dict[str, Mappings], wanted: Wanted) -> None:
        self._mappings = mappings
        self._wanted = wanted
        self._mappers: dict[tuple[str, str], Mapper | None] = {}
        written = {form for name in wanted.names for form in (name, json.dumps(name)[1:-1])}
        names = [rf"(?<!\w){re.escape(form)}(?!\w)" for form in sorted(written)]
        self._named: Callable[[str], object] = (
            re.compile("|".join(names)).search if names else lambda text: None
        )

    def forgotten(self, lines: list[Line]) -> list[Line]:
        found = [(line, *self._says(line[1])) for line in lines]
        known = self._wanted.offsets({record for _, records, _ in found for record in records})
        return [line for line, records, whole in found if whole or not records.isdisjoint(known)]

    def _says(self, line: bytes) -> tuple[set[str], bool]:
        """(record ids that the line may be of, whether it is forgotten whatever they are)."""
        try:
            said = orjson.loads(line)
            platform, row, raw = said["platform"], said.get("row"), said.get("raw")
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._words(line.decode(errors="replace"), None)
        if not isinstance(row, dict):
            try:
                row = orjson.loads(raw or "")
            except (ValueError, TypeError):
                row = None
        mapper = self._mapper(str(platform), str(said.get("mapping")))
        if not isinstance(row, dict) or mapper is None:
            return self._words(raw if isinstance(raw, str) else line.decode(), platform)
        number = said.get("line")
        name = FileName.of(str(said.get("file")))
        record, author = mapper.owner(row, number if isinstance(number, int) else 0, name)
        return ({record} if record else set()), self._wanted.by(author, platform)

    def _words(self, text: str, platform: str | None) -> tuple[set[str], bool]:
        words = {word.strip(".:-") for word in _WORD.findall(text)}
        platforms = [platform] if platform else list(self._mappings)
        records = {f"{kind}:{of}:{word}" for kind in _KINDS for of in platforms for word in words}
        whole = self._wanted.by(None, platform) or bool(self._named(text))
        return records | words, whole

    def _mapper(self, platform: str, name: str) -> Mapper | None:
        key = (platform, name)
        if key not in self._mappers:
            known = self._mappings.get(platform)
            mapping = known.mappings.get(name) if known else None
            self._mappers[key] = mapping.mapper() if mapping else None
        return self._mappers[key]
