"""Which records are to be done again: pages of ids by keyset, so memory does not grow with them.

What is queued already (table redo) is never chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import psycopg

from headrace.redo.messages import Input
from headrace.redo.sending import Line
from headrace.redo.standing import Reach
from headrace.stream.topology import Group

# A page is read along the keys. The planner takes a join on a whole revision for one that hardly a
# row passes, and would rather read and sort all of both tables, once a page.
_IN_ORDER = """
SELECT set_config(name, value, true)
FROM (VALUES ('enable_sort', 'off'), ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'),
             ('enable_hashjoin', 'off'), ('max_parallel_workers_per_gather', '0'))
  AS planner (name, value)
"""


class Choice(Protocol):
    """Records of one stage, in the order of their ids."""

    def count(self, connection: psycopg.Connection) -> int: ...

    def pages(self, connection: psycopg.Connection, size: int) -> Iterator[list[Line]]: ...


@dataclass(frozen=True, slots=True)
class Query:
    """Records r of `source` (FROM … WHERE …) for which none of `without` (the same, of r) has a
    row. `key` is another name of r.id, so that either table can be read from the same place on."""

    source: str
    without: tuple[str, ...]
    parameters: dict[str, Any]
    key: str = "r.id"

    def count(self, connection: psycopg.Connection) -> int:
        none_of = " ".join(f"AND NOT EXISTS (SELECT {one})" for one in self.without)
        query = f"SELECT count(*) {self.source} {none_of}".encode()
        row = connection.execute(query, self.parameters).fetchone()
        return int(row[0]) if row else 0

    def pages(self, connection: psycopg.Connection, size: int) -> Iterator[list[Line]]:
        """Pages of `source`, then a look-up a row: as quick at the end as at the beginning, while
        anti-joins would read all of the tables that grow meanwhile for each page."""
        looks = "".join(
            f" LEFT JOIN LATERAL (SELECT true AS found {one} LIMIT 1) w{number} ON true"
            for number, one in enumerate(self.without)
        )
        kept = " AND ".join(f"w{number}.found IS NULL" for number in range(len(self.without)))
        query = (
            f"SELECT r.id, r.size, {kept} FROM"
            ' (SELECT r.id, r.topic, r.topic_id, r.partition, r."offset",'
            f" coalesce(octet_length(r.value), 0) AS size {self.source}"
            f" AND r.id > %(after)s AND {self.key} > %(after)s ORDER BY r.id LIMIT %(size)s) r"
            f"{looks} ORDER BY r.id"
        ).encode()
        after = ""
        while rows := self._page(connection, query, {"after": after, "size": size}):
            yield [Line(record_id, length) for record_id, length, keep in rows if keep]
            after = rows[-1][0]

    def _page(
        self, connection: psycopg.Connection, query: bytes, place: dict[str, Any]
    ) -> list[tuple[str, int, bool]]:
        with connection.transaction():
            connection.execute(_IN_ORDER)
            return connection.execute(query, self.parameters | place).fetchall()


@dataclass(frozen=True, slots=True)
class Together:
    """Several choices that have no record in common."""

    choices: Sequence[Choice]

    def count(self, connection: psycopg.Connection) -> int:
        return sum(choice.count(connection) for choice in self.choices)

    def pages(self, connection: psycopg.Connection, size: int) -> Iterator[list[Line]]:
        for choice in self.choices:
            yield from choice.pages(connection, size)


_OF_PLATFORM = """
  AND r.platform_id IN (SELECT id FROM dim_platform WHERE name = ANY(%(platforms)s))
"""

_QUEUED = """FROM redo q WHERE q."group" = %(stage)s AND q.record_id = r.id"""

_ANSWERED = """
FROM outcomes o
WHERE o.record_id = r.id AND o.stage = %(stage)s
  AND o.root_topic_id = r.topic_id AND o.root_offset = r."offset"
  AND (o.outcome IN ('ok', 'drop', 'dead') OR o.outcome = 'deferred' AND NOT %(deferred)s)
"""

_DIED = """
FROM dead_letters d
WHERE d."group" = %(stage)s AND d.topic = r.topic AND d.partition = r.partition
  AND d."offset" = r."offset"
"""

# The stage has passed what it was to read of the record: `place` is where that stands. A topic that
# was made anew since is passed for ever.
_PASSED = """
  AND NOT r.deleted AND r.topic = ANY(%(raw)s)
  AND ({place_id} <> ALL(%(ids)s)
       OR EXISTS (SELECT FROM unnest(%(reach_ids)s::text[], %(reach_partitions)s::integer[],
                                     %(reach_next)s::bigint[]) AS reach (id, partition, next)
                  WHERE reach.id = {place_id} AND reach.partition = {partition}
                    AND {offset} < reach.next))
"""

_FROM_RAW = "FROM records r WHERE true"

_FROM_ABOVE = """
FROM records r
JOIN outcomes u ON u.record_id = r.id AND u.stage = %(above)s
 AND u.root_topic_id = r.topic_id AND u.root_offset = r."offset"
 AND u.outcome IN ('ok', 'drop', 'dead')
