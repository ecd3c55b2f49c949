"""Dead letters: what died of what, one of them with its bytes, the way back, and putting aside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg.rows import dict_row, namedtuple_row

from headrace.errors import HeadraceError
from headrace.redo.sending import Line
from headrace.stores import postgres
from headrace.stream.topology import Group, Topology

SHOWN_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Filters:
    """What letters are meant; all of it must hold. `cause` is a part of what `dead list` shows or
    of the whole reason; `*` stands for anything in it."""

    group: str | None = None
    cause: str | None = None
    platforms: Sequence[str] = ()
    records: Sequence[str] = ()

    def where(self, topology: Topology) -> tuple[str, dict[str, Any]]:
        """A condition over view letters, and its parameters."""
        parts = ["true"]
        parameters: dict[str, Any] = {}
        if self.group is not None:
            parts.append('"group" = %(group)s')
            parameters["group"] = topology.group(self.group).short
        if self.cause is not None:
            parts.append("(cause ILIKE %(cause)s OR reason ILIKE %(cause)s)")
            literal = re.sub(r"([\\%_])", r"\\\1", self.cause).replace("*", "%")
            parameters["cause"] = f"%{literal}%"
        if self.platforms:
            parts.append(
                "(split_part(record_key, ':', 2) = ANY(%(platforms)s) OR topic = ANY(%(topics)s))"
            )
            parameters["platforms"] = list(self.platforms)
            parameters["topics"] = [
                topic.name for topic in topology.topics.values() if topic.platform in self.platforms
            ]
        if self.records:
            parts.append("record_key = ANY(%(records)s)")
            parameters["records"] = list(self.records)
        return " AND ".join(parts), parameters


class Cause(NamedTuple):
    """Letters of one group that died of the same. `again`: how many died more than once."""

    group: str
    cause: str
    letters: int
    open: int
    queued: int
    dismissed: int
    again: int
    oldest: datetime
    newest: datetime
    example: str | None
    number: int  # of the example's letter

    def as_dict(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "oldest": self.oldest.isoformat(),
            "newest": self.newest.isoformat(),
        }


_CAUSES = """
SELECT "group", cause, count(*), count(*) FILTER (WHERE state = 'open'),
       count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'dismissed'),
       count(*) FILTER (WHERE deaths > 1),
       min(at), max(at), (array_agg(record_key ORDER BY at DESC, id))[1],
       (array_agg(id ORDER BY at DESC, id))[1]
