"""Content taken out of PostgreSQL. The store does it by itself as the deletions come through each
stage; this sees to what no stage will ever come to again, and to what hangs on no stage.

Everything is idempotent. A record that was published anew since its deletion is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import orjson
import psycopg

from headrace.config import Settings
from headrace.forget import orders
from headrace.forget.orders import CHUNK, Order, Wanted, chunks
from headrace.forget.sending import quoted
from headrace.graph import record_of
from headrace.snapshots import resetting
from headrace.stores import postgres
from headrace.stores.authors import LOCK as LOCK_AUTHORS

_FOUND = {
    "records": "SELECT count(*) FROM forget_records f JOIN records r ON r.id = f.record_id"
    " AND NOT r.deleted WHERE f.order_id = %s",
    "outcomes": "SELECT count(*) FROM outcomes o JOIN forget_records f USING (record_id)"
    " WHERE f.order_id = %s AND o.outcome <> 'deleted'",
    "entity_mentions": "SELECT count(*) FROM entity_mentions m JOIN forget_records f"
    " USING (record_id) WHERE f.order_id = %s",
    "vectors": "SELECT count(*) FROM vectors v JOIN forget_records f USING (record_id)"
    " WHERE f.order_id = %s",
    "scores": "SELECT count(*) FROM scores s JOIN forget_records f USING (record_id)"
    " WHERE f.order_id = %s",
    "nodes": "SELECT count(*) FROM nodes n JOIN forget_records f ON f.record_id = n.root_id"
    " WHERE f.order_id = %s",
    "decisions": "SELECT count(*) FROM decisions d JOIN forget_records f USING (record_id)"
    " WHERE f.order_id = %s",
    "llm_answers": "SELECT count(*) FROM llm_answers a JOIN forget_records f USING (record_id)"
    " WHERE f.order_id = %s",
    "redo": "SELECT count(*) FROM redo d JOIN forget_records f USING (record_id)"
    " WHERE f.order_id = %s",
}

# Held, so that none is published anew meanwhile as far as the stores know.
_GONE = "SELECT id FROM records WHERE id = ANY(%s) AND deleted ORDER BY id FOR NO KEY UPDATE"
# An outcome may come before its record: what is of a newer revision stays.
_NOT_NEWER = """
NOT newer(t.root_topic_id, t.root_offset, t.root_appended, r.topic_id, r."offset", r.appended)
"""
_MADE = (
    f"DELETE FROM {{}} t USING records r WHERE r.id = ANY(%s) AND t.{{}} = r.id AND {_NOT_NEWER}"
)

# What a stage says of the deletion comes after this, however late: its rank is higher.
_EMPTY_OUTCOMES = """
UPDATE outcomes o SET
  outcome = 'deleted', reason = NULL, result = NULL, parts = NULL, earlier = NULL,
  version = 'forget', rank = 0, input_rank = 0, root_topic_id = r.topic_id,
  root_partition = r.partition, root_offset = r."offset", root_appended = r.appended,
  input_topic = r.topic, input_partition = r.partition, input_offset = r."offset",
  out_topic_id = r.topic_id, out_partition = r.partition, out_offset = r."offset",
  out_appended = r.appended, at = now(), stored_at = now(),
  floor = jsonb_build_array(r.topic_id, r.partition, r."offset", r.appended),
  row_version = nextval('record_changes')
FROM records r
WHERE o.record_id = r.id AND r.id = ANY(%s) AND r.deleted
  AND newer(r.topic_id, r."offset", r.appended, o.root_topic_id, o.root_offset, o.root_appended)
"""
_TAKE_OUT = {
    "entity_mentions": "DELETE FROM entity_mentions WHERE record_id = ANY(%s)",
    "vectors": _MADE.format("vectors", "record_id"),
    "scores": _MADE.format("scores", "record_id"),
    "vectors of nodes": "DELETE FROM vectors t USING nodes n, records r"
    f" WHERE r.id = ANY(%s) AND n.root_id = r.id AND t.record_id = n.id AND {_NOT_NEWER}",
    "nodes": _MADE.format("nodes", "root_id"),
    "edges": _MADE.format("edges", "root_id"),
    "decisions": "DELETE FROM decisions WHERE record_id = ANY(%s)",
    "llm_answers": "DELETE FROM llm_answers WHERE record_id = ANY(%s)",
    "llm_claims": "DELETE FROM llm_claims WHERE record_id = ANY(%s)",
    "llm_sets": "DELETE FROM llm_sets WHERE record_id = ANY(%s)",
    "llm_requests": "UPDATE llm_requests SET body = NULL, error = NULL WHERE id IN"
    " (SELECT request FROM llm_request_items WHERE record_id = ANY(%s))",
    "llm_calls": "UPDATE llm_calls SET error = NULL, raw = NULL, records = NULL"
    " WHERE records && %s",
    "redo": "DELETE FROM redo WHERE record_id = ANY(%s)",
    "search_errors": "DELETE FROM search_errors WHERE record_of(record_id) = ANY(%s)",
    "dead_letters": "DELETE FROM dead_letters WHERE record_key = ANY(%s)",
}

_LETTERS = f"""
SELECT id, topic, record_key, value FROM dead_letters WHERE id > %s ORDER BY id LIMIT {CHUNK}
"""
_NAMED = re.compile(rb'"(id|author)"\s*:\s*("(?:[^"\\]|\\.)*")')

# A worker of the store notices by the sequence that ids which it remembers may be gone.
_ORPHANS = """
DELETE FROM dim_author a USING dim_platform p
WHERE p.id = a.platform_id AND NOT EXISTS (SELECT FROM records r WHERE r.author_id = a.id)
RETURNING p.name, a.name
"""


def found(connection: psycopg.Connection, order: Order) -> dict[str, int]:
    """How many rows of the order's records stand, by table."""
    counts = {}
    for place, query in _FOUND.items():
        row = connection.execute(query.encode(), [order.id]).fetchone()
        counts[place] = int(row[0]) if row else 0
    return counts


