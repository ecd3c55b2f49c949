"""A clean run of a stage: what came of it is removed, and it begins again where its input begins.

The order, in which it may be killed anywhere and be run again to the same end:

check    nobody works in the groups, no transaction of theirs is open, and what they have to read
         again is all there
stores   skip what they have yet to read of these stages; with it go dead letters and queued work
rows     outcomes, mentions, vectors and nodes, a chunk a transaction, each marked for search
groups   their offsets, the stage itself last: until then nothing begins again

A stage downstream is reset with its source. It begins behind what its source has written so far,
since all of that is written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from confluent_kafka import KafkaException

from headrace.backlog import database
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.search import marks
from headrace.snapshots import positions
from headrace.snapshots.restoring import nobody_works
from headrace.stores import migrate, offsets, postgres
from headrace.stream import clients
from headrace.stream import topology as topologies
from headrace.stream.clients import Admin, Partition
from headrace.stream.topology import Group, Topic, Topology

Say = Callable[[str], object]

CHUNK = 5_000  # records

_SETTLE_SECONDS = 30.0  # over a transaction's own timeout, for the broker to end it

_COUNTS = {
    "outcomes": "SELECT count(*) FROM outcomes WHERE stage = ANY(%s)",
    "mentions": "SELECT count(*) FROM entity_mentions WHERE stage = ANY(%s)",
    "vectors": "SELECT count(*) FROM vectors WHERE stage = ANY(%s)",
    "scores": "SELECT count(*) FROM scores WHERE stage = ANY(%s)",
    "nodes": "SELECT count(*) FROM nodes WHERE stage = ANY(%s)",
    "dead letters": 'SELECT count(*) FROM dead_letters WHERE "group" = ANY(%s)',
    "queued to be done again": 'SELECT count(*) FROM redo WHERE "group" = ANY(%s)',
}
_NEXT = """
SELECT DISTINCT record_id FROM (
  SELECT record_id FROM outcomes WHERE stage = ANY(%s) AND record_id > %s
  ORDER BY record_id LIMIT %s) AS first
ORDER BY record_id
"""
_MARK_NODES = """
INSERT INTO search_dirty (record_id)
SELECT id FROM nodes WHERE stage = ANY(%(stages)s) AND root_id = ANY(%(ids)s) AND kind = 'persona'
"""
_DELETES = (
    "DELETE FROM vectors v USING nodes n WHERE n.stage = ANY(%(stages)s)"
    " AND n.root_id = ANY(%(ids)s) AND v.record_id = n.id AND v.stage = n.stage",
    "DELETE FROM nodes WHERE stage = ANY(%(stages)s) AND root_id = ANY(%(ids)s)",
    "DELETE FROM edges WHERE stage = ANY(%(stages)s) AND root_id = ANY(%(ids)s)",
    "DELETE FROM outcomes WHERE stage = ANY(%(stages)s) AND record_id = ANY(%(ids)s)",
    "DELETE FROM entity_mentions WHERE stage = ANY(%(stages)s) AND record_id = ANY(%(ids)s)",
    "DELETE FROM vectors WHERE stage = ANY(%(stages)s) AND record_id = ANY(%(ids)s)",
    "DELETE FROM scores WHERE stage = ANY(%(stages)s) AND record_id = ANY(%(ids)s)",
)


@dataclass(frozen=True)
class Plan:
    """What a reset does. `counts` are rows; `begin` next offsets by group and partition."""

    stages: tuple[Group, ...]  # writers before readers
    counts: dict[str, int]
    begin: dict[str, dict[Partition, int]]
    again: int  # messages that the stages read again


def plan(settings: Settings, names: Sequence[str], *, downstream: bool = True) -> Plan:
    """Looks, and changes nothing. Raises HeadraceError where a reset cannot be done."""
    topology = topologies.load(settings)
    stages = _chosen(topology, names, downstream)
    with clients.admin(settings) as admin:
        begin, again = _starts(admin, topology, stages)
    shorts = [stage.short for stage in stages]
    with database.reading(settings) as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        counts = {name: _count(connection, query, shorts) for name, query in _COUNTS.items()}
    return Plan(stages, counts, begin, again)


def at_rest(settings: Settings, planned: Plan) -> None:
    """Raises HeadraceError where a worker of the stages is at work."""
    with clients.admin(settings) as admin:
        nobody_works(admin, [stage.name for stage in planned.stages])


def reset(
    settings: Settings,
    names: Sequence[str],
    *,
    downstream: bool = True,
    say: Say = lambda line: None,
) -> Plan:
    """Does it, and returns what was planned. The stages' workers must be at rest."""
    topology = topologies.load(settings)
    migrate.upgrade(settings, topology)
    planned = plan(settings, names, downstream=downstream)
    shorts = [stage.short for stage in planned.stages]
    with (
        clients.admin(settings) as admin,
        postgres.connect(settings, autocommit=True, application="headrace reset") as connection,
    ):
        nobody_works(admin, [stage.name for stage in planned.stages])
        _settled(settings, admin, planned.stages)
        # Only now is what they wrote all there; their own starts are not moved by it.
        begin, _ = _starts(admin, topology, planned.stages)
        _skip(connection, admin, topology, planned.stages)
        _remove(connection, settings, shorts, say)
        for stage in reversed(planned.stages):
            _begin(admin, stage, begin[stage.short])
    return planned


