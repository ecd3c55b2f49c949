"""What is served of the records, in pieces: Arrow out of PostgreSQL, by keyset.

A piece is read in one snapshot on a connection of its own, so each record in it is whole and of one
version, however much is stored meanwhile, and nothing is held open between two pieces. A record
comes at most once, since pieces go up by id.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any, LiteralString

import numpy as np
import orjson
import psycopg
import pyarrow as pa
from psycopg.types.json import set_json_loads

from headrace.backlog import database
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.search.query import moment
from headrace.stream import schemas
from headrace.stream.topology import Topology

if TYPE_CHECKING:
    import pandas

POSTS = "posts"
_MOMENT = pa.timestamp("us", tz="UTC")
_WORDS = pa.list_(pa.string())

# What a record itself tells: expression over the joined tables, type.
_RECORD: dict[str, tuple[LiteralString, pa.DataType]] = {
    "id": ("r.id", pa.string()),
    "platform": ("p.name", pa.string()),
    "kind": ("r.kind", pa.string()),
    "native_id": ("r.native_id", pa.string()),
    "title": ("r.title", pa.string()),
    "text": ("r.text", pa.string()),
    "author": ("a.name", pa.string()),
    "community": ("c.name", pa.string()),
    "url": ("r.url", pa.string()),
    "created_at": ("r.created_at", _MOMENT),
    "lang": ("r.lang", pa.string()),
    "metrics": ("r.metrics::text", pa.string()),
    "run": ("d.run", pa.string()),
    "parent_id": ("(r.value::jsonb)->>'parent_id'", pa.string()),
    "thread_id": ("(r.value::jsonb)->>'thread_id'", pa.string()),
    "labels": ("((r.value::jsonb)->'labels')::text", pa.string()),
    "extra": ("((r.value::jsonb)->'extra')::text", pa.string()),
    "ingested_at": ("r.ingested_at", _MOMENT),
    "updated_at": ("r.updated_at", _MOMENT),
    "score": ("s.weighted", pa.float64()),
    "scores": ("s.scores::text", pa.string()),
}
_FROM: LiteralString = """
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
LEFT JOIN dim_author a ON a.id = r.author_id
LEFT JOIN dim_community c ON c.id = r.community_id
LEFT JOIN dim_run d ON d.id = r.run_id
LEFT JOIN scores s ON s.record_id = r.id
WHERE r.id > %(after)s AND NOT r.deleted AND r.kind <> 'community'
"""
_OF_PLATFORM: LiteralString = " AND r.platform_id = %(platform)s"
_SINCE: LiteralString = " AND r.created_at >= %(since)s"
_NEXT: LiteralString = " ORDER BY r.id LIMIT %(chunk)s"

_SERVED = """
SELECT record_id, result, version, stale, stage, at FROM served
WHERE facet = %s AND record_id = ANY(%s)
"""
_VECTORS = """
SELECT v.record_id, v.vector, v.version, v.stage,
       (v.root_topic_id, v.root_offset) IS DISTINCT FROM (r.topic_id, r."offset") AS stale,
       v.stored_at
