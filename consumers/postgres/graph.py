"""Nodes and edges: taken out of a result as it is read, written as far as it is served.

What is served of a record decides which of its nodes are current. Those that are no longer stay as
history with the time since when; a deletion takes away all that is not newer. A batch may bring
several answers about a record: each is written in turn, so that history is the same however the
messages were cut into batches.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import orjson
import psycopg

from consumers.postgres.merge import Place, State, merge
from headrace.graph import edge_id, record_of
from headrace.stores.dimensions import Dimension
from headrace.stream.decode import Fault
from headrace.vectors import space, unpacked

PERSONAS = "personas"  # the facet whose results are nodes and edges


class Node(NamedTuple):
    """`properties` are JSON, `vector` little-endian float32."""

    id: str
    kind: str
    name: str | None
    properties: str
    vector: bytes | None


class Edge(NamedTuple):
    id: uuid.UUID
    kind: str
    source: str
    target: str


class Graph(NamedTuple):
    """What a result says; `space` and `dimensions` are those of its vectors."""

    platform: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    space: str | None
    dimensions: int


class Came(NamedTuple):
    """An outcome of a stage whose results are graphs, as it came, and its graph if it is ok."""

    state: State
    graph: Graph | None


class Step(NamedTuple):
    """What becomes of a record's nodes; without a graph it is deleted at `root`."""

    record_id: str
    stage: str
    root: Place
    version: str
    rank: int
    at: str
    graph: Graph | None


def taken(record_id: str, platform: str, result: Mapping[str, Any]) -> tuple[dict[str, Any], Graph]:
    """A result of personas without what its nodes hold, and these. Raises Fault, or KeyError and
    the like for what a schema would have refused."""
    community = result["community"]
    own = {"set": result["set"], "model": result.get("model")}
    made = result.get("vectors")
    where, dimensions = None, 0
    if made is not None:
        where, dimensions = space(made["model"], made["dimensions"]), made["dimensions"]

    def node(id: str, kind: str, said: Mapping[str, Any]) -> Node:
        kept = {name: value for name, value in said.items() if name not in _OWN_COLUMNS}
        numbers = said.get("vector") if where else None
        try:
            vector = None if numbers is None else unpacked(numbers, dimensions)
        except ValueError as error:
            raise Fault(f"the vector of {id} cannot be read: {error}") from None
        return Node(id, kind, said.get("name"), orjson.dumps({**kept, **own}).decode(), vector)

    nodes = {record_id: node(record_id, "community", community)}
    for persona in result["personas"]:
        name = persona["id"]
        if record_of(name) != record_id or name in nodes:
            raise Fault(f"{name!s:.100} is no persona of {record_id}, or stands there twice")
        nodes[name] = node(name, "persona", persona)
    personas = list(nodes)[1:]
    edges = tuple(
        Edge(edge_id(_MEMBER, name, record_id), _MEMBER, name, record_id) for name in personas
    )
    rest = {name: value for name, value in result.items() if name != "community"}
    graph = Graph(platform, tuple(nodes.values()), edges, where, dimensions)
    return {**rest, "personas": personas}, graph


_MEMBER = "member_of"
_OWN_COLUMNS = ("id", "name", "vector")


def steps(stood: State | None, came: Sequence[Came]) -> Iterator[Step]:
    """What the outcomes of one record and stage lead to, one after another. Pure."""
    graphs = {one.state.out: one.graph for one in came if one.graph is not None}
    stands = stood
    for state, _ in came:
        if state.outcome == "deleted":
            yield _step(state, state.root, state.version, state.rank, state.at, None)
        before = stands.served if stands else None
        stands = state if stands is None else merge(stands, state)
        now = stands.served
        if now is not None and now != before and now.out in graphs:
            yield _step(state, now.root, now.version, now.rank, now.at, graphs[now.out])


def _step(state: State, root: Place, version: str, rank: int, at: str, graph: Graph | None) -> Step:
    return Step(state.record_id, state.stage, root, version, rank, at, graph)


def write(
    connection: psycopg.Connection,
    came: Mapping[tuple[str, str], Sequence[Came]],
    stood: Mapping[tuple[str, str], State],
    platforms: Dimension,
) -> set[str]:
    """Write what is served after these outcomes; `stood` had been stored before them. The caller
    holds their rows. Returns the ids of nodes that changed."""
    changed: set[str] = set()
    turns = [list(steps(stood.get(key), came[key])) for key in sorted(came)]
    for turn in zip_longest(*turns):  # mostly one
        found = [step for step in turn if step is not None]
        changed |= _delete(connection, [step for step in found if step.graph is None])
        changed |= _show(connection, [step for step in found if step.graph is not None], platforms)
    return changed


