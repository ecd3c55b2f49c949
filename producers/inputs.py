"""What is published, file by file: rows of a table as records, or rejects that are tried again."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import orjson

from headrace import platforms
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stream import schemas
from producers.formats import ReadOptions, open_rows
from producers.mapping import (
    FileName,
    Mapped,
    MappedRows,
    Mapper,
    Mapping,
    Mappings,
    Rejected,
    RowRejected,
    Validator,
    load_mappings,
    map_rows,
    named,
)
from producers.rejects import Reject, read_rejects

_FILE_NAME = (b'"@name"', b'"@stem"', b'"@folder"', b"{@name}", b"{@stem}", b"{@folder}")


class Input(Protocol):
    """One file. Iterate once; everything but the counters is known before."""

    name: str  # without folders
    mapping: Mapping
    detected: str

    def __iter__(self) -> Iterator[Mapped | Rejected]: ...

    @property
    def fraction(self) -> float | None: ...

    @property
    def left_out(self) -> Counter[str]: ...

    @property
    def nul_removed(self) -> int: ...

    def origin(self, item: Rejected) -> tuple[str, int, str]:
        """File, line and mapping that the item just given came from."""

    def close(self) -> None: ...


class Table:
    """A file of rows."""

    def __init__(self, path: str, mapped: MappedRows) -> None:
        self.name = FileName.of(path).name
        self.mapping = mapped.mapping
        self.detected = str(mapped.rows.detected)
        self._mapped = mapped

    @classmethod
    def open(
        cls,
        path: str,
        options: ReadOptions,
        mappings: MappingType[str, Mappings],
        mapping: str | None,
        validator: Validator | None,
    ) -> Table:
        """Raises HeadraceError for what cannot be read or fits no mapping."""
        rows = open_rows(path, options)
        try:
            return cls(path, map_rows(rows, mappings, mapping=mapping, validator=validator))
        except BaseException:
            rows.close()
            raise

    def __iter__(self) -> Iterator[Mapped | Rejected]:
        return iter(self._mapped)

    @property
    def fraction(self) -> float | None:
        return self._mapped.rows.fraction

    @property
    def left_out(self) -> Counter[str]:
        return self._mapped.left_out

    @property
    def nul_removed(self) -> int:
        return self._mapped.nul_removed

    def origin(self, item: Rejected) -> tuple[str, int, str]:
        return self.name, item.number, self.mapping.name

    def close(self) -> None:
        self._mapped.rows.close()


class Retried:
    """A rejects file: each row once more, under its own mapping."""

    fraction = None

    def __init__(
        self, path: str, mappings: MappingType[str, Mappings], validator: Validator | None
    ) -> None:
        rejects = read_rejects(path)
        first = next(rejects, None)
        if first is None:
            raise HeadraceError(f"{path} holds no rejects")
        self.name = FileName.of(path).name
        self.detected = "rejects"
        self._path = path
        self._rejects: Iterable[Reject] = chain([first], rejects)
        self._mappings = mappings
        self._validator = validator
        self._mappers: dict[str, Mapper] = {}
        self._current = first
        self._platform = first.platform
        self.mapping = self._mapper(first).mapping

    def __iter__(self) -> Iterator[Mapped | Rejected]:
        for number, reject in enumerate(self._rejects, 1):
            self._current = reject
            value = reject.value()
            if value is None:
                yield Rejected(number, reject.reason, None, reject.raw)
                continue
            mapper = self._mapper(reject)
            try:
                record, data = mapper.map(value, reject.line, FileName.of(reject.file))
            except RowRejected as reason:
                yield Rejected(number, str(reason), value)
            else:
                yield Mapped(number, record["id"], data, record)

    @property
    def left_out(self) -> Counter[str]:
        return sum((mapper.left_out for mapper in self._mappers.values()), Counter())

    @property
    def nul_removed(self) -> int:
        return sum(mapper.nul_removed for mapper in self._mappers.values())

    def origin(self, item: Rejected) -> tuple[str, int, str]:
        return self._current.file, self._current.line, self._current.mapping

    def close(self) -> None:
        pass

    def _mapper(self, reject: Reject) -> Mapper:
        if reject.kind != "posts":
            raise HeadraceError(
                f"{self._path} holds rejects of {reject.kind}, which are counted over whole files:"
                " mend the file itself and publish it again"
            )
        if reject.platform != self._platform:
            raise HeadraceError(
                f"{self._path} holds rejects of {self._platform} and {reject.platform}:"
                " split it by platform"
            )
        if reject.mapping not in self._mappers:
            platform = self._mappings.get(reject.platform)
            if platform is None:
                raise HeadraceError(
                    f"{self._path} holds rejects of {reject.platform}, which is no platform here"
                )
            mapping = platform.get(reject.mapping)
            self._mappers[reject.mapping] = mapping.mapper(self._validator)
        return self._mappers[reject.mapping]


def is_named_in_records(mapping: Mapping) -> bool:
    """Whether the file's name is part of what a mapping makes of a row."""
    said = orjson.dumps(mapping.definition.model_dump(mode="json", exclude={"match"}))
    return any(mark in said for mark in _FILE_NAME)


def folder_and_name(path: str) -> str:
    file = Path(path)
    return f"{file.parent.name}/{file.name}"


@dataclass(frozen=True, slots=True)
class Told:
    """What a person said about how files are to be read."""

    platform: str | None = None
    mapping: str | None = None
    rejects: bool = False  # they are rejects files
    options: ReadOptions = field(default_factory=ReadOptions)


class Files:
    """Opens files as they were told to be read."""

    def __init__(self, settings: Settings, told: Told) -> None:
        self._told = told
        self._validator = schemas.validator(settings, "raw_post.v1")
        self._mappings = mappings_of(settings, told.platform, told.mapping)
        self._options = read_options(settings, told.options, self._mappings)

    def open(self, path: str) -> Input:
        """Raises HeadraceError for what cannot be read or fits no mapping."""
        if self._told.rejects:
            return Retried(path, self._mappings, self._validator)
        return Table.open(path, self._options, self._mappings, self._told.mapping, self._validator)


def mappings_of(
    settings: Settings, platform: str | None, mapping: str | None = None
) -> dict[str, Mappings]:
    """One platform's mappings, or all platforms' to choose from. Raises HeadraceError where
    `mapping` names none of them."""
    if platform is None:
        found = load_mappings(settings.path("platforms"))
    else:
        found = {platform: Mappings.load(platforms.get(settings, platform).path)}
    if mapping is not None:
        named(found, mapping)
    return found


def read_options(
    settings: Settings, told: ReadOptions, mappings: dict[str, Mappings]
) -> ReadOptions:
    """What a person set, and what the settings and the mappings know."""
    return replace(
        told,
        known_columns=frozenset().union(*(platform.columns for platform in mappings.values())),
        max_expansion=settings.publishing.max_expansion,
        max_expansion_free_bytes=settings.publishing.max_expansion_free_bytes,
    )


def hurry() -> None:
    """For a process that maps: rows are many small objects without a circle among them."""
    gc.set_threshold(100_000, 50, 50)
