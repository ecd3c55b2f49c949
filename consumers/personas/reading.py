"""Communities and their personas out of PostgreSQL, by whatever name a person gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import dict_row

from consumers.personas import lines, making
from headrace.errors import HeadraceError
from headrace.slug import slug

SHOWN = 5  # candidates that are named where a name means several

Row = dict[str, Any]

_ONE = re.compile(r":\d+-\d{2,}$")  # how the id of a persona ends

COLUMNS = (
    "id", "community_id", "platform", "community", *making.FIELDS, "set", "locked", "edited",
    "model", "created_at", "updated_at",
)  # fmt: skip

# As view communities, which counts all posts for it.
_KNOWN = """
SELECT r.id, p.name AS platform, d.slug, coalesce(r.title, d.name) AS name, r.text AS description,
       r.ingested_at AS created_at
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
LEFT JOIN dim_community d ON d.id = r.community_id
WHERE r.id > 'community:' AND r.id < 'community;' AND NOT r.deleted
"""
_COMMUNITIES = f"""
SELECT c.id, c.platform, c.slug, c.name, c.description, about.properties->>'about' AS about,
       about.properties->>'tone' AS tone, about.properties->'themes' AS themes, shown.personas,
       c.created_at, o.outcome, o.reason, (o.result->>'set')::integer AS set,
       coalesce((o.result->>'changed')::boolean, false) AS changed, o.result->>'model' AS model,
       o.stored_at AS made_at,
       (SELECT count(*) FROM nodes n WHERE n.root_id = c.id AND n.kind = 'persona'
          AND n.superseded_at IS NULL) - shown.personas AS hidden,
       (SELECT max(s.number) FROM llm_sets s WHERE s.stage = 'personas' AND s.record_id = c.id)
         AS ordered
FROM ({_KNOWN}) c
CROSS JOIN LATERAL (SELECT count(*) AS personas FROM personas WHERE community_id = c.id) shown
LEFT JOIN nodes about
  ON about.id = c.id AND about.kind = 'community' AND about.superseded_at IS NULL
LEFT JOIN outcomes o ON o.record_id = c.id AND o.stage = 'personas'
"""

# A hidden one is found by its id, so that it can be shown again.
_PERSONA = """
SELECT n.id, n.root_id AS community_id FROM nodes n
WHERE n.kind = 'persona' AND n.superseded_at IS NULL AND n.id = ANY(%s)
"""


class Found(NamedTuple):
    """What somebody meant: a community, or one of its personas."""

    community: str
    persona: str | None


def communities(connection: psycopg.Connection, ids: list[str] | None = None) -> list[Row]:
    """Those that are known as records, with what the stage made of them."""
    query = _COMMUNITIES + ("WHERE c.id = ANY(%s)" if ids is not None else "")
    cursor = connection.cursor(row_factory=dict_row)
    cursor.execute((query + " ORDER BY c.id").encode(), [ids] if ids is not None else [])
    return cursor.fetchall()


def personas(connection: psycopg.Connection, community: str | None = None) -> Iterator[Row]:
    """Those that are served, as they were edited, by community and place; a row at a time."""
    where = "WHERE community_id = %s" if community else ""
    query = f'SELECT {_quoted(COLUMNS)} FROM personas {where} ORDER BY community_id, id COLLATE "C"'
    with connection.cursor("personas", row_factory=dict_row) as cursor:
        cursor.execute(query.encode(), [community] if community else [])
        yield from cursor


def persona(connection: psycopg.Connection, id: str) -> Row | None:
    cursor = connection.cursor(row_factory=dict_row)
    query = f"SELECT {_quoted(COLUMNS)} FROM personas WHERE id = %s"
    return cursor.execute(query.encode(), [id]).fetchone()


def posts(connection: psycopg.Connection, ids: list[str]) -> dict[str, str]:
    """What posts say, by id; those that are not there (any more) are missing."""
    rows = connection.execute(
        "SELECT id, coalesce(nullif(title, ''), text, '') FROM records"
        " WHERE id = ANY(%s) AND NOT deleted",
        [ids],
    ).fetchall()
    return dict(rows)


def find(connection: psycopg.Connection, said: str) -> Found:
    """A persona by its id (with or without the word persona), or a community by its id, its name
    or its slug. Raises HeadraceError where it is none or several."""
    asked = said.strip()
    row = connection.execute(_PERSONA, [[asked, f"persona:{asked}"]]).fetchone()
    if row is not None:
        return Found(str(row[1]), str(row[0]))
    if asked.startswith("persona:") or _ONE.search(asked):
        raise HeadraceError(f"there is no persona {asked} now: `headrace personas list` tells")
    return Found(community(connection, asked), None)


def community(connection: psycopg.Connection, said: str) -> str:
    """The record id of a community. Raises HeadraceError where it is none or several."""
    asked = said.strip()
    plain = slug(asked.removeprefix("r/"))
    rows = connection.execute(
        f"SELECT id, platform, name FROM ({_KNOWN}) AS known"
        " WHERE id = %s OR id = %s OR slug = %s OR lower(name) = lower(%s)"
        " ORDER BY id LIMIT %s".encode(),
        [asked, f"community:{asked}", plain, asked, SHOWN + 1],
    ).fetchall()
    exact = [row for row in rows if row[0] in (asked, f"community:{asked}")]
    if asked.startswith("r/"):
        rows = [row for row in rows if row[1] == "reddit"]
    found = exact or rows
    if not found:
        raise HeadraceError(
            f"there is no community {said}: `headrace personas list` shows what there is"
        )
    if len(found) > 1:
        named = ", ".join(row[0] for row in found[:SHOWN])
        raise HeadraceError(f"{said} may be one of several: say {named}")
    return str(found[0][0])


def title(row: Row) -> str:
    return lines.name(row["platform"], row["name"] or row["slug"])


def _quoted(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in columns)
