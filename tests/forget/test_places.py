"""Every table and topic is decided: whether content of a record may stand there."""

from __future__ import annotations

from headrace.forget.places import PLAIN_TABLES, PLAIN_TOPICS, TABLES, content_topics
from tests.world import World

TEXTS = ("text", "character varying", "jsonb", "json", "bytea", "ARRAY")


def test_every_column_that_can_hold_text_is_decided(world: World) -> None:
    rows = world.sql(
        "SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c"
        " JOIN information_schema.tables t USING (table_schema, table_name)"
        " WHERE table_schema = %s AND t.table_type = 'BASE TABLE'",
        [world.project],
    )
    there = {table for table, _, _ in rows}
    undecided = there - TABLES.keys() - PLAIN_TABLES.keys()
    assert not undecided, f"decide in headrace/forget/places.py: {sorted(undecided)}"
    assert not (TABLES.keys() | PLAIN_TABLES.keys()) - there - {"alembic_version"}
    for table, decided in TABLES.items():
        texts = {column for name, column, kind in rows if name == table and kind in TEXTS}
        known = decided.content | decided.plain
        assert texts == known, f"decide in headrace/forget/places.py: {table} {texts ^ known}"
        assert not decided.content & decided.plain


def test_every_topic_is_decided(world: World) -> None:
    content = {topic.short for topic in content_topics(world.topology)}
    assert content | PLAIN_TOPICS == set(world.topology.topics)
    assert not content & PLAIN_TOPICS
