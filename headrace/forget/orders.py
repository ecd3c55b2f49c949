"""Orders to forget, as rows: what was asked for, how far it has come, and what was done.

An order is made in one transaction and goes on from wherever a kill has left it: its records are
rows, each with the place of its deletion once that is published.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from headrace.errors import HeadraceError
from headrace.slug import slug
from headrace.stream.topology import Topology

CHUNK = 1_000  # records at a time
_LONGEST = 500  # characters of an id, and of a name in dim_author


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be forgotten: records by id, or all of an author, a community or a platform, or
    what published files have deleted."""

    ids: tuple[str, ...] = ()
    author: str | None = None
    community: str | None = None
    platform: str | None = None
    deleted: bool = False

    def audit(self) -> dict[str, Any]:
        """What the order keeps of it for good: of a name its hash."""
        said: dict[str, Any] = {"kind": self.kind}
        if self.ids:
            said["records"] = len(self.ids)
        if self.author is not None:
            said["author_sha256"] = hashlib.sha256(self.author.encode()).hexdigest()
        if self.community is not None:
            said["community"] = slug(self.community)
        if self.platform is not None:
            said["platform"] = self.platform
        return said

    @property
    def kind(self) -> str:
        if self.ids:
            return "records"
        if self.author is not None:
            return "author"
        if self.community is not None:
            return "community"
        return "deleted" if self.deleted else "platform"

    def subject(self) -> dict[str, Any]:
        """What is needed to go on, ids apart, which are rows."""
        return {
            "author": self.author,
            "community": self.community,
            "platform": self.platform,
            "deleted": self.deleted,
        }

    @classmethod
    def of(cls, subject: Mapping[str, Any] | None) -> Selection:
        said = subject or {}
        return cls(
            author=said.get("author"),
            community=said.get("community"),
            platform=said.get("platform"),
            deleted=bool(said.get("deleted")),
        )


@dataclass
class Order:
    """A row of forget_orders. `progress`:

    reach      topic → partition → end: a selection by name is complete when the store is there
    selected   it is
    quotes     topic → partition → [first, end] of the communities that were published anew
    quoting    their ids
    ends       topic → partition → end: what stands before is of no use to anybody who has read it
    emptied    what stood in the tables was emptied once
    anew       what was made of communities that quoted was taken out
    purged     of the purge: upto (topic → partition → where its file was ended), compacted

    `subject` is the selection, and `gone` the authors' names that were taken out on its account.
    """

    id: str
    made_at: datetime
    made_by: str
    selection: dict[str, Any]
    subject: dict[str, Any] | None
    state: str  # open, forgotten, purged
    purge: bool
    progress: dict[str, Any]
    counts: dict[str, int]
    finished_at: datetime | None
    purged_at: datetime | None
    waits: list[str] = field(default_factory=list)  # why it does not go on now

    @property
    def wanted(self) -> Selection:
        return Selection.of(self.subject)

    def count(self, place: str, number: int) -> None:
        if number:
            self.counts[place] = self.counts.get(place, 0) + number

    def as_dict(self) -> dict[str, Any]:
        return {
            "order": self.id,
            "made_at": self.made_at.isoformat(),
            "made_by": self.made_by,
            "selection": self.selection,
            "state": self.state,
            "purge": self.purge,
            "counts": self.counts,
            "finished_at": self.finished_at and self.finished_at.isoformat(),
            "purged_at": self.purged_at and self.purged_at.isoformat(),
            "waits": self.waits,
        }


_COLUMNS = (
    "id, made_at, made_by, selection, subject, state, purge, progress, counts, finished_at,"
    " purged_at"
)


def make(
    connection: psycopg.Connection, topology: Topology, selection: Selection, *, purge: bool
) -> Order:
    """A new order, with the records that are named by their ids. In the caller's transaction.

    Raises HeadraceError for an id that is none, and for a platform that is not known.
    """
    if selection.platform is not None and selection.platform not in topology.platforms:
        known = ", ".join(topology.platforms)
        raise HeadraceError(f"platform {selection.platform} is not known; there are: {known}")
    named = [_named(topology, record) for record in dict.fromkeys(selection.ids)]
    now = datetime.now(UTC)
    number = f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    connection.execute(
        "INSERT INTO forget_orders (id, made_by, selection, subject, purge)"
        " VALUES (%s, %s, %s, %s, %s)",
        [number, _who(), Jsonb(selection.audit()), Jsonb(selection.subject()), purge],
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO forget_records (order_id, record_id, kind, platform, topic)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(number, *row) for row in named],
        )
    (order,) = read(connection, number)
    return order


def read(connection: psycopg.Connection, number: str | None = None) -> list[Order]:
    """One order, or all of them, the newest first. Raises HeadraceError for an unknown one."""
    where, values = ("WHERE id = %s", [number]) if number else ("", [])
    cursor = connection.cursor(row_factory=dict_row)
    cursor.execute(
        f"SELECT {_COLUMNS} FROM forget_orders {where} ORDER BY id DESC".encode(), values
    )
    found = [Order(**row) for row in cursor.fetchall()]
    if number and not found:
        raise HeadraceError(f"order {number} is not known; `headrace forget --list` shows them")
    return found


