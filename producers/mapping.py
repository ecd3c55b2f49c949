"""From rows to records: the `mappings` of a platform's YAML, chosen by the columns, compiled.

    mappings:
      listing:
        match: [id, title, selftext, permalink]     # columns (or paths) that a file must have
        id: id                                      # a native id, or {hash: [fields]}
        text: "{title}\\n\\n{selftext}"
        community: {from: permalink, regex: "/r/([^/]+)/"}
        created_at: created_utc
        metrics: {score: score, comments: num_comments}
        deleted: is_removed                         # true, yes or 1: the row deletes its record
        required: [title]

A row whose column `deleted` is true deletes its record whatever the mapping says; it needs no more
than what gives its id.

Records are held to schemas/raw_post.v1.json. NUL characters, which PostgreSQL cannot store, are
taken out of texts and counted; in an id they refuse the row.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import orjson
from pydantic import Field, field_validator

from headrace.errors import HeadraceError
from headrace.yamlfile import Document, read
from producers import convert
from producers.convert import MAX_ID
from producers.convert import Unfit as RowRejected
from producers.expressions import (
    Digest,
    Expression,
    Identity,
    Kind,
    Source,
    Strict,
    columns_of,
    steps_of,
)
from producers.formats.base import BadRow, Row, Rows

__all__ = [
    "FileName",
    "Mapped",
    "MappedRows",
    "Mapper",
    "Mapping",
    "Mappings",
    "Rejected",
    "RowRejected",
    "load_mappings",
    "map_rows",
]

_REVISION = "1"  # of this code's meaning: a change of what a definition does changes all versions
_BACKSLASH = ord("\\")
_PEEK = 50  # rows to choose a mapping by
_PEEK_BAD = 10_000  # unreadable rows before the first readable one
_FIELDS: dict[str, Kind] = {
    "title": "text",
    "author": "text",
    "community": "text",
    "url": "text",
    "created_at": "date",
    "lang": "text",
    "parent_id": "id",
    "thread_id": "id",
}


class Validator(Protocol):
    """A compiled JSON schema (jsonschema-rs)."""

    def is_valid(self, instance: Any) -> bool: ...
    def iter_errors(self, instance: Any) -> Iterator[Any]: ...


class Match(Strict):
    """Which files a mapping is for."""

    columns: tuple[str, ...] = Field(min_length=1)
    where: dict[str, str] = Field(default_factory=dict)  # column: regex that its values match
    only: bool = False  # no other columns

    @field_validator("where")
    @classmethod
    def _are_regexes(cls, value: dict[str, str]) -> dict[str, str]:
        for column, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{column}: no regular expression: {error}") from None
        return value


class Definition(Strict):
    """One mapping as written."""

    description: str = ""
    match: Match
    kind: Literal["post", "comment"] = "post"
    id: Identity
    text: Expression
    deleted: Expression | None = None
    title: Expression | None = None
    author: Expression | None = None
    community: Expression | None = None
    url: Expression | None = None
    created_at: Expression | None = None
    lang: Expression | None = None
    parent_id: Expression | None = None
    thread_id: Expression | None = None
    metrics: dict[str, Expression] = Field(default_factory=dict)
    labels: dict[str, Expression] = Field(default_factory=dict)
    extra: dict[str, Expression] = Field(default_factory=dict)
    required: tuple[str, ...] = ()

    @field_validator("match", mode="before")
    @classmethod
    def _columns_alone(cls, value: Any) -> Any:
        return {"columns": value} if isinstance(value, list) else value

    @field_validator("metrics", "labels", "extra", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """A list of columns: each under its own name."""
        return {name: name for name in value} if isinstance(value, list) else value

    @field_validator("required")
    @classmethod
    def _are_fields(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = {"text", *_FIELDS}
        for name in value:
            if name not in known and not name.startswith(("metrics.", "labels.", "extra.")):
                raise ValueError(f"{name} is no field of a record; there are {', '.join(known)}")
        return value


@dataclass(frozen=True, slots=True)
class FileName:
    """What a mapping may take from a file's name."""

    name: str
    stem: str  # without any ending
    folder: str  # of its last folder

    @classmethod
    def of(cls, path: str) -> FileName:
        if path in ("-", "standard input"):
            return cls("stdin", "stdin", "")
        file = Path(path)
        return cls(file.name, file.name.partition(".")[0] or file.name, file.parent.name)


