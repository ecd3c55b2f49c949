"""Everything that is known of one record: where it stands, what each stage made of it, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg.rows import dict_row

from headrace.backlog import database, lag
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable

_RECORD = """
SELECT r.id, p.name AS platform, r.kind, r.topic, r.partition, r."offset", r.topic_id, r.appended,
       d.run, r.deleted, r.ingested_at, r.updated_at
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
LEFT JOIN dim_run d ON d.id = r.run_id
WHERE r.id = %s
"""

# A stage that reads the record's topic and has no outcome yet is a row of its own: pending.
_OUTCOMES = """
SELECT stage, o.outcome, o.reason, o.version, o.rank, o.at, o.stored_at,
       o.earlier IS NOT NULL AS earlier_served,
       o.root_topic_id = r.topic_id AND o.root_offset = r."offset" AS current
FROM (SELECT * FROM outcomes WHERE record_id = %(id)s) o
FULL JOIN (SELECT st.stage FROM stage_topics st JOIN records r ON r.topic = st.topic
           WHERE r.id = %(id)s AND NOT r.deleted) st USING (stage)
LEFT JOIN records r ON r.id = %(id)s
ORDER BY o.at NULLS LAST, stage
"""

_LETTERS = """
SELECT "group", topic, partition, "offset", reason, at
FROM dead_letters WHERE record_key = %s ORDER BY at, id
"""

_REDO = 'SELECT "group", reason, queued_at FROM redo WHERE record_id = %s ORDER BY queued_at'


@dataclass(frozen=True, slots=True)
class Trace:
    """Rows as PostgreSQL gives them; `record` is None where only outcomes or letters came yet."""

    id: str
    record: Mapping[str, Any] | None
    outcomes: Sequence[Mapping[str, Any]]
    dead_letters: Sequence[Mapping[str, Any]]
    redo: Sequence[Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "record": _json(self.record) if self.record else None,
            "outcomes": [_json(row) for row in self.outcomes],
            "dead_letters": [_json(row) for row in self.dead_letters],
            "redo": [_json(row) for row in self.redo],
        }

    def text(self) -> str:
        lines = [self.id]
        if self.record is None:
            lines.append("  the raw record has not come to PostgreSQL yet")
        else:
            r = self.record
            appended = _clock(datetime.fromtimestamp(r["appended"] / 1000, UTC))
            lines.append(f"  {r['topic']}/{r['partition']} offset {r['offset']}, {appended}")
            lines.append(f"  run {r['run'] or 'unknown'}, stored {_clock(r['updated_at'])}")
            if r["deleted"]:
                lines.append("  deleted by this revision")
        lines += [f"  {row['stage']}: {_outcome(row)}" for row in self.outcomes]
        for row in self.dead_letters:
            where = f"{row['topic']}/{row['partition']} offset {row['offset']}"
            lines.append(f"  dead letter of {row['group']}: {row['reason']} ({where})")
        lines += [f"  queued for {row['group']} again: {row['reason'] or ''}" for row in self.redo]
        return "\n".join(lines)


def read(settings: Settings, record: str) -> Trace:
    """Raises HeadraceError where nothing is known of the record."""
    with database.reading(settings) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        if "\0" in record:
            raise HeadraceError("a record's id holds no NUL character")
        found = cursor.execute(_RECORD, [record]).fetchone()
        outcomes = cursor.execute(_OUTCOMES, {"id": record}).fetchall()
        letters = cursor.execute(_LETTERS, [record]).fetchall()
        redo = cursor.execute(_REDO, [record]).fetchall()
    if not (found or outcomes or letters or redo):
        raise HeadraceError(f"record {record} is not known to PostgreSQL{_on_its_way(settings)}")
    return Trace(record, found, outcomes, letters, redo)


def _on_its_way(settings: Settings) -> str:
    try:
        stores = [group for group in lag.read(settings) if group.kind == "store" and group.lag]
    except ServerUnavailable:
        return ""
    waiting = ", ".join(f"{group.group} has {group.lag:,} messages to read yet" for group in stores)
    return f"; {waiting}" if waiting else ""


def _outcome(row: Mapping[str, Any]) -> str:
    if row["outcome"] is None:
        return "pending"
    said = f"{row['outcome']}, version {row['version']}, {_clock(row['at'])}"
    if row["reason"]:
        said += f": {row['reason']}"
    if row["current"] is False:
        said += " (of an older revision; pending for this one)"
    if row["earlier_served"]:
        said += " (an earlier result is still served)"
    return said


def _clock(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _json(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }
