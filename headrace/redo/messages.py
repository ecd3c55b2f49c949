"""The messages of redo topics, made from the tables: the bytes as published, and what they are.

A stage that reads raw topics gets the record as it was published; one that reads another stage gets
that stage's outcome as it stood on `enriched.<stage>`. Both carry the revision, the rank and the
place of their first reading, so what comes of them takes its place in the order of versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import set_json_loads

from headrace.stream.topology import Group, Topology
from headrace.stream.wire import HEADER, PLACE, Lineage, Origin, Position, Revision
from headrace.vectors import as_published

PART_BYTES = 8 * 2**20  # of values in memory at once, where a single one is not larger

Header = tuple[str, str | bytes | None]


class Redo(NamedTuple):
    """A message for a redo topic. `name` is the record's id, or the dead letter's number."""

    name: str | int
    key: bytes | None
    value: bytes
    headers: list[Header]


@dataclass(frozen=True, slots=True)
class Input:
    """One kind of what a stage reads: raw records (`above` is None) or a stage's outcomes; `raw`
    are the full names of the raw topics that its records come from."""

    above: Group | None
    raw: tuple[str, ...]


def inputs(topology: Topology, group: Group) -> list[Input]:
    """What a stage reads, raw records first."""
    found: list[Input] = []
    raw = tuple(topic.name for topic in group.reads if topic.is_raw)
    if raw:
        found.append(Input(None, raw))
    for above in topology.upstream(group):
        if any(topic in group.reads for topic in above.outputs):
            roots = {name for part in inputs(topology, above) for name in part.raw}
            found.append(Input(above, tuple(sorted(roots))))
    return found


# As stands in records; a record that was deleted meanwhile is not there.
_RAW = """
SELECT r.id, r.value, r.topic, r.topic_id, r.partition, r."offset" AS at, r.appended,
       coalesce(d.run, '') AS run
FROM records r LEFT JOIN dim_run d ON d.id = r.run_id
WHERE r.id = ANY(%(ids)s) AND r.topic = ANY(%(raw)s) AND NOT r.deleted AND r.value IS NOT NULL
ORDER BY r.id
"""

_ABOVE = """
SELECT r.id, r.kind, p.name AS platform, o.outcome, o.reason, o.result, o.version, o.rank,
       o.at AS finished, o.input_topic, o.out_partition, o.out_offset,
       r.topic_id, r.partition, r."offset" AS at, r.appended, coalesce(d.run, '') AS run,
       v.vector
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
JOIN outcomes o ON o.record_id = r.id AND o.stage = %(above)s
 AND o.root_topic_id = r.topic_id AND o.root_offset = r."offset"
 AND o.outcome IN ('ok', 'drop', 'dead')
LEFT JOIN dim_run d ON d.id = r.run_id
LEFT JOIN vectors v ON v.record_id = r.id AND v.stage = o.stage
 AND v.space = (o.result->>'model') || '-' || (o.result->>'dimensions')
 AND v.root_topic_id = o.root_topic_id AND v.root_offset = o.root_offset
WHERE r.id = ANY(%(ids)s) AND r.topic = ANY(%(raw)s) AND NOT r.deleted
ORDER BY r.id
"""

_LETTERS = """
SELECT d.id, d.key, d.value, d.headers, d.topic, d.partition, d."offset" AS at, d.at AS died,
       d.topic_id, d.appended, r.topic_id AS record_topic_id, r.appended AS record_appended,
       coalesce(run.run, '') AS run, r.value AS record_value
FROM dead_letters d
LEFT JOIN records r ON r.id = d.record_key AND r.topic = d.topic AND r.partition = d.partition
 AND r."offset" = d."offset" AND NOT r.deleted