class Mapped(NamedTuple):
    """A row that became a record. `value` is its JSON, ready to send under the key `id`."""

    number: int
    id: str
    value: bytes
    record: dict[str, Any]


class Rejected(NamedTuple):
    """A row that did not. `reason` is the same for all rows of that kind."""

    number: int
    reason: str
    row: dict[str, Any] | None  # None where it could not even be read: then `raw`
    raw: str | None = None


@dataclass(frozen=True)
class Mapping:
    """One named mapping of a platform."""

    platform: str
    name: str
    definition: Definition
    required: tuple[str, ...]

    @property
    def version(self) -> str:
        """A hash of all that decides what becomes of a row; the same file under the same version
        is the same publish."""
        said = self.definition.model_dump(mode="json", exclude={"description", "match"})
        if said["deleted"] is None:
            del said["deleted"]  # what was published under a definition without it is known still
        data = orjson.dumps(
            [_REVISION, self.platform, self.required, said], option=orjson.OPT_SORT_KEYS
        )
        return hashlib.sha256(data).hexdigest()[:12]

    def fits(self, columns: frozenset[str], rows: list[dict[str, Any]]) -> int:
        """How well it fits a file: 0 not at all, else higher with all that it asks for."""
        match = self.definition.match
        if match.only and columns - set(match.columns):
            return 0
        if not all(c in columns or _stands(c, rows) for c in match.columns):
            return 0
        for column, pattern in match.where.items():
            values = [convert.text(convert.dig(row, column, steps_of(column))) for row in rows]
            if not any(values) or not all(re.search(pattern, v) for v in values if v):
                return 0
        return len(match.columns) + 2 * len(match.where) + match.only

    def mapper(self, validator: Validator | None = None) -> Mapper:
        return Mapper(self, validator)


class Mapper:
    """A compiled mapping.

    `left_out` counts per field the values that were there but could not be read; `nul_removed`
    counts the records out of which NUL characters were taken.
    """

    def __init__(self, mapping: Mapping, validator: Validator | None = None) -> None:
        self.mapping = mapping
        self.left_out: Counter[str] = Counter()
        self.nul_removed = 0
        self._make, self._own = _compile(mapping, self._note)
        self._validator = validator

    def map(self, row: dict[str, Any], number: int, file: FileName) -> tuple[dict[str, Any], bytes]:
        """(the record, its JSON). Raises RowRejected with the reason."""
        record = self._make(row, number, file)
        try:
            value = orjson.dumps(record, _as_text)
        except TypeError:
            record, value = _force(record)
        if _BACKSLASH in value and b"\\u0000" in value:  # the first is found much faster
            cleaned = _without_nul(record)
            if cleaned != record:
                self.nul_removed += 1
                record, value = cleaned, orjson.dumps(cleaned, _as_text)
        if self._validator is not None and not self._validator.is_valid(record):
            # Parquet's moments and the like are text only in the JSON: ask again about that.
            self._hold_to_schema(orjson.loads(value))
        return record, value

    def owner(
        self, row: dict[str, Any], number: int, file: FileName
    ) -> tuple[str | None, str | None]:
        """(record id, author) of a row, whether it can become a record or not; None where it does
        not say."""
        try:
            return self._own(row, number, file)
        except (RowRejected, TypeError, ValueError):
            return None, None

    def _hold_to_schema(self, record: dict[str, Any]) -> None:
        assert self._validator is not None
        for error in self._validator.iter_errors(record):
            place = ".".join(str(step) for step in error.instance_path) or "the record"
            kind = type(error.kind).__name__.rpartition("_")[2]
            raise RowRejected(f"{place} does not fit the schema ({kind})")

    def _note(self, field: str) -> None:
        self.left_out[field] += 1