def _chosen(topology: Topology, names: Sequence[str], downstream: bool) -> tuple[Group, ...]:
    chosen = set()
    for name in names:
        group = topology.group(name)
        if group.kind != "stage":
            raise HeadraceError(
                f"{group.short} is no stage: reset is for stages. To read a store's topics again"
                " from the start, drop its tables"
            )
        chosen.add(group.short)
    order = [group for group in topology.in_order() if group.kind == "stage"]
    if downstream:
        for group in order:
            if any(above.short in chosen for above in topology.upstream(group)):
                chosen.add(group.short)
    return tuple(group for group in order if group.short in chosen)


def _starts(
    admin: Admin, topology: Topology, stages: Sequence[Group]
) -> tuple[dict[str, dict[Partition, int]], int]:
    """Where each stage begins again, and how many messages that is."""
    there = admin.topics()
    begin: dict[str, dict[Partition, int]] = {}
    again = 0
    for stage in stages:
        begin[stage.short] = {}
        for topic in (*stage.reads, stage.redo):
            partitions = _partitions(topic, there)
            starts, ends = admin.starts(partitions), admin.ends(partitions)
            source = topology.stage_of(topic)
            if topic == stage.redo or source in stages:
                begin[stage.short] |= ends
                continue
            begin[stage.short] |= starts
            again += sum(ends[where] - starts[where] for where in partitions)
            gone = [where for where in partitions if starts[where] > 0]
            if gone and topic.cleanup == "delete" and source is not None:
                raise HeadraceError(
                    f"{stage.short} reads {topic.short}, which no longer holds everything"
                    f" (partition {gone[0][1]} begins at offset {starts[gone[0]]}): reset"
                    f" {source.short} too (`--stage {source.short}`), or queue the work again"
                    f" (`headrace requeue {stage.short}`)"
                )
    return begin, again


def _settled(settings: Settings, admin: Admin, stages: Sequence[Group]) -> None:
    """Waits until no transaction of a killed worker is open: it may still bring outcomes, and
    offsets of the group."""
    there = admin.topics()
    partitions = [
        where
        for stage in stages
        for topic in (*stage.outputs, stage.dlt)
        if topic is not None
        for where in _partitions(topic, there)
    ]
    give_up = time.monotonic() + settings.kafka.transaction_timeout_ms / 1000 + _SETTLE_SECONDS
    while admin.ends(partitions, stable=True) != admin.ends(partitions, stable=False):
        if time.monotonic() > give_up:
            raise HeadraceError(
                f"a transaction of {', '.join(s.short for s in stages)} does not end: does a worker"
                " still run? Try again when it has ended"
            )
        time.sleep(0.2)


def _skip(
    connection: psycopg.Connection, admin: Admin, topology: Topology, stages: Sequence[Group]
) -> None:
    """What stores have yet to read of these stages would come back as outcomes. A store that runs
    finds itself overtaken, and starts again from here."""
    written = {
        topic.name for stage in stages for topic in (*stage.outputs, stage.dlt) if topic is not None
    }
    logs = positions.logs(admin, topology)
    shorts = [stage.short for stage in stages]
    moved: dict[str, dict[Partition, int]] = {}
    with connection.transaction():
        for store in topology.stores():
            read = {topic.name for topic in store.reads} & written
            ends = {
                (topic, number, log.topic_id): log.end
                for (topic, number), log in logs.items()
                if topic in read and log.end > 0
            }
            skipped = offsets.skip(connection, store.short, ends)
            moved[store.name] = {(topic, number): ends[topic, number, id_]
                                 for topic, number, id_ in skipped}  # fmt: skip
        connection.execute('DELETE FROM dead_letters WHERE "group" = ANY(%s)', [shorts])
        connection.execute('DELETE FROM redo WHERE "group" = ANY(%s)', [shorts])
    for group, at in moved.items():
        if not admin.members(group):  # else its workers say it
            admin.alter_offsets(group, at)


def _remove(
    connection: psycopg.Connection, settings: Settings, stages: list[str], say: Say
) -> None:
    last, done, told = "", 0, time.monotonic()
    while True:
        rows = connection.execute(_NEXT, [stages, last, CHUNK]).fetchall()
        if not rows:
            return
        ids = [row[0] for row in rows]

        def transaction(ids: list[str] = ids) -> None:
            with connection.transaction():
                take_back(connection, settings, stages, ids)

        postgres.again(transaction)
        last, done = ids[-1], done + len(ids)
        if time.monotonic() - told > 5.0:
            told = time.monotonic()
            say(f"{done:,} records so far")


def take_back(
    connection: psycopg.Connection, settings: Settings, stages: list[str], ids: list[str]
) -> None:
    """Remove what came of these stages of these records, history too; in the caller's
    transaction."""
    chosen = {"stages": stages, "ids": ids}
    if settings.search.enabled:
        marks.mark(connection, ids)
        connection.execute(_MARK_NODES, chosen)
    for statement in _DELETES:
        connection.execute(statement.encode(), chosen)


def _begin(admin: Admin, stage: Group, at: dict[Partition, int]) -> None:
    try:
        admin.alter_offsets(stage.name, at)
    except ServerUnavailable:
        raise
    except KafkaException as error:
        nobody_works(admin, [stage.name])
        raise HeadraceError(f"Kafka does not take the offsets of {stage.name}: {error}") from None


def _partitions(topic: Topic, there: dict[str, int]) -> list[Partition]:
    return [(topic.name, number) for number in range(there.get(topic.name, 0))]


def _count(connection: psycopg.Connection, query: str, stages: list[str]) -> int:
    row = connection.execute(query.encode(), [stages]).fetchone()
    return int(row[0]) if row else 0