def save(connection: psycopg.Connection, order: Order) -> None:
    connection.execute(
        "UPDATE forget_orders SET subject = %s, state = %s, purge = %s, progress = %s, counts = %s,"
        " finished_at = %s, purged_at = %s WHERE id = %s",
        [
            None if order.subject is None else Jsonb(order.subject),
            order.state,
            order.purge,
            Jsonb(order.progress),
            Jsonb(order.counts),
            order.finished_at,
            order.purged_at,
            order.id,
        ],
    )


_SELECT = """
INSERT INTO forget_records (order_id, record_id, kind, platform, topic)
SELECT %(order)s, r.id, r.kind, p.name, r.topic
FROM records r JOIN dim_platform p ON p.id = r.platform_id
WHERE {where}
ON CONFLICT DO NOTHING
"""
_WHERE = {
    "author": "NOT r.deleted AND r.author_id IN (SELECT id FROM dim_author WHERE name = %(author)s)"
    " AND (%(platform)s::text IS NULL OR p.name = %(platform)s)",
    "community": "NOT r.deleted AND r.community_id IN"
    " (SELECT id FROM dim_community WHERE slug = %(community)s)"
    " AND (%(platform)s::text IS NULL OR p.name = %(platform)s)",
    "platform": "NOT r.deleted AND p.name = %(platform)s",
    # Those of earlier orders have been seen to.
    "deleted": "r.deleted AND NOT EXISTS"
    " (SELECT FROM forget_orders o JOIN dim_run d ON d.run = o.id WHERE d.id = r.run_id)"
    " AND r.updated_at > coalesce((SELECT max(made_at) FROM forget_orders"
    " WHERE selection->>'kind' = 'deleted' AND state <> 'open'), '-infinity')",
}


def select(connection: psycopg.Connection, order: Order) -> None:
    """Add the records that the store has and that the selection means."""
    kind = order.selection["kind"]
    if kind == "records":
        return
    wanted = order.wanted
    values = {
        "order": order.id,
        "author": wanted.author and wanted.author[:_LONGEST],
        "community": wanted.community and slug(wanted.community),
        "platform": wanted.platform,
    }
    connection.execute(_SELECT.format(where=_WHERE[kind]).encode(), values)


def add(connection: psycopg.Connection, topology: Topology, order: Order, record: str) -> None:
    """Add a record that only a dead letter tells of; what is no record's id is left alone."""
    try:
        row = _named(topology, record)
    except HeadraceError:
        return
    connection.execute(
        "INSERT INTO forget_records (order_id, record_id, kind, platform, topic)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [order.id, *row],
    )


def chunks(
    connection: psycopg.Connection, order: Order, where: str = "true"
) -> Iterator[list[str]]:
    """The order's record ids by keyset. `where`: a condition of ours on forget_records."""
    last = ""
    while True:
        rows = connection.execute(
            f"SELECT record_id FROM forget_records WHERE order_id = %s AND record_id > %s"
            f" AND ({where}) ORDER BY record_id LIMIT {CHUNK}".encode(),
            [order.id, last],
        ).fetchall()
        if not rows:
            return
        yield [record for (record,) in rows]
        last = rows[-1][0]


def number_of(connection: psycopg.Connection, order: Order, where: str = "true") -> int:
    row = connection.execute(
        f"SELECT count(*) FROM forget_records WHERE order_id = %s AND ({where})".encode(),
        [order.id],
    ).fetchone()
    return int(row[0]) if row else 0


class Wanted:
    """Whether something found somewhere belongs to what an order forgets."""

    def __init__(self, connection: psycopg.Connection, order: Order) -> None:
        self._connection = connection
        self._order = order
        selection = order.wanted
        self.author = selection.author
        self.platform = selection.platform
        self.whole_platform = order.selection["kind"] == "platform"

    def offsets(self, records: Collection[str]) -> dict[str, int]:
        """Of these record ids those that the order forgets, with the offset of their deletion
        (-1: not published yet)."""
        asked = list(records)
        if not asked:
            return {}
        return dict(
            self._connection.execute(
                'SELECT record_id, coalesce("offset", -1) FROM forget_records'
                " WHERE order_id = %s AND record_id = ANY(%s)",
                [self._order.id, asked],
            ).fetchall()
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Authors' names to look for where nothing tells what a text is."""
        return (self.author,) if self.author else ()

    def by(self, author: object, platform: str | None) -> bool:
        """Whether this author's work on this platform is meant as a whole."""
        if self.platform is not None and platform != self.platform:
            return False
        return self.whole_platform or (self.author is not None and author == self.author)


def _named(topology: Topology, record: str) -> tuple[str, str, str, str]:
    """(id, kind, platform, topic's full name). Raises HeadraceError where it is no record's id."""
    kind, _, rest = record.partition(":")
    platform, _, native = rest.partition(":")
    raw = "raw.communities" if kind == "community" else f"raw.posts.{platform}"
    topic = topology.topics.get(raw)
    usable = native and "\0" not in record and len(record) <= _LONGEST
    if topic is None or kind not in ("post", "comment", "community") or not usable:
        raise HeadraceError(
            f"{record[:100]!r} is no record's id: kind:platform:id, such as post:reddit:1abc"
            f" (platforms: {', '.join(topology.platforms)})"
        )
    return record, kind, platform, topic.name


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def spans(rows: Sequence[tuple[str, int, int, int]]) -> dict[str, dict[str, list[int]]]:
    """(topic, partition, first, end) as JSON keeps them."""
    found: dict[str, dict[str, list[int]]] = {}
    for topic, partition, first, end in rows:
        found.setdefault(topic, {})[str(partition)] = [first, end]
    return found
