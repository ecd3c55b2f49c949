"""Figures of every platform and across them, one set of rows a run.

What `platform_metrics` says is taken from it. The rest needs every post once more: what is wanted
of each goes into a temporary table, so that the views are evaluated once and nothing but sums
comes to this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from headrace.config import Metrics
from headrace.jobs import Context

Row = dict[str, Any]

LEVELS = ("early", "fast", "full")
PLATFORM_COLUMNS = (
    "records", "posts", "comments", "authors", "communities", "engagement", "sentiment",
    "positive", "neutral", "negative", "processing_level", "first_at", "last_at", "last_updated",
)  # fmt: skip
ADDED_UP = (*PLATFORM_COLUMNS[:5], "positive", "neutral", "negative")


@dataclass(frozen=True, slots=True)
class Figures:
    """Rows of table metrics by platform; None is all of them."""

    rows: dict[str | None, Row]


def run(connection: psycopg.Connection, context: Context) -> Figures:
    """The figures of this snapshot; none where nothing is stored."""
    limits = context.settings.metrics
    connection.execute(_posts(connection))
    connection.execute("ANALYZE metrics_posts")
    cursor = connection.cursor(row_factory=dict_row)
    rows: dict[str | None, Row] = {}
    for found in cursor.execute("SELECT * FROM platform_metrics ORDER BY platform").fetchall():
        rows[found["platform"]] = {name: found[name] for name in PLATFORM_COLUMNS}
    if rows:
        rows[None] = _all(connection, list(rows.values()))
    parts: dict[str, Mapping[str | None, Any]] = {
        "stages": _stages(connection),
        "languages": _counts(connection, "language", limits.languages, frequent=True),
        "by_day": _counts(connection, "created_on", limits.days),
        "by_week": _counts(connection, "date_trunc('week', created_on)::date", limits.weeks),
        "top_entities": _entities(connection, limits),
    }
    for part, by_platform in parts.items():
        empty: Any = [] if part == "top_entities" else {}
        for platform, row in rows.items():
            row[part] = by_platform.get(platform, empty)
    if rows:
        rows[None]["across"] = _across(connection, rows, limits)
    connection.execute("DROP TABLE metrics_posts, metrics_mentions")
    return Figures(rows)


def publish(connection: psycopg.Connection, context: Context, result: Figures) -> None:
    for platform, row in result.rows.items():
        told = {"run": context.run, "taken_at": context.taken_at, "platform": platform, **row}
        values = [Jsonb(v) if isinstance(v, dict | list) else v for v in told.values()]
        names, marks = ", ".join(told), ", ".join(["%s"] * len(told))
        connection.execute(f"INSERT INTO metrics ({names}) VALUES ({marks})".encode(), values)


def _posts(connection: psycopg.Connection) -> bytes:
    """Makes metrics_posts; columns of facets that no stage provides are empty."""
    there = connection.execute("SELECT * FROM posts LIMIT 0").description or ()
    known = {column.name for column in there}
    language = "language" if "language" in known else "NULL::text"
    score = "sentiment_score" if "sentiment_score" in known else "NULL::double precision"
    return f"""
CREATE TEMPORARY TABLE metrics_posts AS
SELECT id, platform, author, community,
       (created_at AT TIME ZONE 'UTC')::date AS created_on,
       {language} AS language, {score} AS score
FROM posts
""".encode()


def _all(connection: psycopg.Connection, platforms: list[Row]) -> Row:
    """The row of all platforms; the mean over the records, not over the platforms' means."""

    def known(name: str) -> list[Any]:
        return [row[name] for row in platforms if row[name] is not None]

    row = {name: sum(row[name] for row in platforms) for name in ADDED_UP}
    mean = connection.execute("SELECT round(avg(score)::numeric, 3) FROM metrics_posts").fetchone()
    return row | {
        "engagement": sum(known("engagement")) if known("engagement") else None,
        "sentiment": mean[0] if mean else None,
        "processing_level": min((r["processing_level"] for r in platforms), key=LEVELS.index),
        "first_at": min(known("first_at"), default=None),
        "last_at": max(known("last_at"), default=None),
        "last_updated": max(known("last_updated"), default=None),
    }


_STAGES = """
SELECT platform, stage, sum(records)::bigint, sum(ok)::bigint, sum(dropped)::bigint,
       sum(dead)::bigint, sum(pending)::bigint
FROM coverage GROUP BY GROUPING SETS ((platform, stage), (stage)) ORDER BY platform, stage
"""


def _stages(connection: psycopg.Connection) -> dict[str | None, Row]:
    found: dict[str | None, Row] = {}
    for platform, stage, records, ok, dropped, dead, pending in connection.execute(_STAGES):
        wanted = records - dropped
        found.setdefault(platform, {})[stage] = {
            "records": records,
            "ok": ok,
            "dropped": dropped,
            "dead": dead,
            "pending": pending,
            "coverage": round(ok / wanted, 4) if wanted else None,
        }
    return found