@dataclass(frozen=True)
class Mappings:
    """All mappings of one platform, in the order of its file."""

    platform: str
    path: Path
    mappings: dict[str, Mapping]

    @classmethod
    def load(cls, path: Path) -> Mappings:
        """From a platform's YAML. Raises ConfigError naming file, line and key."""
        document = read(path)
        said = document.value if isinstance(document.value, dict) else {}
        written = said.get("mappings") or {}
        if not isinstance(written, dict):
            raise document.error(("mappings",), "should be names and mappings")
        required = tuple(said.get("required") or ())
        found = {str(name): cls._one(document, path.stem, str(name), required) for name in written}
        return cls(path.stem, path, found)

    @staticmethod
    def _one(document: Document, platform: str, name: str, required: tuple[str, ...]) -> Mapping:
        definition = document.check(Definition, ("mappings", name))
        return Mapping(
            platform, name, definition, tuple(dict.fromkeys((*required, *definition.required)))
        )

    @property
    def columns(self) -> frozenset[str]:
        """Every column that any mapping speaks of: a line that holds several is a header."""
        return frozenset(
            column for mapping in self.mappings.values() for column in _columns(mapping.definition)
        )

    def get(self, name: str) -> Mapping:
        if name not in self.mappings:
            raise HeadraceError(
                f"{self.platform} has no mapping {name}; there are: "
                f"{', '.join(self.mappings) or 'none'} (in {self.path})"
            )
        return self.mappings[name]


class MappedRows:
    """The rows of a file as records. Iterate once; `mapping` is known before the first."""

    def __init__(
        self,
        rows: Rows,
        mapping: Mapping,
        validator: Validator | None,
        items: Iterable[Row | BadRow],
    ) -> None:
        self.rows = rows
        self.mapping = mapping
        self.mapper = mapping.mapper(validator)
        self._items = items

    def __iter__(self) -> Iterator[Mapped | Rejected]:
        to_record, file, new = self.mapper.map, FileName.of(self.rows.name), tuple.__new__
        for item in self._items:
            if type(item) is Row:
                number, row = item
                try:
                    record, value = to_record(row, number, file)
                except RowRejected as reason:
                    yield Rejected(number, str(reason), row)
                else:
                    yield new(Mapped, (number, record["id"], value, record))
            elif isinstance(item, BadRow):
                yield Rejected(item.number, item.reason, None, item.raw)

    @property
    def left_out(self) -> Counter[str]:
        return self.mapper.left_out

    @property
    def nul_removed(self) -> int:
        return self.mapper.nul_removed


def load_mappings(folder: Path) -> dict[str, Mappings]:
    """The mappings of every platform file in a folder, by platform."""
    return {path.stem: Mappings.load(path) for path in sorted(folder.glob("*.yaml"))}


def map_rows(
    rows: Rows,
    mappings: MappingType[str, Mappings] | Mappings,
    *,
    mapping: str | None = None,
    validator: Validator | None = None,
) -> MappedRows:
    """Look at the first rows and choose the mapping that fits their columns, or take the one named.

    `mappings` is one platform's, or several platforms' to choose from. Raises HeadraceError when
    none fits, or several platforms' do and the file's name does not tell which.
    """
    platforms = {mappings.platform: mappings} if isinstance(mappings, Mappings) else dict(mappings)
    items, ahead = _peek(rows)
    readable = [item.value for item in ahead if type(item) is Row]
    columns = frozenset(rows.detected.columns or {key for row in readable for key in row})
    chosen = _choose(platforms, mapping, columns, readable, rows.name)
    return MappedRows(rows, chosen, validator, items)


def _peek(rows: Rows) -> tuple[Iterator[Row | BadRow], list[Row | BadRow]]:
    """(all rows, the first of them): up to 50, or up to the first readable one."""
    source = iter(rows)
    ahead: list[Row | BadRow] = []
    failure: HeadraceError | None = None
    readable = False
    try:
        while len(ahead) < (_PEEK if readable else _PEEK_BAD):
            item = next(source, None)
            if item is None:
                break
            ahead.append(item)
            readable = readable or type(item) is Row
    except HeadraceError as error:
        if not ahead:
            raise
        failure = error

    def everything() -> Iterator[Row | BadRow]:
        yield from ahead
        ahead.clear()
        if failure:
            raise failure
        yield from source

    return everything(), list(ahead)