WHERE true
"""


def missing(
    group: Group,
    inputs: Sequence[Input],
    reach: Sequence[Reach],
    *,
    platforms: Sequence[str] = (),
    deferred: bool = False,
) -> Together:
    """Records that a stage has passed and has no answer for (`deferred`: or has put off)."""
    choices: list[Choice] = []
    for input in inputs:
        if input.above is None:
            source = _FROM_RAW + _PASSED.format(
                place_id="r.topic_id", partition="r.partition", offset='r."offset"'
            )
        else:
            source = _FROM_ABOVE + _PASSED.format(
                place_id="u.out_topic_id", partition="u.out_partition", offset="u.out_offset"
            )
        parameters = {
            "stage": group.short,
            "above": input.above.short if input.above else None,
            "raw": list(input.raw),
            "deferred": deferred,
            "ids": sorted({at.topic_id for at in reach}),
            "reach_ids": [at.topic_id for at in reach],
            "reach_partitions": [at.partition for at in reach],
            "reach_next": [at.next for at in reach],
            "platforms": list(platforms),
        }
        if platforms:
            source += _OF_PLATFORM
        key = "u.record_id" if input.above else "r.id"
        choices.append(Query(source, (_ANSWERED, _DIED, _QUEUED), parameters, key))
    return Together(choices)


_LACKING = """
FROM outcomes o
JOIN records r ON r.id = o.record_id AND NOT r.deleted
 AND r.topic_id = o.root_topic_id AND r."offset" = o.root_offset
WHERE o.stage = %(stage)s AND o.outcome = 'ok' AND NOT o.result ? %(part)s
"""


# A letter that is done may have been the whole record's; what is dismissed is not asked for again.
_DIED_OF_IT = """
FROM letters d
WHERE d."group" = %(stage)s AND d.topic = r.topic AND d.partition = r.partition
  AND d."offset" = r."offset" AND d.state IN ('open', 'dismissed')
"""

_UNDER_WAY = """
FROM llm_request_items i JOIN llm_requests q ON q.id = i.request
WHERE i.record_id = r.id AND q.stage = %(stage)s
  AND %(part)s = ANY(string_to_array(i.alone, ','))
"""


def lacking(group: Group, part: str, platforms: Sequence[str] = ()) -> Query:
    """Records whose result of a stage has no part of this name, nor is any to come."""
    source = _LACKING + (_OF_PLATFORM if platforms else "")
    parameters = {"stage": group.short, "part": part, "platforms": list(platforms)}
    return Query(source, (_QUEUED, _DIED_OF_IT, _UNDER_WAY), parameters, "o.record_id")


@dataclass(frozen=True, slots=True)
class Target:
    """The version that an upgrade leads to. `whole`: a running worker told it, so the part behind
    the plus (its model's) counts too."""

    rank: int
    version: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.version} (rank {self.rank})"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an upgrade is limited to; all of it must hold."""

    platforms: Sequence[str] = ()
    since: datetime | None = None  # when the outcome was made
    until: datetime | None = None
    version: str | None = None  # the older one, with or without its model's
    confidence_below: float | None = None


# Outcomes of the record's current revision. What a higher rank made stays: nothing of a lower one
# would be served. A dead record is for `dead redrive`, what was dropped upstream is not this
# stage's.
_OLDER = """
FROM outcomes o
JOIN records r ON r.id = o.record_id AND NOT r.deleted
 AND r.topic_id = o.root_topic_id AND r."offset" = o.root_offset
WHERE o.stage = %(stage)s AND o.outcome IN ('ok', 'drop')
  AND o.reason IS DISTINCT FROM 'upstream'
  AND (o.rank < %(rank)s OR o.rank = %(rank)s AND {version} <> %(version)s)
"""


def older(group: Group, target: Target, wanted: Wanted) -> Query:
    """Records whose outcome of a stage is of an older version than the target."""
    version = "o.version" if target.whole else "split_part(o.version, '+', 1)"
    source = _OLDER.format(version=version)
    if wanted.platforms:
        source += _OF_PLATFORM
    if wanted.since is not None:
        source += " AND o.at >= %(since)s"
    if wanted.until is not None:
        source += " AND o.at < %(until)s"
    if wanted.version is not None:
        source += " AND %(old)s IN (o.version, split_part(o.version, '+', 1))"
    if wanted.confidence_below is not None:
        source += (
            " AND CASE WHEN jsonb_typeof(o.result->'confidence') = 'number'"
            " THEN (o.result->>'confidence')::float8 < %(confidence)s END"
        )
    parameters = {
        "stage": group.short,
        "rank": target.rank,
        "version": target.version,
        "platforms": list(wanted.platforms),
        "since": wanted.since,
        "until": wanted.until,
        "old": wanted.version,
        "confidence": wanted.confidence_below,
    }
    return Query(source, (_QUEUED,), parameters, "o.record_id")
