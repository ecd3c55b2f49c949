"""Bytes taken out of Kafka.

A topic kept by time loses what stands before an offset (DeleteRecords); its file goes when a newer
one has begun. A compacted topic loses the older revisions of a key when the cleaner comes, which
leaves the newest file alone. So a new file is begun for every partition: `segment.ms` is lowered
for a moment and a transaction is written and aborted, which nobody reads. Then the cleaner is let
in at once (`min.cleanable.dirty.ratio`), until a look from the topic's start finds nothing more.

Settings are changed only after what they were stands in PostgreSQL, and set back from there, by the
next call if this one is killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import orjson
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from headrace import decisions
from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.forget.orders import Order, Wanted
from headrace.graph import record_of
from headrace.log import get
from headrace.stream import clients, topology
from headrace.stream.clients import Admin, Partition

log = get(__name__)

_SEGMENT_MS = 500  # a file that was begun so long ago is ended by the next append
_APPENDS = 2  # the first may still meet the old setting
_ROLL = {"segment.ms": str(_SEGMENT_MS)}
_CLEAN = {"min.cleanable.dirty.ratio": "0"}
_STILL = 30.0  # seconds without a message before its end until a topic is given up


def delete_before(admin: Admin, upto: Mapping[Partition, int]) -> int:
    """Move the start of partitions there; returns how many messages (and markers) are gone."""
    starts = admin.starts(upto)
    wanted = {place: offset for place, offset in upto.items() if offset > starts[place]}
    admin.delete_records(wanted)
    return sum(offset - starts[place] for place, offset in wanted.items())


def begin_files(
    settings: Settings, connection: psycopg.Connection, admin: Admin, topics: Iterable[str]
) -> dict[Partition, int]:
    """End the newest file of every partition of these topics. Returns where: what stood before by
    now lies in files that begin before, and they go as a whole once the start is moved there."""
    names = sorted(topics)
    if not names:
        return {}
    ended: dict[Partition, int] = {}
    lower(connection, admin, names, _ROLL)
    try:
        there = admin.topics()
        places = [(name, partition) for name in names for partition in range(there.get(name, 0))]
        starts, ends = admin.starts(places), admin.ends(places, stable=False)
        places = [place for place in places if ends[place] > starts[place]]
        for _ in range(_APPENDS):
            time.sleep(1.4 * _SEGMENT_MS / 1000)
            ended = _append_nothing(settings, places) | ended  # the first one's
    finally:
        set_back(connection, admin, names, _ROLL)
    return ended


def let_clean(connection: psycopg.Connection, admin: Admin, topics: Iterable[str]) -> None:
    """The cleaner takes these topics whatever share of them is new."""
    lower(connection, admin, topics, _CLEAN)


def leave_clean(connection: psycopg.Connection, admin: Admin, topics: Iterable[str]) -> None:
    set_back(connection, admin, topics, _CLEAN)


def _append_nothing(settings: Settings, places: Sequence[Partition]) -> dict[Partition, int]:
    """A transaction that is aborted: bytes in the log that no reader of ours is given. Returns
    where they stand."""
    found: dict[Partition, int] = {}

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            found[str(message.topic()), message.partition() or 0] = message.offset() or 0

    producer = Producer(
        clients.producer_conf(
            settings, **{"transactional.id": f"{settings.project}.forget", "linger.ms": 0}
        )
    )
    producer.init_transactions(clients.TIMEOUT)
    producer.begin_transaction()
    for topic, partition in places:
        producer.produce(topic, b"", b"headrace", partition=partition, on_delivery=delivered)
    producer.flush(clients.TIMEOUT)
    producer.abort_transaction(clients.TIMEOUT)
    if set(found) != set(places):
        raise ServerUnavailable("Kafka does not take what ends its files; try again")
    return found


# -- settings of topics, for a while


def lower(
    connection: psycopg.Connection,
    admin: Admin,
    topics: Iterable[str],
    config: Mapping[str, str],
) -> None:
    names = sorted(topics)
    own = admin.own_configs(names)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO forget_configs (topic, key, before) VALUES (%s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [(name, key, own.get(name, {}).get(key)) for name in names for key in config],
        )
    admin.alter_configs(dict.fromkeys(names, config))
    _await(admin, {name: dict(config) for name in names})


def set_back(
    connection: psycopg.Connection,
    admin: Admin,
    topics: Iterable[str] | None = None,
    keys: Iterable[str] | None = None,
) -> int:
    """Set back what was lowered, of these topics and keys or all of it; returns how many."""
    rows = connection.execute(
        "SELECT topic, key, before FROM forget_configs"
        " WHERE (%(all)s OR topic = ANY(%(topics)s)) AND (%(every)s OR key = ANY(%(keys)s))",
        {
            "all": topics is None,
            "topics": list(topics or ()),
            "every": keys is None,
            "keys": list(keys or ()),
        },
    ).fetchall()
    there = admin.topics()
    before: dict[str, dict[str, str | None]] = {}
    for topic, key, value in rows:
        if topic in there:
            before.setdefault(topic, {})[key] = value
    admin.restore_configs(before)
    _await(admin, before)  # whoever lowers them next must not take ours for theirs
    for topic, key, _ in rows:
        connection.execute("DELETE FROM forget_configs WHERE topic = %s AND key = %s", [topic, key])
    return len(rows)


def _await(admin: Admin, wanted: Mapping[str, Mapping[str, str | None]]) -> None:
    """Until a broker shows the settings that it has accepted."""
    deadline = time.monotonic() + clients.TIMEOUT
    while wanted:
        own = admin.own_configs(wanted)
        if all(_like(own[t].get(key), value) for t in wanted for key, value in wanted[t].items()):
            return
        if time.monotonic() > deadline:
            raise ServerUnavailable("Kafka does not show the settings that it has accepted")
        time.sleep(0.05)


def _like(one: str | None, other: str | None) -> bool:
    """A number may be written in several ways."""
    if one is None or other is None:
        return one is other
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


# -- whether it is gone


class Looker:
    """Looks through raw topics for revisions that are older than their deletion, and for what
    people decided about what was made of them."""

    def __init__(self, settings: Settings, connection: psycopg.Connection, order: Order) -> None:
        self._settings = settings
        self._wanted = Wanted(connection, order)
        self._connection = connection
        self._order = order
        self._decisions = topology.load(settings).topic(decisions.TOPIC).name
        self._clean: dict[Partition, int] = {}  # looked through up to there: nothing to be found

    def places(self) -> dict[Partition, int]:
        """Partitions with deletions of the order, and the end of the last one; communities that
        were published anew are among them."""
        rows = self._connection.execute(
            'SELECT topic, partition, max("offset") + 1 FROM forget_records'
            ' WHERE order_id = %s AND "offset" IS NOT NULL GROUP BY topic, partition',
            [self._order.id],
        ).fetchall()
        found = {(topic, partition): end for topic, partition, end in rows}
        ends = self._order.progress.get("ends", {}).get(self._decisions, {})
        found |= {(self._decisions, int(partition)): end for partition, end in ends.items()}
        for topic, partitions in self._order.progress.get("quotes", {}).items():
            for partition, (_, end) in partitions.items():
                place = (topic, int(partition))
                found[place] = max(end, found.get(place, 0))
        return found

    def remaining(self, admin: Admin) -> list[Partition]:
        """The partitions in which something is still to be found."""
        places = self.places()
        starts = admin.starts(places)
        left = []
        for place, end in sorted(places.items()):
            start = max(starts[place], self._clean.get(place, 0))
            if start < end and (stale := self._first_stale(place, start, end)) is not None:
                self._clean[place] = stale
                left.append(place)
            else:
                self._clean[place] = end
        return left

    def _first_stale(self, place: Partition, start: int, end: int) -> int | None:
        consumer = Consumer(
            clients.consumer_conf(
                self._settings,
                f"{self._settings.project}.forget",
                **{
                    "group.protocol": "classic",  # never joined; offsets are assigned
                    "isolation.level": "read_uncommitted",
                    "enable.partition.eof": True,
                    "auto.offset.reset": "earliest",
                },
            )
        )
        position, heard = start, time.monotonic()
        try:
            consumer.assign([TopicPartition(*place, start)])
            while position < end:
                messages = consumer.consume(1000, timeout=0.2)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _STILL:
                    raise ServerUnavailable(f"topic {place[0]} could not be read to offset {end}")
                rows = []
                for message in messages:
                    error = message.error()
                    if error is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            position = end
                        elif not error.retriable():
                            raise KafkaException(error)
                        continue
                    offset = message.offset() or 0
                    position = max(position, offset + 1)
                    if offset < end:
                        rows.append((offset, message.key() or b"", message.value()))
                if (stale := self._stale(place, rows)) is not None:
                    return stale
            return None
        finally:
            consumer.close()

    def _stale(self, place: Partition, rows: list[tuple[int, bytes, bytes | None]]) -> int | None:
        if place[0] == self._decisions:
            return self._first_decision(rows)
        keys = {key.decode(errors="replace") for _, key, _ in rows}
        forgotten = self._wanted.offsets(keys)
        quotes = self._order.progress.get("quotes", {}).get(place[0], {})
        first, _ = quotes.get(str(place[1]), [0, 0])
        newest: dict[str, int] = {}  # what has no newer revision the cleaner leaves alone
        if rows and rows[0][0] < first:
            query = 'SELECT id, "offset" FROM records WHERE topic = %s AND id = ANY(%s)'
            newest = dict(self._connection.execute(query, [place[0], list(keys)]).fetchall())
        for offset, key, value in rows:
            record = key.decode(errors="replace")
            if offset < forgotten.get(record, -1) and _has_content(value):
                return offset
            if offset < min(first, newest.get(record, 0)) and self._quotes(value):
                return offset
        return None

    def _first_decision(self, rows: list[tuple[int, bytes, bytes | None]]) -> int | None:
        found = [
            (offset, record_of(about[0]))
            for offset, key, value in rows
            if value is not None and (about := decisions.parted(key)) is not None
        ]
        forgotten = self._wanted.offsets({record for _, record in found})
        return next((offset for offset, record in found if record in forgotten), None)

    def _quotes(self, value: bytes | None) -> bool:
        try:
            posts = orjson.loads(value or b"{}").get("best_posts") or []
            return bool(self._wanted.offsets([str(post["id"]) for post in posts]))
        except (ValueError, AttributeError, KeyError, TypeError):
            return False


def _has_content(value: bytes | None) -> bool:
    try:
        said = orjson.loads(value or b"null")
    except ValueError:
        return True
    return not (said is None or (isinstance(said, dict) and said.get("deleted") is True))
