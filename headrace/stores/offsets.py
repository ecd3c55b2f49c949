"""Where a store group stands, in PostgreSQL: moved in the transaction of the rows, and fenced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import psycopg

# Topic (full name), partition, and the id of the topic's incarnation: a topic made anew is another.
Slot = tuple[str, int, str]

_READ = """
SELECT o.topic, o.partition, o.topic_id, o.next
FROM offsets o
JOIN unnest(%s::text[], %s::integer[], %s::text[]) AS asked (topic, partition, topic_id)
  USING (topic, partition, topic_id)
WHERE o."group" = %s
"""

_MOVE = """
UPDATE offsets o SET next = moved.next, updated_at = now()
FROM unnest(%s::text[], %s::integer[], %s::text[], %s::bigint[], %s::bigint[])
  AS moved (topic, partition, topic_id, next, expected)
WHERE o."group" = %s AND o.topic = moved.topic AND o.partition = moved.partition
  AND o.topic_id = moved.topic_id AND o.next = moved.expected
"""

_BEGIN = """
INSERT INTO offsets ("group", topic, partition, topic_id, next)
SELECT %s, * FROM unnest(%s::text[], %s::integer[], %s::text[], %s::bigint[])
ON CONFLICT DO NOTHING
"""

_SKIP = """
INSERT INTO offsets AS o ("group", topic, partition, topic_id, next)
SELECT %s, * FROM unnest(%s::text[], %s::integer[], %s::text[], %s::bigint[])
ON CONFLICT ("group", topic, partition, topic_id) DO UPDATE
  SET next = excluded.next, updated_at = now() WHERE o.next < excluded.next
RETURNING topic, partition, topic_id
"""


def read(connection: psycopg.Connection, group: str, slots: Iterable[Slot]) -> dict[Slot, int]:
    """The next offset of each slot that has one."""
    columns = _columns(slots)
    if not columns:
        return {}
    return {
        (topic, partition, topic_id): following
        for topic, partition, topic_id, following in connection.execute(_READ, [*columns, group])
    }


def move(
    connection: psycopg.Connection, group: str, moves: Mapping[Slot, tuple[int | None, int]]
) -> bool:
    """Moves each slot from the offset where we left it (None: it had none) to the next one.

    False where one of them is not there any more: another worker has it, and this transaction must
    be rolled back.
    """
    old = [(*slot, to, at) for slot, (at, to) in moves.items() if at is not None]
    new = [(*slot, to) for slot, (at, to) in moves.items() if at is None]
    moved = 0
    if old:
        moved += connection.execute(_MOVE, [*_columns(old), group]).rowcount
    if new:
        moved += connection.execute(_BEGIN, [group, *_columns(new)]).rowcount
    return moved == len(moves)


def skip(connection: psycopg.Connection, group: str, ends: Mapping[Slot, int]) -> list[Slot]:
    """Moves the group forward to these offsets whatever a worker of it is at, who finds itself
    overtaken then. Returns the slots that moved."""
    if not ends:
        return []
    rows = connection.execute(_SKIP, [group, *_columns((*slot, at) for slot, at in ends.items())])
    return [(topic, partition, topic_id) for topic, partition, topic_id in rows]


def _columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]