LEFT JOIN dim_run run ON run.id = r.run_id
WHERE d.id = ANY(%(ids)s)
ORDER BY d.id
"""


class Maker:
    """Makes messages for one group. `topic_ids`: Kafka's UUIDs of the topics as they are now."""

    def __init__(
        self,
        connection: psycopg.Connection,
        topology: Topology,
        group: Group,
        topic_ids: Mapping[str, str],
    ) -> None:
        set_json_loads(orjson.loads, connection)  # a large number comes back as it went
        self._connection = connection
        self._topology = topology
        self._group = group
        self._topic_ids = topic_ids
        self._inputs = inputs(topology, group) if group.kind == "stage" else []

    def records(
        self, ids: Sequence[str], sizes: Sequence[int] = (), parts: Sequence[str] = ()
    ) -> Iterator[Redo]:
        """What the group would read of these records now; one of which nothing can be read (it was
        deleted, say) is left out. `sizes`: bytes of each value, as far as they are known; `parts`:
        what alone is asked for."""
        for part in _parts(ids, sizes):
            for input in self._inputs:
                asked = {"ids": list(part), "raw": list(input.raw)}
                if input.above is None:
                    for row in self._rows(_RAW, asked):
                        yield _raw(row, tuple(parts))
                    continue
                for row in self._rows(_ABOVE, asked | {"above": input.above.short}):
                    made = self._envelope(input.above, row, tuple(parts))
                    if made is not None:
                        yield made

    def letters(self, ids: Sequence[int], sizes: Sequence[int] = ()) -> Iterator[Redo]:
        """Dead letters as they were read first; one that cannot be read again is left out."""
        made = self._stage_letter if self._group.kind == "stage" else self._store_letter
        for part in _parts(ids, sizes):
            for row in self._rows(_LETTERS, {"ids": list(part)}):
                found = made(row)
                if found is not None:
                    yield found

    def _rows(self, query: str, parameters: Mapping[str, Any]) -> list[Any]:
        cursor = self._connection.cursor(row_factory=namedtuple_row)
        return cursor.execute(query.encode(), parameters).fetchall()

    def _envelope(self, above: Group, row: Any, parts: tuple[str, ...]) -> Redo | None:
        topic = self._topology.by_name(row.input_topic)
        output = above.output(topic) if topic else None
        if output is None:
            return None
        value: dict[str, Any] = {
            "id": row.id,
            "kind": row.kind,
            "platform": row.platform,
            "stage": above.short,
            "outcome": row.outcome,
            "version": row.version,
            "at": _time(row.finished),
        }
        if row.outcome != "ok":
            if row.reason is not None:
                value["reason"] = row.reason
        elif row.vector is not None:
            value["result"] = as_published(row.result, row.vector)
        elif above.facet == "embeddings" and "dimensions" in row.result:
            return None  # its vector is not there
        else:
            value["result"] = row.result
        place = Position(output.name, row.out_partition, row.out_offset)
        lineage = Lineage(_revision(row), _plain(row.run), max(row.rank, 0), 0, parts, place)
        return Redo(row.id, row.id.encode(), orjson.dumps(value), [(HEADER, lineage.pack())])

    def _stage_letter(self, row: Any) -> Redo | None:
        """The lineage that it died with, of a part maybe; without one, that of the record which
        stands there."""
        headers = row.headers or {}
        value = row.value if row.value is not None else (row.record_value or "").encode()
        if row.key is None or not value:
            return None
        place = Position(row.topic, row.partition, row.at)
        try:
            was = Lineage.unpack(headers.get(HEADER, "").encode())
            was = Lineage(was.revision, was.run, was.input_rank, 0, was.parts, place)
        except ValueError:
            if row.record_topic_id is None:
                return None
            revision = Revision(row.record_topic_id, row.partition, row.at, row.record_appended)
            was = Lineage(revision, _plain(row.run), 0, 0, (), place)
        return Redo(row.id, row.key, value, [(HEADER, was.pack())])

    def _store_letter(self, row: Any) -> Redo | None:
        topic_id = row.topic_id or self._topic_ids.get(row.topic)
        if row.value is None or topic_id is None:
            return None
        if all(topic.name != row.topic for topic in self._group.reads):
            return None  # what stood on its redo topic and was no order of ours
        at = row.appended if row.appended is not None else int(row.died.timestamp() * 1000)
        origin = Origin(Position(row.topic, row.partition, row.at), topic_id, at)
        kept: list[Header] = [
            (name, text.encode()) for name, text in (row.headers or {}).items() if name != PLACE
        ]
        return Redo(row.id, row.key, row.value, [*kept, (PLACE, origin.pack())])


def _raw(row: Any, parts: tuple[str, ...]) -> Redo:
    place = Position(row.topic, row.partition, row.at)
    lineage = Lineage(_revision(row), _plain(row.run), 0, 0, parts, place)
    return Redo(row.id, row.id.encode(), row.value.encode(), [(HEADER, lineage.pack())])


def _revision(row: Any) -> Revision:
    return Revision(row.topic_id, row.partition, row.at, row.appended)


def _plain(run: str) -> str:
    return "" if ";" in run else run


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parts(ids: Sequence[Any], sizes: Sequence[int]) -> Iterable[Sequence[Any]]:
    """Parts whose values are not much more than PART_BYTES together."""
    start = total = 0
    for end, size in enumerate(sizes):
        if total and total + size > PART_BYTES:
            yield ids[start:end]
            start, total = end, 0
        total += size
    if start < len(ids):
        yield ids[start:]