# -- a deletion

_GONE = """
USING unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[])
   AS gone (root_id, stage, topic_id, "offset", appended)
WHERE n.root_id = gone.root_id AND n.stage = gone.stage
  AND NOT newer(n.root_topic_id, n.root_offset, n.root_appended,
                gone.topic_id, gone."offset", gone.appended)
"""
_DELETE_NODES = f"DELETE FROM nodes n {_GONE} RETURNING n.id"
_DELETE_EDGES = f"DELETE FROM edges n {_GONE}"
_DELETE_VECTORS = "DELETE FROM vectors WHERE record_id = ANY(%s) AND stage = ANY(%s)"


def _delete(connection: psycopg.Connection, gone: Sequence[Step]) -> set[str]:
    if not gone:
        return set()
    columns = [
        [step.record_id for step in gone],
        [step.stage for step in gone],
        [step.root.topic_id for step in gone],
        [step.root.offset for step in gone],
        [step.root.at for step in gone],
    ]
    connection.execute(_DELETE_EDGES.encode(), columns)
    ids = {id for (id,) in connection.execute(_DELETE_NODES.encode(), columns).fetchall()}
    _without_vectors(connection, ids, gone)
    return ids


def _without_vectors(
    connection: psycopg.Connection, ids: Collection[str], steps: Sequence[Step]
) -> None:
    if ids:
        stages = sorted({step.stage for step in steps})
        connection.execute(_DELETE_VECTORS, [sorted(ids), stages])


# -- what is served

_ROOT = ("version", "rank", "root_topic_id", "root_partition", "root_offset", "root_appended")
_UPDATE_ROOT = ", ".join(f"{name} = excluded.{name}" for name in ("stage", *_ROOT))

# `of` is the place of a node's step among those of the records.
_RECORDS = f"""
unnest(%(records)s::text[], %(stages)s::text[], %(versions)s::text[], %(ranks)s::integer[],
       %(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[],
       %(appended)s::bigint[], %(ats)s::timestamptz[], %(platforms)s::smallint[])
  WITH ORDINALITY AS r (root_id, stage, {", ".join(_ROOT)}, "at", platform_id, number)
"""

# Whoever is here holds the outcome's row, and what comes is what stands.
_UPSERT_NODES = f"""
INSERT INTO nodes (id, kind, platform_id, name, properties, root_id, stage, {", ".join(_ROOT)})
SELECT n.id, n.kind, r.platform_id, n.name, n.properties, r.root_id, r.stage,
       {", ".join(f"r.{name}" for name in _ROOT)}
FROM unnest(%(ids)s::text[], %(kinds)s::text[], %(names)s::text[], %(properties)s::jsonb[],
            %(of)s::integer[]) AS n (id, kind, name, properties, "of")
JOIN {_RECORDS} ON r.number = n."of"
ORDER BY n.id
ON CONFLICT (id) DO UPDATE SET
  kind = excluded.kind, platform_id = excluded.platform_id, name = excluded.name,
  properties = excluded.properties, root_id = excluded.root_id, {_UPDATE_ROOT},
  stored_at = now(), superseded_at = NULL, row_version = nextval('record_changes')
"""
_SUPERSEDE_NODES = f"""
UPDATE nodes n SET superseded_at = r."at", row_version = nextval('record_changes')
FROM {_RECORDS}
WHERE n.root_id = r.root_id AND n.stage = r.stage AND n.superseded_at IS NULL
  AND n.id <> ALL (%(ids)s::text[])
RETURNING n.id
"""
_UPSERT_EDGES = f"""
INSERT INTO edges (id, kind, source, target, root_id, stage, {", ".join(_ROOT)})
SELECT e.id, e.kind, e.source, e.target, r.root_id, r.stage,
       {", ".join(f"r.{name}" for name in _ROOT)}
FROM unnest(%(edges)s::uuid[], %(edge_kinds)s::text[], %(sources)s::text[], %(targets)s::text[],
            %(edges_of)s::integer[]) AS e (id, kind, source, target, "of")
JOIN {_RECORDS} ON r.number = e."of"
ORDER BY e.id
ON CONFLICT (id) DO UPDATE SET
  root_id = excluded.root_id, {_UPDATE_ROOT}, stored_at = now(), superseded_at = NULL
"""
_SUPERSEDE_EDGES = f"""
UPDATE edges e SET superseded_at = r."at"
FROM {_RECORDS}
WHERE e.root_id = r.root_id AND e.stage = r.stage AND e.superseded_at IS NULL
  AND e.id <> ALL (%(edges)s::uuid[])
"""
# As of other results: those of another revision go, another space's of the same revision stays.
_OLD_VECTORS = f"""
DELETE FROM vectors v
USING unnest(%(ids)s::text[], %(of)s::integer[]) AS n (id, "of")
JOIN {_RECORDS} ON r.number = n."of"
WHERE v.record_id = n.id AND v.stage = r.stage
  AND (v.root_topic_id, v.root_offset) IS DISTINCT FROM (r.root_topic_id, r.root_offset)
"""
_UPSERT_VECTORS = f"""
INSERT INTO vectors (record_id, space, stage, dimensions, vector, {", ".join(_ROOT)})
SELECT n.id, n.space, r.stage, n.dimensions, n.vector, {", ".join(f"r.{name}" for name in _ROOT)}
FROM unnest(%(vector_ids)s::text[], %(spaces)s::text[], %(dimensions)s::integer[],
            %(vectors)s::bytea[], %(vectors_of)s::integer[])
  AS n (id, space, dimensions, vector, "of")
JOIN {_RECORDS} ON r.number = n."of"
ORDER BY n.id, n.space
ON CONFLICT (record_id, space) DO UPDATE SET
  stage = excluded.stage, dimensions = excluded.dimensions, vector = excluded.vector,
  {", ".join(f"{name} = excluded.{name}" for name in _ROOT)}, stored_at = now()
"""