def empty(connection: psycopg.Connection, order: Order) -> None:
    """Take content out of every table, of the records whose deletion is stored."""
    for ids in chunks(connection, order):
        postgres.again(partial(_empty, connection, order, ids))
    order.count("dead_letters", letters(connection, order))


def _empty(connection: psycopg.Connection, order: Order, ids: Sequence[str]) -> None:
    # Search is told nothing: the store has marked the record, and a deleted one has no object.
    with connection.transaction():
        gone = [record for (record,) in connection.execute(_GONE, [list(ids)]).fetchall()]
        if not gone:
            return
        connection.execute(_EMPTY_OUTCOMES, [gone])
        for place, statement in _TAKE_OUT.items():
            number = connection.execute(statement.encode(), [gone]).rowcount
            if place == "dead_letters":
                order.count(place, number)


# What is kept of a set: what somebody locked, or edited and did not hide, as `headrace personas
# regenerate` keeps it; but not what names a forgotten record as its evidence.
_RAISE_SETS = """
INSERT INTO llm_sets (stage, record_id, number, keep, reason)
SELECT made.stage, made.record_id, made.number + 1, coalesce((
    SELECT jsonb_agg(n.properties || jsonb_build_object('kind', n.kind, 'id', n.id, 'name', n.name)
                     ORDER BY n.id)
    FROM nodes n
    WHERE n.root_id = made.record_id AND n.stage = made.stage AND n.kind = 'persona'
      AND n.superseded_at IS NULL
      AND EXISTS (SELECT FROM decisions d WHERE d.subject = n.id AND d.value IS NOT NULL
        AND (d.action = 'lock' OR d.action = 'edit' AND NOT EXISTS (
          SELECT FROM decisions h
          WHERE h.subject = n.id AND h.action = 'hide' AND h.value IS NOT NULL)))
      AND NOT EXISTS (SELECT FROM jsonb_path_query(n.properties, '$.evidence[*]') AS e (post)
        JOIN forget_records f ON f.order_id = %(order)s AND f.record_id = e.post #>> '{}')
  ), '[]'), %(reason)s
FROM (
  SELECT stage, record_id, max(number) AS number FROM (
    SELECT stage, record_id, "set" AS number, true AS content FROM llm_answers
    WHERE record_id = ANY(%(ids)s)
    UNION ALL SELECT stage, root_id, 1, true FROM nodes WHERE root_id = ANY(%(ids)s)
    UNION ALL SELECT stage, record_id, number, false FROM llm_sets WHERE record_id = ANY(%(ids)s)
  ) AS known
  GROUP BY stage, record_id HAVING bool_or(content)
) AS made
WHERE NOT EXISTS (SELECT FROM llm_sets s WHERE s.stage = made.stage
                  AND s.record_id = made.record_id AND s.reason = %(reason)s)
RETURNING stage, record_id
"""
_OLD_SETS = """
DELETE FROM llm_sets s WHERE s.stage = %s AND s.record_id = ANY(%s)
  AND EXISTS (SELECT FROM llm_sets newer WHERE newer.stage = s.stage
              AND newer.record_id = s.record_id AND newer.number > s.number)
"""
_RAISED = "SELECT stage, record_id FROM llm_sets WHERE reason = %s AND record_id = ANY(%s)"


def take_back(
    connection: psycopg.Connection, settings: Settings, order: Order, ids: Sequence[str]
) -> dict[str, list[str]]:
    """Of communities that quoted what is forgotten, take out what a language model made of them: it
    may quote it too. A new set is in force then, to be asked for. Returns by stage the communities
    that wait for one on this order's account; done again, it takes out nothing more."""
    reason = f"forget {order.id}"
    with connection.transaction():
        told = {"ids": list(ids), "order": order.id, "reason": reason}
        for stage, raised in _by_stage(connection.execute(_RAISE_SETS, told)).items():
            for place, statement in _TAKE_OUT.items():
                if place.startswith("llm_") and place != "llm_sets":
                    connection.execute(statement.encode(), [raised])
            connection.execute(_OLD_SETS, [stage, raised])
            resetting.take_back(connection, settings, [stage], raised)
    return _by_stage(connection.execute(_RAISED, [reason, list(ids)]))