def named(platforms: dict[str, Mappings], name: str) -> list[Mapping]:
    """The mappings of that name, one a platform at most. Raises HeadraceError if there is none."""
    found = [m.mappings[name] for m in platforms.values() if name in m.mappings]
    if not found:
        known = "; ".join(f"{p}: {', '.join(m.mappings)}" for p, m in platforms.items())
        raise HeadraceError(f"there is no mapping {name}; there are {known}")
    return found


def _choose(
    platforms: dict[str, Mappings],
    name: str | None,
    columns: frozenset[str],
    rows: list[dict[str, Any]],
    file: str,
) -> Mapping:
    if name is not None:
        chosen = named(platforms, name)
        if len(chosen) == 1:
            return chosen[0]
        platforms = {m.platform: Mappings(m.platform, Path(), {name: m}) for m in chosen}
    everyone = [m for platform in platforms.values() for m in platform.mappings.values()]
    scored = [(m.fits(columns, rows), m) for m in everyone]
    best = max((score for score, _ in scored), default=0)
    fitting = [m for score, m in scored if score == best > 0]
    if not fitting:
        if not rows and not columns and len(platforms) == 1 and everyone:
            return everyone[0]  # nothing to map: any will do
        raise HeadraceError(_nothing_fits(platforms, everyone, columns, rows, file))
    among = {m.platform for m in fitting}
    if len(among) > 1:
        spelled = re.sub(r"[^a-z]+", "_", file.lower())
        told = [p for p in among if p in spelled]
        if len(told) != 1:
            raise HeadraceError(
                f"{file} fits mappings of several platforms "
                f"({', '.join(f'{m.platform}.{m.name}' for m in fitting)}): choose with --platform"
            )
        fitting = [m for m in fitting if m.platform == told[0]]
    return fitting[0]


def _nothing_fits(
    platforms: dict[str, Mappings],
    everyone: list[Mapping],
    columns: frozenset[str],
    rows: list[dict[str, Any]],
    file: str,
) -> str:
    if not columns:
        return f"{file} holds no row that can be read"
    nearest = max(
        everyone,
        key=lambda m: (
            sum(c in columns for c in m.definition.match.columns) / len(m.definition.match.columns)
        ),
        default=None,
    )
    shown = ", ".join(sorted(columns)[:12]) + (", …" if len(columns) > 12 else "")
    hint = ""
    if nearest:
        lacking = [c for c in nearest.definition.match.columns if c not in columns]
        hint = f"; the nearest, {nearest.platform}.{nearest.name}, wants " + (
            f"{', '.join(lacking)} as well" if lacking else "other values in them"
        )
    where = next(iter(platforms.values())).path if len(platforms) == 1 else "config/platforms"
    return (
        f"no mapping of {', '.join(platforms)} fits {file} with the columns {shown}{hint}. "
        f"Write one in {where}, or name one with --mapping"
    )


def _stands(path: str, rows: list[dict[str, Any]]) -> bool:
    steps = steps_of(path)
    return len(steps) > 1 and any(convert.dig(row, path, steps) is not None for row in rows)


def _columns(definition: Definition) -> Iterable[str]:
    yield from definition.match.columns
    for field in ("id", "text", "deleted", *_FIELDS):
        value = getattr(definition, field)
        if value is not None:
            yield from columns_of(value)
    for group in (definition.metrics, definition.labels, definition.extra):
        for value in group.values():
            yield from columns_of(value)


# -- compiling -------------------------------------------------------------------------------

_HELPERS = (
    *("text", "label", "extra", "number", "flag", "is_true", "moment", "zone_named", "ident"),
    *("reference", "digest", "glue", "glue_all", "first", "search", "lookup", "dig"),
)


_ToRecord = Callable[[dict[str, Any], int, FileName], dict[str, Any]]
_ToOwner = Callable[[dict[str, Any], int, FileName], tuple[str | None, str | None]]


def _compile(mapping: Mapping, note: Callable[[str], None]) -> tuple[_ToRecord, _ToOwner]:
    """Two functions for a mapping: (row, number, file) -> record, which raises Unfit, and
    (row, number, file) -> (id, author), which may raise anything."""
    names: dict[str, Any] = {name: getattr(convert, name) for name in _HELPERS}
    names |= {"Unfit": RowRejected, "note": note}

    def constant(value: Any) -> str:
        name = f"C{len(names)}"
        names[name] = value
        return name

    source = Source(mapping.platform, names, constant)
    for written in (_source(mapping, source), _owner_source(mapping, source)):
        exec(compile(written, f"<mapping {mapping.name}>", "exec"), names)
    return names["to_record"], names["to_owner"]


