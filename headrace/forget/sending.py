"""What forgetting publishes: deletions, and communities without the posts that they quoted.

A deletion is a revision like any other, sent as `headrace publish` would send it. One that is sent
twice does no harm, so its place is noted after it is out, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
from confluent_kafka import KafkaError, Message, Producer

from headrace import decisions
from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.forget.orders import CHUNK, Order, Wanted, chunks, spans
from headrace.graph import record_of
from headrace.log import get
from headrace.stream import clients, whole
from headrace.stream.clients import Partition
from headrace.stream.topology import Topology
from headrace.stream.wire import CE_ID, CE_SOURCE, CE_SPEC, CE_TYPE, source_of

log = get(__name__)

_PATIENCE = 60.0  # seconds for the broker to take a chunk
_RECEIPT = "run"
_TOLD = 50 * CHUNK  # deletions

Place = tuple[str, int, int]  # topic, partition, offset
Sent = tuple[str, str, bytes]  # topic, record id, value


class Sender:
    """Sends records under the order's id as their run."""

    def __init__(self, settings: Settings, order: Order) -> None:
        self._producer = Producer(clients.producer_conf(settings))
        self._order = order

    def send(self, records: Sequence[Sent]) -> dict[str, Place]:
        """Returns once all of them stand; their places by record id."""
        places: dict[str, Place] = {}
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(error)
                return
            key = (message.key() or b"").decode()
            places[key] = (message.topic(), message.partition(), message.offset())  # type: ignore[assignment]

        for topic, record, value in records:
            kind = "community" if record.startswith("community:") else "post"
            headers: list[tuple[str, str | bytes | None]] = [
                (CE_SPEC, b"1.0"),
                (CE_ID, f"forget:{record}".encode()),
                (CE_SOURCE, source_of(self._order.id).encode()),
                (CE_TYPE, f"headrace.raw.{kind}.v1".encode()),
            ]
            while True:
                try:
                    self._producer.produce(
                        topic, value, record.encode(), headers=headers, on_delivery=delivered
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
        left = self._producer.flush(_PATIENCE)
        if left or failures:
            why = failures[0].str() if failures else f"no answer for {_PATIENCE:.0f} s"
            raise ServerUnavailable(
                f"Kafka does not take the deletions: {why}; `headrace forget --resume` goes on"
            )
        return places

    def receipt(self, topic: str, value: Mapping[str, Any]) -> None:
        """A run's receipt, so that `headrace wait` and `headrace progress` know the order."""
        self._producer.produce(topic, orjson.dumps(value), self._order.id.encode(), partition=0)
        if self._producer.flush(_PATIENCE):
            raise ServerUnavailable(f"Kafka does not take the receipt on {topic}")


_UNPUBLISHED = """
SELECT f.record_id, f.kind, f.platform, f.topic, r.deleted, r.partition, r."offset"
FROM forget_records f
LEFT JOIN records r ON r.id = f.record_id AND r.deleted AND r.topic = f.topic
WHERE f.order_id = %s AND f.record_id = ANY(%s)
ORDER BY f.record_id
"""
_NOTE = """
UPDATE forget_records f SET partition = n.partition, "offset" = n."offset", published = n.published
FROM unnest(%s::text[], %s::integer[], %s::bigint[], %s::boolean[])
  AS n (record_id, partition, "offset", published)
WHERE f.order_id = %s AND f.record_id = n.record_id
"""

_LEAVE = "DELETE FROM forget_records WHERE order_id = %s AND record_id = ANY(%s)"


def deletions(
    connection: psycopg.Connection,
    sender: Sender,
    order: Order,
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Publish what is not out yet. False where it was told to stop before the last.

    What files have deleted needs nothing, and stands again where it was published anew since. Any
    other record is deleted (again): the store may have yet to read that it was published anew.
    """
    published = 0
    by_files = order.selection["kind"] == "deleted"
    for ids in chunks(connection, order, '"offset" IS NULL'):
        rows = connection.execute(_UNPUBLISHED, [order.id, ids]).fetchall()
        if by_files:
            noted = [(row[0], row[5], row[6], False) for row in rows if row[4]]
            connection.execute(_LEAVE, [order.id, [row[0] for row in rows if not row[4]]])
        else:
            places = sender.send([_deletion(*row[:4]) for row in rows])
            noted = [(record, *place[1:], True) for record, place in places.items()]
            published += len(noted)
        if noted:
            columns = [list(column) for column in zip(*noted, strict=True)]
            connection.execute(_NOTE, [*columns, order.id])
        if published and published % _TOLD == 0:
            log.info("deletions published", order=order.id, records=published)
        if stopping():
            return False
    return True


def _deletion(record: str, kind: str, platform: str, topic: str) -> Sent:
    value = {"id": record, "kind": kind, "platform": platform, "deleted": True}
    return topic, record, orjson.dumps(value)


# Communities whose best posts are forgotten, and once those of which a persona names such a post as
# its evidence (an earlier revision quoted it). What the store has must be the newest.
_QUOTING = f"""
SELECT r.id, r.topic, r.value FROM records r
WHERE r.id > %(last)s AND r.id < 'community;' AND NOT r.deleted AND (EXISTS (
  SELECT FROM jsonb_path_query(r.value::jsonb, '$.best_posts[*].id') AS quoted (post)
  JOIN forget_records f ON f.order_id = %(order)s AND f.record_id = quoted.post #>> '{{}}')
OR r."offset" < coalesce((%(spans)s::jsonb #>> ARRAY[r.topic, r.partition::text, '0'])::bigint,
                         9223372036854775807) AND EXISTS (
  SELECT FROM nodes n, jsonb_path_query(n.properties, '$.evidence[*]') AS named (post)
  JOIN forget_records f ON f.order_id = %(order)s AND f.record_id = named.post #>> '{{}}'
  WHERE n.root_id = r.id))
ORDER BY r.id LIMIT {CHUNK // 10}
"""


def quotes(connection: psycopg.Connection, order: Order) -> list[Sent]:
    """The communities that quote a forgotten post, as they are to stand from now on."""
    found: list[Sent] = []
    asked = {
        "last": "community:",
        "order": order.id,
        "spans": orjson.dumps(order.progress.get("quotes", {})).decode(),
    }
    while rows := connection.execute(_QUOTING, asked).fetchall():
        for record, topic, value in rows:
            community = orjson.loads(value)
            known = _forgotten(connection, order, community["best_posts"])
            found.append((topic, record, orjson.dumps(without(community, known))))
        asked["last"] = rows[-1][0]
    return found


def without(community: Mapping[str, Any], records: set[str] | Mapping[str, Any]) -> dict[str, Any]:
    """A community's value without these of its best posts."""
    kept = [post for post in community["best_posts"] if quoted(post) not in records]
    return {**community, "best_posts": kept}


def quoted(post: object) -> str:
    """The id of one of a community's best posts."""
    return str(post.get("id")) if isinstance(post, Mapping) else ""


def _forgotten(connection: psycopg.Connection, order: Order, posts: Sequence[object]) -> set[str]:
    rows = connection.execute(
        "SELECT record_id FROM forget_records WHERE order_id = %s AND record_id = ANY(%s)",
        [order.id, [quoted(post) for post in posts]],
    ).fetchall()
    return {record for (record,) in rows}


def decided(
    connection: psycopg.Connection, settings: Settings, topic: str, order: Order
) -> dict[Partition, int]:
    """Take out what people decided about what was made of the order's communities; where the last
    of it ends on the topic. Done again it finds nothing more."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM forget_records WHERE order_id = %s AND kind = 'community')",
        [order.id],
    ).fetchone()
    if row != (True,):
        return {}
    stands: dict[bytes, str] = {}
    for message in whole.read(settings, topic):
        key = message.key()
        key = key if isinstance(key, bytes) else (key or "").encode()
        about = decisions.parted(key)
        stands.pop(key, None)
        if about is not None and message.value() is not None:
            stands[key] = record_of(about[0])
    known = Wanted(connection, order).offsets(stands.values())
    return decisions.write(settings, topic, {k: None for k, of in stands.items() if of in known})


_SPANS = """
SELECT topic, partition, min("offset"), max("offset") + 1 FROM forget_records
WHERE order_id = %s AND published GROUP BY topic, partition
"""


def receipt(connection: psycopg.Connection, topology: Topology, order: Order) -> tuple[str, Any]:
    """(topic, value) of the order's receipt."""
    rows = connection.execute(_SPANS, [order.id]).fetchall()
    found = spans(rows)
    for topic, partitions in order.progress.get("quotes", {}).items():
        for partition, (first, end) in partitions.items():
            known = found.setdefault(topic, {}).get(partition, [first, end])
            found[topic][partition] = [min(first, known[0]), max(end, known[1])]
    count = connection.execute(
        "SELECT count(*) FROM forget_records WHERE order_id = %s AND published", [order.id]
    ).fetchone()
    published = int(count[0]) if count else 0
    communities = order.counts.get("communities", 0)
    value = {
        "type": _RECEIPT,
        "run": order.id,
        "state": "done",
        "kind": "deletions",
        "started_at": _clock(order.made_at),
        "ended_at": _clock(datetime.now(UTC)),
        "files": [
            {
                "path": "headrace forget",
                "rows": published,
                "published": published,
                "communities": communities,
                "rejected": 0,
                "state": "done",
            }
        ],
        "records": published + communities,
        "rejected": 0,
        "starts": {t: {p: span[0] for p, span in by.items()} for t, by in found.items()},
        "offsets": {t: {p: span[1] for p, span in by.items()} for t, by in found.items()},
    }
    return topology.topic("runs").name, value


def _clock(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def places_of(connection: psycopg.Connection, order: Order) -> dict[str, int]:
    """The communities that an order published anew, with the offset of their newest revision."""
    ids = order.progress.get("quoting", [])
    query = 'SELECT id, "offset" FROM records WHERE id = ANY(%s)'
    return dict(connection.execute(query, [ids]).fetchall())
