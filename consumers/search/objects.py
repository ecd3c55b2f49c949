"""Whole objects for Weaviate out of PostgreSQL: whatever changed, an object is built anew.

The version is read with the record, before everything else: what a later statement sees may be
newer, and has left a mark of its own then.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
import psycopg

from headrace.search.versions import ROW_VERSION, key

_TIME = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""

_RECORDS = f"""
SELECT r.id, {ROW_VERSION} AS row_version, p.name AS platform, r.kind, r.deleted, r.title, r.text,
       a.name AS author, c.name AS community, c.slug AS community_key, r.url,
       {_TIME.format("r.created_at")} AS created_at, {_TIME.format("r.ingested_at")} AS ingested_at,
       r.lang, r.metrics
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
LEFT JOIN dim_author a ON a.id = r.author_id
LEFT JOIN dim_community c ON c.id = r.community_id
WHERE r.id = ANY(%s)
"""

# Only of ids that are no record's. What is served no longer, or hidden, has no object.
_PERSONAS = f"""
SELECT s.id, s.row_version, p.name AS platform, s.kind, s.deleted OR v.id IS NULL AS deleted,
       v.name AS title, v.community, c.slug AS community_key,
       {_TIME.format("v.created_at")} AS created_at, {_TIME.format("v.updated_at")} AS ingested_at,
       v.age_range, v.occupation, v.interests, v.goals, v.frustrations, v.tone_of_voice,
       v.typical_posts
FROM searched s
JOIN dim_platform p ON p.id = s.platform_id
LEFT JOIN personas v ON v.id = s.id
LEFT JOIN records r ON r.id = v.community_id
LEFT JOIN dim_community c ON c.id = r.community_id
WHERE s.id = ANY(%s) AND s.kind = 'persona'
"""

_ABOUT = """
SELECT id, properties FROM nodes
WHERE id = ANY(%s) AND kind = 'community' AND superseded_at IS NULL
"""

_STATUS = "SELECT record_id, stage, status FROM stage_status WHERE record_id = ANY(%s)"

_SERVED = """
SELECT record_id, facet, result, stale FROM served
WHERE record_id = ANY(%s) AND facet IN ('text', 'sentiment', 'entities')
"""

_VECTORS = "SELECT record_id, vector FROM vectors WHERE space = %s AND record_id = ANY(%s)"


class Object(NamedTuple):
    """`vectors` by space."""

    record_id: str
    platform: str
    kind: str
    deleted: bool
    properties: Mapping[str, Any]
    vectors: Mapping[str, Sequence[float]]

    @property
    def uuid(self) -> uuid.UUID:
        return key(self.record_id)


def read(
    connection: psycopg.Connection, ids: Sequence[str], spaces: Sequence[str]
) -> dict[str, Object]:
    """The records and personas as they stand now, by id; what is not there at all is left out."""
    wanted = [list(ids)]
    records = _rows(connection, _RECORDS, wanted)
    if others := [id for id in ids if id not in records]:
        personas = _rows(connection, _PERSONAS, [others])
        for persona in personas.values():
            persona["text"] = rendered(persona)
        records |= personas
    if communities := [id for id in records if records[id]["kind"] == "community"]:
        for id, properties in connection.execute(_ABOUT, [communities]):
            records[id]["text"] = described(records[id]["text"], properties)
    found: dict[str, dict[str, Any]] = {record_id: {} for record_id in records}
    for record_id, stage, status in connection.execute(_STATUS, wanted):
        if record_id in found:
            found[record_id][f"{stage}_status"] = status
    for record_id, facet, result, stale in connection.execute(_SERVED, wanted):
        if record_id in found:
            found[record_id] |= _facet(facet, result or {}, bool(stale))
    vectors: dict[str, dict[str, Sequence[float]]] = {}
    for space in spaces:
        for record_id, vector in connection.execute(_VECTORS, [space, list(ids)]):
            vectors.setdefault(record_id, {})[space] = np.frombuffer(vector, "<f4").tolist()
    return {
        record_id: Object(
            record_id,
            record["platform"],
            record["kind"],
            record["deleted"],
            _properties(record, found[record_id]),
            vectors.get(record_id, {}),
        )
        for record_id, record in records.items()
    }


def _rows(
    connection: psycopg.Connection, query: str, parameters: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """By the first column."""
    cursor = connection.execute(query.encode(), parameters)
    names = [column.name for column in cursor.description or ()]
    return {row[0]: dict(zip(names, row, strict=True)) for row in cursor}


def rendered(persona: Mapping[str, Any]) -> str:
    """A persona in words, as people read and search it."""
    who = ", ".join(part for name in ("occupation", "age_range") if (part := persona.get(name)))
    told = [
        f"{said}: {'; '.join(map(str, parts))}"
        for said, name in (
            ("Interests", "interests"),
            ("Wants", "goals"),
            ("Troubled by", "frustrations"),
            ("Posts", "typical_posts"),
        )
        if (parts := persona.get(name)) and isinstance(parts, list)
    ]
    if tone := persona.get("tone_of_voice"):
        told.insert(0, f"Tone: {tone}")
    return "\n".join(filter(None, [who, *told]))


def described(text: str | None, properties: Mapping[str, Any]) -> str:
    """A community's own words, and what is known of it."""
    themes = properties.get("themes")
    told = [text, properties.get("about")]
    if isinstance(themes, list) and themes:
        told.append(f"Themes: {'; '.join(map(str, themes))}")
    return "\n".join(filter(None, told))


_PLAIN = (
    "title", "text", "platform", "kind", "author", "community", "community_key", "url",
    "created_at", "ingested_at", "row_version",
)  # fmt: skip


def _properties(record: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"record_id": record["id"]}
    made |= {name: record.get(name) for name in _PLAIN}
    made["language"] = record.get("lang")
    if record.get("metrics") is not None:
        made["metrics"] = orjson.dumps(record["metrics"]).decode()
    made |= found
    return {name: value for name, value in made.items() if value is not None and value != []}


def _facet(facet: str, result: Mapping[str, Any], stale: bool) -> dict[str, Any]:
    if facet == "text":
        made: dict[str, Any] = {"hashtags": [tag.casefold() for tag in result.get("hashtags", ())]}
        if result.get("language") not in (None, "und"):
            made["language"] = result["language"]
        return made
    if facet == "sentiment":
        return {
            "sentiment": result.get("label"),
            "sentiment_score": result.get("score"),
            "sentiment_confidence": result.get("confidence"),
            "sentiment_stale": stale,
        }
    names = list(dict.fromkeys(entity["name"] for entity in result.get("entities", ())))
    return {"entities": names, "entity_keys": list(dict.fromkeys(n.casefold() for n in names))}