def _show(connection: psycopg.Connection, shown: Sequence[Step], platforms: Dimension) -> set[str]:
    if not shown:
        return set()
    told = _columns(shown, platforms)
    connection.execute(_UPSERT_NODES.encode(), told)
    history = {id for (id,) in connection.execute(_SUPERSEDE_NODES.encode(), told).fetchall()}
    connection.execute(_UPSERT_EDGES.encode(), told)
    connection.execute(_SUPERSEDE_EDGES.encode(), told)
    _without_vectors(connection, history, shown)
    connection.execute(_OLD_VECTORS.encode(), told)
    if told["vectors"]:
        connection.execute(_UPSERT_VECTORS.encode(), told)
    return history.union(told["ids"])


def _columns(shown: Sequence[Step], platforms: Dimension) -> dict[str, Any]:
    graphs = [(number, step.graph) for number, step in enumerate(shown, 1) if step.graph]
    nodes = [(number, node) for number, graph in graphs for node in graph.nodes]
    edges = [(number, edge) for number, graph in graphs for edge in graph.edges]
    vectors = [
        (number, graph, node) for number, graph in graphs for node in graph.nodes if node.vector
    ]
    return {
        "records": [step.record_id for step in shown],
        "stages": [step.stage for step in shown],
        "versions": [step.version for step in shown],
        "ranks": [step.rank for step in shown],
        "topics": [step.root.topic_id for step in shown],
        "partitions": [step.root.partition for step in shown],
        "offsets": [step.root.offset for step in shown],
        "appended": [step.root.at for step in shown],
        "ats": [step.at for step in shown],
        "platforms": [platforms[(graph.platform,)] for _, graph in graphs],
        "ids": [node.id for _, node in nodes],
        "kinds": [node.kind for _, node in nodes],
        "names": [node.name for _, node in nodes],
        "properties": [node.properties for _, node in nodes],
        "of": [number for number, _ in nodes],
        "edges": [edge.id for _, edge in edges],
        "edge_kinds": [edge.kind for _, edge in edges],
        "sources": [edge.source for _, edge in edges],
        "targets": [edge.target for _, edge in edges],
        "edges_of": [number for number, _ in edges],
        "vector_ids": [node.id for *_, node in vectors],
        "spaces": [graph.space for _, graph, _ in vectors],
        "dimensions": [graph.dimensions for _, graph, _ in vectors],
        "vectors": [node.vector for *_, node in vectors],
        "vectors_of": [number for number, *_ in vectors],
    }