def _counts(
    connection: psycopg.Connection, value: str, most: int, *, frequent: bool = False
) -> dict[str | None, dict[str, int]]:
    """Records by the values of an expression, per platform and over all: the most frequent values,
    or the greatest, at most so many."""
    order = "records DESC, value" if frequent else "value DESC"
    query = f"""
WITH counted AS (
  SELECT platform, {value} AS value, count(*) AS records
  FROM metrics_posts WHERE {value} IS NOT NULL
  GROUP BY GROUPING SETS ((platform, {value}), ({value}))
), ranked AS (
  SELECT *, row_number() OVER (PARTITION BY platform ORDER BY {order}) AS place FROM counted
)
SELECT platform, value::text, records FROM ranked WHERE place <= %s ORDER BY platform, {order}
"""
    found: dict[str | None, dict[str, int]] = {}
    for platform, name, records in connection.execute(query.encode(), [most]):
        found.setdefault(platform, {})[name] = records
    return found


_MENTIONS = """
CREATE TEMPORARY TABLE metrics_mentions AS
SELECT p.platform, m.type, m.name, sum(m.mentions)::bigint AS mentions, count(*) AS records,
       sum(p.score) AS score, count(p.score) AS scored
FROM (SELECT record_id, type, name, count(*) AS mentions FROM entity_mentions
      GROUP BY record_id, type, name) m
JOIN metrics_posts p ON p.id = m.record_id
GROUP BY p.platform, m.type, m.name
"""
_ENTITIES = """
WITH counted AS (
  SELECT platform, type, name, sum(mentions)::bigint AS mentions, sum(records)::bigint AS records,
         round((sum(score) / nullif(sum(scored), 0))::numeric, 3) AS sentiment
  FROM metrics_mentions GROUP BY GROUPING SETS ((platform, type, name), (type, name))
), ranked AS (
  SELECT *, row_number() OVER (PARTITION BY platform ORDER BY mentions DESC, type, name) AS place
  FROM counted
)
SELECT platform, type, name, mentions, records, sentiment::float8 AS sentiment
FROM ranked WHERE place <= %s ORDER BY platform, place
"""


def _entities(connection: psycopg.Connection, limits: Metrics) -> dict[str | None, list[Row]]:
    """The most mentioned, and what the records that name them sound like."""
    connection.execute(_MENTIONS)
    cursor = connection.cursor(row_factory=dict_row)
    found: dict[str | None, list[Row]] = {}
    for row in cursor.execute(_ENTITIES, [limits.top]):
        found.setdefault(row.pop("platform"), []).append(row)
    return found


# What stands on several platforms: how many, and the ones with the most. A name is the same one
# where it is spelled the same (communities: where their slugs are).
_SHARED_ENTITIES = """
WITH shared AS (
  SELECT type, name, sum(mentions)::bigint AS mentions,
         jsonb_object_agg(platform, mentions ORDER BY platform) AS platforms
  FROM metrics_mentions GROUP BY type, name HAVING count(*) > 1
)
SELECT (SELECT count(*) FROM shared),
       coalesce(jsonb_agg(to_jsonb(top) ORDER BY mentions DESC, type, name), '[]')
FROM (SELECT * FROM shared ORDER BY mentions DESC, type, name LIMIT %s) top
"""
_SHARED_COMMUNITIES = """
WITH counted AS (
  SELECT d.slug, p.platform, count(*) AS records
  FROM metrics_posts p
  JOIN dim_platform f ON f.name = p.platform
  JOIN dim_community d ON d.platform_id = f.id AND d.name = p.community
  GROUP BY d.slug, p.platform
), shared AS (
  SELECT slug, sum(records)::bigint AS records,
         jsonb_object_agg(platform, records ORDER BY platform) AS platforms
  FROM counted GROUP BY slug HAVING count(*) > 1
)
SELECT (SELECT count(*) FROM shared),
       coalesce(jsonb_agg(to_jsonb(top) ORDER BY records DESC, slug), '[]')
FROM (SELECT * FROM shared ORDER BY records DESC, slug LIMIT %s) top
"""
_SHARED_AUTHORS = """
SELECT count(*) FROM (
  SELECT FROM (SELECT DISTINCT lower(author) AS author, platform FROM metrics_posts
               WHERE author IS NOT NULL) a
  GROUP BY author HAVING count(*) > 1) shared
"""


def _across(connection: psycopg.Connection, rows: dict[str | None, Row], limits: Metrics) -> Row:
    """Authors are counted and not named: a name on two platforms need not be one person."""
    records = rows[None]["records"]
    entities = connection.execute(_SHARED_ENTITIES, [limits.top]).fetchone()
    communities = connection.execute(_SHARED_COMMUNITIES, [limits.top]).fetchone()
    authors = connection.execute(_SHARED_AUTHORS).fetchone()
    assert entities and communities and authors
    return {
        "shares": {
            platform: round(row["records"] / records, 4)
            for platform, row in rows.items()
            if platform is not None and records
        },
        "shared_authors": authors[0],
        "shared_entities": entities[0],
        "top_shared_entities": entities[1],
        "shared_communities": communities[0],
        "top_shared_communities": communities[1],
    }