FROM letters WHERE {where} {open}
GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2 LIMIT %(limit)s
"""


def causes(
    connection: psycopg.Connection,
    topology: Topology,
    filters: Filters,
    *,
    settled: bool = False,
    limit: int = 100,
) -> list[Cause]:
    """The causes of what is dead, most letters first; `settled`: also what is no longer open."""
    where, parameters = filters.where(topology)
    open_ = "" if settled else "AND state IN ('open', 'queued')"
    query = _CAUSES.format(where=where, open=open_).encode()
    return [Cause(*row) for row in connection.execute(query, parameters | {"limit": limit})]


def count(connection: psycopg.Connection, topology: Topology, filters: Filters, state: str) -> int:
    """How many letters are in a state."""
    where, parameters = filters.where(topology)
    query = f"SELECT count(*) FROM letters WHERE {where} AND state = %(state)s".encode()
    row = connection.execute(query, parameters | {"state": state}).fetchone()
    return int(row[0]) if row else 0


_LETTER = """
SELECT l.*, d.key, d.value, d.headers FROM letters l JOIN dead_letters d USING (id)
WHERE {where} ORDER BY l.at DESC, l.id DESC LIMIT 1
"""


def find(
    connection: psycopg.Connection, wanted: str, group: str | None = None
) -> Mapping[str, Any]:
    """A letter by its number, or the latest of a record (of one group). Raises HeadraceError."""
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 18 else None
    where = "l.id = %(number)s" if number is not None else "l.record_key = %(record)s"
    if group is not None:
        where += ' AND l."group" = %(group)s'
    if "\0" in wanted:
        raise HeadraceError("a record's id holds no NUL character")
    row = (
        connection.cursor(row_factory=dict_row)
        .execute(
            _LETTER.format(where=where).encode(),
            {"number": number, "record": wanted, "group": group},
        )
        .fetchone()
    )
    if row is None:
        of = f" of {group}" if group else ""
        raise HeadraceError(
            f"there is no dead letter {wanted}{of}: `headrace dead list` lists them"
        )
    return row


def shown(content: bytes | None) -> str:
    """Bytes as text that a terminal can bear: JSON indented, else each line escaped."""
    if content is None:
        return "(none)"
    try:
        text = orjson.dumps(orjson.loads(content), option=orjson.OPT_INDENT_2).decode()
    except (orjson.JSONDecodeError, TypeError):  # it reads more levels than it writes
        text = content.decode(errors="backslashreplace")
    plain = "".join(map(_plain, text[: SHOWN_BYTES + 1]))
    if len(plain) > SHOWN_BYTES:
        return f"{plain[:SHOWN_BYTES]}\n… ({len(content):,} bytes in all)"
    return plain


def _plain(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


# -- the way back

# What has no key is no record's: no group reads it however often.
_OPEN = """
FROM letters WHERE {where} AND "group" = %(of)s AND state = ANY(%(states)s) AND record_key <> ''
"""

# Of a record that died several times the latest counts: what came before it is superseded.
_PAGE = """
SELECT DISTINCT ON (record_key) record_key, id,
       (SELECT coalesce(length(d.value), 0) FROM dead_letters d WHERE d.id = letters.id)
{open} AND record_key > %(after)s
ORDER BY record_key, at DESC, id DESC LIMIT %(size)s
"""


@dataclass(frozen=True, slots=True)
class Dead:
    """The open letters of one group that are to be redriven; of records that are named the
    dismissed ones too."""

    group: Group
    filters: Filters
    topology: Topology

    def count(self, connection: psycopg.Connection) -> int:
        where, parameters = self._open()
        query = f"SELECT count(DISTINCT record_key) {where}".encode()
        row = connection.execute(query, parameters).fetchone()
        return int(row[0]) if row else 0

    def pages(self, connection: psycopg.Connection, size: int) -> Iterator[list[Line]]:
        where, parameters = self._open()
        query = _PAGE.format(open=where).encode()
        after = ""
        while rows := connection.execute(
            query, parameters | {"after": after, "size": size}
        ).fetchall():
            yield [Line(key, length, number) for key, number, length in rows]
            after = rows[-1][0]

    def queued(self, connection: psycopg.Connection, most: int) -> list[int]:
        """Letters that an earlier command sent and that have no answer yet."""
        where, parameters = self.filters.where(self.topology)
        query = (
            f"SELECT id FROM letters WHERE {where} AND \"group\" = %(of)s AND state = 'queued'"
            " ORDER BY record_key LIMIT %(most)s"
        ).encode()
        rows = connection.execute(query, parameters | {"of": self.group.short, "most": most})
        return [int(row[0]) for row in rows]

    def keyless(self, connection: psycopg.Connection) -> int:
        """Open letters without a key."""
        where, parameters = self.filters.where(self.topology)
        query = (
            f'SELECT count(*) FROM letters WHERE {where} AND "group" = %(of)s'
            " AND state = 'open' AND coalesce(record_key, '') = ''"
        ).encode()
        row = connection.execute(query, parameters | {"of": self.group.short}).fetchone()
        return int(row[0]) if row else 0

    def _open(self) -> tuple[str, dict[str, Any]]:
        where, parameters = self.filters.where(self.topology)
        states = ["open", "dismissed"] if self.filters.records else ["open"]
        return _OPEN.format(where=where), parameters | {"of": self.group.short, "states": states}


class Answer(NamedTuple):
    letter: int
    record: str
    survived: bool
    reason: str


def answers(connection: psycopg.Connection, letters: Sequence[int]) -> tuple[list[Answer], int]:
    """What has become of letters that were sent, and how many have no answer yet."""
    rows: list[Any] = (
        connection.cursor(row_factory=namedtuple_row)
        .execute(
            "SELECT id, record_key, state, reason FROM letters WHERE id = ANY(%s) ORDER BY id",
            [list(letters)],
        )
        .fetchall()
    )
    known = [row for row in rows if row.state != "queued"]
    found = [Answer(row.id, row.record_key, row.state != "open", row.reason) for row in known]
    return found, len(rows) - len(known)


# -- putting aside

_DISMISS = """
WITH chosen AS (
  SELECT id FROM letters WHERE {where} AND state = 'open' AND id > %(after)s
  ORDER BY id LIMIT %(size)s
)
UPDATE dead_letters d SET dismissed_at = now(), dismissal = %(why)s
FROM chosen WHERE d.id = chosen.id RETURNING d.id
"""


def dismiss(
    connection: psycopg.Connection,
    topology: Topology,
    filters: Filters,
    why: str | None,
    size: int,
) -> int:
    """Take open letters off the list, `size` at a time; returns how many. Their rows stay."""
    where, parameters = filters.where(topology)
    query = _DISMISS.format(where=where).encode()
    parameters |= {"after": 0, "size": size, "why": why}
    done = 0
    while rows := postgres.again(lambda: connection.execute(query, parameters).fetchall()):
        done += len(rows)
        parameters["after"] = max(number for (number,) in rows)
    return done