FROM vectors v JOIN records r ON r.id = v.record_id
WHERE v.space = %s AND v.record_id = ANY(%s)
"""

# What posts show of other facets: column → facet, field, type.
_OF_POSTS: dict[str, tuple[str, str, pa.DataType]] = {
    "clean_text": ("text", "clean", pa.string()),
    "language": ("text", "language", pa.string()),
    "hashtags": ("text", "hashtags", _WORDS),
    "sentiment": ("sentiment", "label", pa.string()),
    "sentiment_score": ("sentiment", "score", pa.float64()),
    "sentiment_confidence": ("sentiment", "confidence", pa.float64()),
    "sentiment_stale": ("sentiment", "", pa.bool_()),
}

_USUAL = ("id", "platform", "created_at")
_SERVING: dict[str, pa.DataType] = {
    "version": pa.string(), "stale": pa.bool_(), "stage": pa.string(), "at": _MOMENT,
}  # fmt: skip
_UNASKED = ("stage", "at")  # of the above, only where they are named


@dataclass(frozen=True, slots=True)
class Served:
    """One facet of one record: `at` is when the stage made it, `stale` that it is of an earlier
    revision of the record. `result` of a vector is its bytes."""

    result: Any
    version: str
    stale: bool
    stage: str
    at: datetime


Page = Sequence[Mapping[str, Any]]


class Reading:
    """Posts, or one facet of them: iterate over it for record batches, as often as you like.

    Arrow's libraries take it as it is (`pyarrow.table(reading)`, polars, DuckDB).
    """

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        what: str,
        *,
        platform: str | None = None,
        chunk: int = 10_000,
        columns: Sequence[str] | None = None,
        since: str | date | None = None,
        space: str | None = None,
    ) -> None:
        """`chunk` records are looked at for a batch; `since` is about `created_at`; `space` is that
        of vectors. Raises HeadraceError for what is not known."""
        facets = list(dict.fromkeys(g.facet for g in topology.stages() if g.facet))
        if what not in (POSTS, *facets):
            raise HeadraceError(f"there is no {what} to read; there are: {POSTS}, {_and(facets)}")
        if platform is not None and platform not in topology.platforms:
            raise HeadraceError(
                f"there is no platform {platform}; there are: {_and(topology.platforms)}"
            )
        if chunk < 1:
            raise HeadraceError("chunk is a number of records, 1 or more")
        self._settings = settings
        self._platform = platform
        self._chunk = chunk
        self._since = _moment(since)
        self._shape: _Shape
        if what == POSTS:
            self._shape = _Posts({name for name in facets if name in ("text", "sentiment")})
        elif what == "embeddings":
            self._shape = _Vectors(space or "")
        else:
            self._shape = _Facet(what, *_fields(settings, topology, what))
        known = self._shape.columns
        columns = (columns,) if isinstance(columns, str) else columns
        named = self._shape.usual if columns is None else tuple(columns)
        if unknown := [name for name in named if name not in known]:
            raise HeadraceError(f"{what} has no column {unknown[0]}; there are: {', '.join(known)}")
        self.schema = pa.schema([pa.field(name, known[name]) for name in named])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        after = ""
        while True:
            with database.reading(self._settings) as connection:
                set_json_loads(orjson.loads, connection)
                page = self._page(connection, after)
                rows = self._shape.rows(connection, page, self.schema.names) if page else []
            if rows:
                yield self._batch(rows)
            if len(page) < self._chunk:
                return
            after = page[-1]["id"]

    def to_table(self) -> pa.Table:
        """All of it, in memory."""
        return pa.Table.from_batches(list(self), self.schema)

    def to_pandas(self) -> pandas.DataFrame:
        """All of it, in memory. Raises HeadraceError where pandas is not installed."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise HeadraceError(
                "pandas is not installed: `pip install pandas`, or take .to_table()"
            ) from None
        return self.to_table().to_pandas()

    def reader(self) -> pa.RecordBatchReader:
        """As a stream, for whoever writes it somewhere else."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.reader().__arrow_c_stream__(requested_schema)

    def _page(self, connection: psycopg.Connection, after: str) -> Page:
        """The next records by id, with what is asked of the records themselves."""
        wanted = ["id", *self._shape.of_record(self.schema.names)]
        columns = ", ".join(f'{_RECORD[name][0]} AS "{name}"' for name in dict.fromkeys(wanted))
        query = f"SELECT {columns} {_FROM}"
        values: dict[str, Any] = {"after": after, "chunk": self._chunk}
        if self._platform is not None:
            row = connection.execute(
                "SELECT id FROM dim_platform WHERE name = %s", [self._platform]
            ).fetchone()
            if row is None:
                return []
            query += _OF_PLATFORM
            values["platform"] = row[0]
        if self._since is not None:
            query += _SINCE
            values["since"] = self._since
        cursor = connection.execute((query + _NEXT).encode(), values)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def _batch(self, rows: Page) -> pa.RecordBatch:
        arrays = []
        for field in self.schema:
            values = [row.get(field.name) for row in rows]
            try:
                arrays.append(_array(values, field.type))
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise HeadraceError(
                    f"{field.name}: what is stored is not {field.type}, as its schema says: {error}"
                ) from None
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class _Shape(ABC):
    """What the rows of a reading are made of."""

    columns: Mapping[str, pa.DataType]
    usual: Sequence[str]

    def of_record(self, names: Sequence[str]) -> list[str]:
        """Which of the columns are the record's own."""
        return [name for name in names if name in _RECORD]

    @abstractmethod
    def rows(self, connection: psycopg.Connection, page: Page, names: Sequence[str]) -> Page:
        """The page with the other columns that are named."""


class _Posts(_Shape):
    """A row a record, whether or not anything is served of it."""

    def __init__(self, facets: set[str]) -> None:
        self._others = {name: of for name, of in _OF_POSTS.items() if of[0] in facets}
        self.columns = {name: kind for name, (_, kind) in _RECORD.items()} | {
            name: kind for name, (_, _, kind) in self._others.items()
        }
        self.usual = tuple(self.columns)

    def rows(self, connection: psycopg.Connection, page: Page, names: Sequence[str]) -> Page:
        wanted = {name: self._others[name] for name in names if name in self._others}
        served = {
            facet: _served(connection, facet, page)
            for facet in {facet for facet, _, _ in wanted.values()}
        }
        made = []
        for record in page:
            row = dict(record)
            for name, (facet, field, _) in wanted.items():
                if (found := served[facet].get(record["id"])) is not None:
                    row[name] = found.result.get(field) if field else found.stale
            made.append(row)
        return made