def _by_stage(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage, record in sorted(rows):
        found.setdefault(stage, []).append(record)
    return found


def letters(connection: psycopg.Connection, order: Order, *, only_look: bool = False) -> int:
    """Take out the dead letters whose content names a record or an author that is forgotten,
    whatever their key; returns how many."""
    wanted = Wanted(connection, order)
    taken, last = 0, 0
    while rows := connection.execute(_LETTERS, [last]).fetchall():
        last = rows[-1][0]
        said = [(number, topic, *named_in(value, key)) for number, topic, key, value in rows]
        known = wanted.offsets({record for _, _, records, _ in said for record in records})
        gone = [
            number
            for number, topic, records, authors in said
            if any(record in known for record in records)
            or any(wanted.by(author, platform_of(topic, records)) for author in authors or [None])
        ]
        if gone and not only_look:
            connection.execute("DELETE FROM dead_letters WHERE id = ANY(%s)", [gone])
        taken += len(gone)
    return taken


def letters_of_nobody(connection: psycopg.Connection, order: Order) -> list[str]:
    """Ids of records of a forgotten author or platform that only dead letters tell of: what stands
    on their raw topic must go as well."""
    wanted = Wanted(connection, order)
    if wanted.author is None and not wanted.whole_platform:
        return []
    ids: dict[str, None] = {}
    last = 0
    while rows := connection.execute(_LETTERS, [last]).fetchall():
        last = rows[-1][0]
        for _, topic, key, value in rows:
            records, authors = named_in(value, key)
            platform = platform_of(topic, records)
            if any(wanted.by(author, platform) for author in authors or [None]):
                ids.update(dict.fromkeys(records))
    return list(ids)


def is_of(wanted: Wanted, key: str | None, topic: str, value: bytes | None) -> bool:
    """Whether a dead letter belongs to what is forgotten."""
    records, authors = named_in(value, key)
    if wanted.offsets(records):
        return True
    platform = platform_of(topic, records)
    return any(wanted.by(author, platform) for author in authors or [None])


def named_in(value: bytes | memoryview | None, key: str | None) -> tuple[set[str], list[Any]]:
    """(record ids, authors) that a message names; one that is no JSON is searched for them."""
    records = {key} if key else set()
    content = bytes(value or b"")
    try:
        said = orjson.loads(content)
    except ValueError:
        authors = []
        for name, text in _NAMED.findall(content):
            try:
                read = orjson.loads(text)
            except ValueError:
                continue
            if name == b"id":
                records.add(read)
            else:
                authors.append(read)
        return records, authors
    if not isinstance(said, dict):
        return records, []
    if isinstance(said.get("id"), str):
        records.add(said["id"])
    if isinstance(said.get("subject"), str):  # a decision
        records.add(record_of(said["subject"]))
    if isinstance(said.get("best_posts"), list):  # a community
        records.update(filter(None, map(quoted, said["best_posts"])))
    return records, [said["author"]] if "author" in said else []


def platform_of(topic: str, records: set[str]) -> str | None:
    """The platform of a message: its topic's, else what its record's id says."""
    _, found, platform = topic.partition(".raw.posts.")
    if found:
        return platform
    for record in records:
        if record.count(":") >= 2:
            return record.split(":")[1]
    return None


def authors(connection: psycopg.Connection, order: Order) -> None:
    """Take out the names that no record has any more."""
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = 0")
        connection.execute(f"SELECT pg_advisory_xact_lock({LOCK_AUTHORS})".encode())
        gone = connection.execute(_ORPHANS).fetchall()
        if gone:
            connection.execute("SELECT nextval('author_changes')")
        order.count("authors", len(gone))
        known = (order.subject or {}).get("gone", [])
        order.subject = {**(order.subject or {}), "gone": [*known, *map(list, gone)]}
        orders.save(connection, order)  # with the names: the snapshots are yet to be looked through


def marked(connection: psycopg.Connection, order: Order) -> int:
    """Marks of the order's records, and of communities that quoted them, that the projector has not
    come to; none without search."""
    row = connection.execute(
        "SELECT CASE WHEN EXISTS (SELECT FROM search_collections) THEN (SELECT count(*)"
        " FROM search_dirty d JOIN (SELECT record_id FROM forget_records WHERE order_id = %s"
        " UNION SELECT unnest(%s::text[])) f ON f.record_id = record_of(d.record_id)"
        " WHERE NOT d.rebuild) ELSE 0 END",
        [order.id, order.progress.get("quoting", [])],
    ).fetchone()
    return int(row[0]) if row else 0
