"""What stands in the end, without what differs between two worlds that were told the same: the
project's name, the ids of topics and runs, and times. A raw message's place is told by its number
among the messages of its partition, since transactions that were broken off take offsets too."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from confluent_kafka import Message

from headrace.stream.stage import Context, Record
from headrace.stream.wire import HEADER, Lineage
from tests.world import World

Tables = dict[str, list[tuple[Any, ...]]]  # rows by table
Values = Mapping[str, Mapping[str, Any]]  # records as published, by id

# Places are written topic:partition:offset. The groups of these worlds read raw topics alone, so an
# outcome's input stands where its revision does.
QUERIES = {
    "records": """
        SELECT r.id, r.kind, p.name, r.native_id, r.text, r.title, a.name, c.name, c.slug, r.url,
               r.created_at, r.lang, r.metrics, r.value, r.deleted,
               CASE WHEN u.run ~ '^r[0-9]+$' THEN u.run ELSE 'published' END,
               concat_ws(':', {topic}, r.partition, r."offset")
        FROM records r
        JOIN dim_platform p ON p.id = r.platform_id
        LEFT JOIN dim_author a ON a.id = r.author_id
        LEFT JOIN dim_community c ON c.id = r.community_id
        LEFT JOIN dim_run u ON u.id = r.run_id
        ORDER BY r.id""",
    "outcomes": """
        SELECT record_id, stage, outcome, reason, result, version, rank, input_rank, parts,
               concat_ws(':', {input_topic}, root_partition, root_offset),
               concat_ws(':', {input_topic}, input_partition, input_offset),
               earlier - '{{topic_id,partition,offset,appended,out,at}}'::text[],
               concat_ws(':', {input_topic}, earlier->>'partition', earlier->>'offset'),
               concat_ws(':', {input_topic}, floor->>1, floor->>2)
        FROM outcomes ORDER BY record_id, stage""",
    "mentions": """
        SELECT m.record_id, m.stage, m.start, m."end", m.text, m.name, m.type, m.method,
               m.confidence, l.name, m.version,
               concat_ws(':', {topic}, split_part(m.revision, ':', 2),
                         split_part(m.revision, ':', 3))
        FROM entity_mentions m
        JOIN records r ON r.id = m.record_id
        LEFT JOIN dim_place l ON l.id = m.place_id
        ORDER BY m.record_id, m.stage, m.start, m."end", m.name, m.type""",
    "dead letters": """
        SELECT "group", concat_ws(':', {topic}, partition, "offset"), record_key, reason, exception,
               key, value
        FROM dead_letters ORDER BY "group", topic, partition, "offset" """,
}
_PLACE = re.compile(r"raw\.[\w.]+:\d+:\d+")


def tables(world: World) -> Tables:
    """The rows of each table, in an order of their own."""
    short = f"substr(%s, {len(world.project) + 2})"
    names = {name: short % name for name in ("topic", "input_topic")}
    numbers = _numbers(world)

    def plain(value: Any) -> Any:
        if isinstance(value, str) and _PLACE.fullmatch(value):
            return numbers.get(value, f"nothing stands at {value}")
        return value

    return {
        table: [tuple(map(plain, row)) for row in world.sql(query.format(**names))]
        for table, query in QUERIES.items()
    }


def _numbers(world: World) -> dict[str, str]:
    """For the place of each raw message the same with its number instead of the offset."""
    numbers = {}
    seen: Counter[str] = Counter()
    for topic in world.topology.topics.values():
        if topic.is_raw:
            for message in world.read(topic.short):
                partition = f"{topic.short}:{message.partition()}"
                numbers[f"{partition}:{message.offset()}"] = f"{partition} no. {seen[partition]}"
                seen[partition] += 1
    return numbers


def assert_equal(found: Tables, wanted: Tables) -> None:
    """Says of each table what is missing and what is too much, the first few rows."""
    for table, rows in wanted.items():
        if found[table] == rows:
            continue
        lost = [row for row in rows if row not in found[table]]
        added = [row for row in found[table] if row not in rows]
        raise AssertionError(
            f"{table}: {len(found[table])} rows instead of {len(rows)}; {len(lost)} are missing: "
            f"{lost[:3]}; {len(added)} are there instead: {added[:3]}"
        )


def assert_answered_once(world: World, messages: int) -> None:
    """On the log itself, where repeats would show: every one of so many raw messages has one
    outcome or one dead letter in each stage, and the status events count just as many."""
    counted: Counter[str] = Counter()
    for event in world.values("status"):
        counted[event["group"]] += event["records"]
    for stage in world.topology.stages():
        assert stage.dlt is not None
        seen = Counter(
            _input(message) for topic in stage.outputs for message in world.read(topic.short)
        )
        for letter in world.read(stage.dlt.short):
            said: Any = dict(letter.headers() or [])
            if said["__connect.errors.exception.class.name"] == b"Undecodable":
                seen[_origin(letter)] += 1  # the others have an outcome too
        repeated = {place: times for place, times in seen.items() if times > 1}
        assert not repeated, f"{stage.short} answered again: {dict(list(repeated.items())[:5])}"
        assert len(seen) == messages, f"{stage.short} answered {len(seen)} of {messages}"
        assert counted[stage.short] == messages


def _input(message: Message) -> str:
    packed: Any = dict(message.headers() or [])[HEADER]
    return str(Lineage.unpack(packed).input)


def _origin(letter: Message) -> str:
    said: Any = dict(letter.headers() or [])
    place = [said[f"__connect.errors.{name}"].decode() for name in ("topic", "partition", "offset")]
    return ":".join(place)


def outcomes_of(world: World, values: Values) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What each stage says of each record, asked in this process: (outcome, reason, result)."""
    said = {}
    records = [
        Record(name, value["kind"], value["platform"], value) for name, value in values.items()
    ]
    for group in world.topology.stages():
        context = Context(world.settings, group.short, group.options)
        process = import_module(group.module).build(context)
        for record, outcome in zip(records, process(records), strict=True):
            result = json.loads(json.dumps(outcome.result))
            said[record.id, group.short] = (outcome.kind, outcome.reason, result)
    return said


def stored(world: World) -> dict[tuple[str, str], tuple[Any, ...]]:
    query = "SELECT record_id, stage, outcome, reason, result FROM outcomes"
    return {(record, stage): tuple(rest) for record, stage, *rest in world.sql(query)}