def _identity(mapping: Mapping, source: Source) -> list[str]:
    """Lines that leave the native id, or the hash that stands for it, in `ident_`."""
    said = mapping.definition
    lines = ["get = row.get", "native = None"]
    identities = said.id if isinstance(said.id, tuple) else (said.id,)
    for place, identity in enumerate(identities):
        if place:
            lines.append("if not ident_:")
        code = source.value(identity, "id", "id")
        own = "" if isinstance(identity, Digest) else "native = "
        lines.append(f"{' ' if place else ''}ident_ = {own}{code}")
    return lines


def _owner_source(mapping: Mapping, source: Source) -> str:
    said = mapping.definition
    lines = [*_identity(mapping, source), "value = None"]
    if said.author is not None:
        lines += source.assign(said.author, "text", "author")
    prefix = f"{said.kind}:{mapping.platform}:"
    lines.append(f"return {prefix!r} + ident_ if ident_ else None, value or None")
    return _function("to_owner", lines)


def _function(name: str, lines: Iterable[str]) -> str:
    body = "\n".join(f" {line}" for line in lines)
    return f"def {name}(row, row_number, file):\n{body}\n"


def _source(mapping: Mapping, source: Source) -> str:
    said, platform = mapping.definition, mapping.platform
    lines = _identity(mapping, source)
    prefix = f"{said.kind}:{platform}:"
    missing = f"the id is missing ({', '.join(columns_of(said.id))})"
    lines += [
        f"if not ident_: raise Unfit({missing!r})",
        f"if len(ident_) > {MAX_ID - len(prefix)}: raise Unfit('the id is too long')",
        "deleted = get('deleted')",
        "if deleted is not None: deleted = is_true(deleted)",
    ]
    if said.deleted is not None:
        lines.append(f"deleted = deleted or {source.value(said.deleted, 'bool', 'deleted')}")
    lines += [
        "if deleted:",
        f" return {{'id': {prefix!r} + ident_, 'kind': {said.kind!r}, "
        f"'platform': {platform!r}, 'deleted': True}}",
        f"record = {{'id': {prefix!r} + ident_, 'kind': {said.kind!r}, 'platform': {platform!r}, "
        f"'native_id': native or None, 'text': {source.value(said.text, 'text', 'text')}}}",
    ]
    for field, kind in _FIELDS.items():
        expression = getattr(said, field)
        if expression is not None:
            lines += source.assign(expression, kind, field)
            lines.append(f"if value: record[{field!r}] = value")
    groups: tuple[tuple[str, dict[str, Any], Kind], ...] = (
        ("metrics", said.metrics, "number"),
        ("labels", said.labels, "label"),
        ("extra", said.extra, "json"),
    )
    for group, fields, kind in groups:
        if not fields:
            continue
        lines.append("part = {}")
        for name, expression in fields.items():
            lines += source.assign(expression, kind, f"{group}.{name}")
            lines.append(f"if value is not None and value != '': part[{name!r}] = value")
        lines.append(f"if part: record[{group!r}] = part")
    for field in mapping.required:
        group, _, name = field.rpartition(".")
        found = f"record.get({group!r}, {{}}).get({name!r})" if group else f"record.get({field!r})"
        lines.append(f"if {found} in (None, ''): raise Unfit({f'{field} is missing'!r})")
    lines.append("return record")
    return _function("to_record", lines)


# -- what JSON or PostgreSQL cannot hold ------------------------------------------------------


def _as_text(value: Any) -> str:
    """orjson's default: what JSON has no form for (decimals, bytes, times of day) is text."""
    return convert.text(value)


def _force(record: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Once more for what orjson refuses: integers past 64 bits, keys that are no text."""
    try:
        record = _plain(record, 0)
        return record, orjson.dumps(record, _as_text)
    except (TypeError, RecursionError):
        raise RowRejected("holds a value that JSON cannot hold") from None


def _plain(value: Any, depth: int) -> Any:
    if depth > 100:
        raise RowRejected("is nested too deeply")
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value
