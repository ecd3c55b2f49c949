"""Coverage: which share of the records each stage has answered, from PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from headrace.backlog import database
from headrace.config import Settings


@dataclass(frozen=True, slots=True)
class Coverage:
    """One platform and stage. `coverage` is ok ÷ records not dropped; None where all are."""

    platform: str
    stage: str
    records: int
    ok: int
    dropped: int
    dead: int
    pending: int
    coverage: float | None
    last_updated: datetime | None

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["last_updated"] = self.last_updated.isoformat() if self.last_updated else None
        return found


def read(settings: Settings) -> list[Coverage]:
    """Raises ServerUnavailable without PostgreSQL, HeadraceError where its schema is missing."""
    with database.reading(settings) as connection:
        return (
            connection.cursor(row_factory=class_row(Coverage))
            .execute(
                "SELECT platform, stage, records, ok, dropped, dead, pending,"
                " coverage::float8 AS coverage, last_updated"
                " FROM coverage ORDER BY platform, stage"
            )
            .fetchall()
        )