class _Facet(_Shape):
    """A row a record that has the facet, or a row an item where results are lists (`each`)."""

    def __init__(self, facet: str, fields: Mapping[str, pa.DataType], each: str | None) -> None:
        fixed = (*_USUAL, *_SERVING)
        # A result's field keeps its name; what it would hide is the record's text, say.
        self._fields = {f"{facet}_{name}" if name in fixed else name: name for name in fields}
        self._facet, self._each = facet, each
        self._own = {f"record_{name}" if name in self._fields else name: name for name in _RECORD}
        made = {name: fields[field] for name, field in self._fields.items()}
        own = {name: _RECORD[of][1] for name, of in self._own.items()}
        self.usual = (*_USUAL, *made, *(name for name in _SERVING if name not in _UNASKED))
        self.columns = {name: own[name] for name in _USUAL} | made | _SERVING | own

    def of_record(self, names: Sequence[str]) -> list[str]:
        return [self._own[name] for name in names if name in self._own]

    def rows(self, connection: psycopg.Connection, page: Page, names: Sequence[str]) -> Page:
        served = _served(connection, self._facet, page)
        own = [(name, self._own[name]) for name in names if name in self._own]
        made: list[dict[str, Any]] = []
        for record in page:
            if (found := served.get(record["id"])) is None:
                continue
            row = {name: record[of] for name, of in own}
            row |= {name: getattr(found, name) for name in _SERVING}
            items = [found.result] if self._each is None else found.result.get(self._each) or ()
            made += [
                row | {name: item.get(of) for name, of in self._fields.items()} for item in items
            ]
        return made


class _Vectors(_Shape):
    """A row a record that has a vector in the space: as many float32 as the space has numbers."""

    def __init__(self, space: str) -> None:
        numbers = space.rpartition("-")[2]
        if not numbers.isdecimal():
            raise HeadraceError(f"space {space or 'unnamed'}: its name ends with its dimensions")
        self._space = space
        self.columns = {
            **{name: kind for name, (_, kind) in _RECORD.items()},
            "vector": pa.list_(pa.float32(), int(numbers)),
            "space": pa.string(),
            **_SERVING,
        }
        self.usual = (*_USUAL, "vector", "space", "version", "stale")

    def rows(self, connection: psycopg.Connection, page: Page, names: Sequence[str]) -> Page:
        ids = [record["id"] for record in page]
        found = {
            record_id: {"vector": vector, "space": self._space, "version": version,
                        "stage": stage, "stale": stale, "at": at}
            for record_id, vector, version, stage, stale, at in connection.execute(
                _VECTORS, [self._space, ids]
            )
        }  # fmt: skip
        return [{**record, **found[record["id"]]} for record in page if record["id"] in found]


def _moment(since: str | date | None) -> datetime | None:
    if isinstance(since, str):
        return moment("since", since)
    if isinstance(since, date) and not isinstance(since, datetime):
        since = datetime.combine(since, time.min)
    return since.replace(tzinfo=UTC) if since is not None and since.tzinfo is None else since


def _served(connection: psycopg.Connection, facet: str, page: Page) -> dict[str, Served]:
    rows = connection.execute(_SERVED, [facet, [record["id"] for record in page]])
    return {row[0]: Served(row[1] or {}, *row[2:]) for row in rows}


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        numbers = np.frombuffer(b"".join(values), "<f4")
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers), kind.list_size)
    if pa.types.is_string(kind):
        values = [v if isinstance(v, str | None) else orjson.dumps(v).decode() for v in values]
    return pa.array(values, kind)


def _fields(
    settings: Settings, topology: Topology, facet: str
) -> tuple[dict[str, pa.DataType], str | None]:
    """The fields of a facet's results as its stages' schemas have them; where a result is a list of
    things under the facet's own name, those of a thing, and that name."""
    found: dict[str, Any] = {}
    for group in topology.stages():
        name = group.outputs[0].schema if group.outputs else None
        if group.facet == facet and name:
            outcome = schemas.load(settings, name).get("properties", {})
            found = {**outcome.get("result", {}).get("properties", {}), **found}
    each = found.get(facet, {})
    if each.get("type") == "array" and each.get("items", {}).get("type") == "object":
        things = each["items"].get("properties", {})
        return {name: _type(told) for name, told in things.items()}, facet
    return {name: _type(told) for name, told in found.items()}, None


def _type(told: Mapping[str, Any]) -> pa.DataType:
    """Arrow's type for a property; text (JSON) for what is not flat."""
    named = told.get("type")
    if isinstance(named, list):
        others = [name for name in named if name != "null"]
        named = others[0] if len(others) == 1 else None
    if named == "array":
        inner = _type(told.get("items", {}))
        return pa.list_(inner) if told.get("items", {}).get("type") in _PLAIN else pa.string()
    return _PLAIN.get(named, pa.string()) if isinstance(named, str) else pa.string()


_PLAIN: dict[str, pa.DataType] = {
    "string": pa.string(), "number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_(),
}  # fmt: skip


def _and(names: Sequence[str]) -> str:
    return ", ".join(names)
