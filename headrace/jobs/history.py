"""What is known of a job's runs: table job_runs, and what the stores have learned since."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import psycopg

from headrace.jobs import watermark
from headrace.jobs.watermark import Watermark

# The lock of a job in pg_locks: two keys, as `pg_try_advisory_lock(key, key)` files them.
LOCK = "hashtext('headrace job ' || current_schema()), hashtext(%s)"
_AT_WORK = """
SELECT EXISTS (
  SELECT FROM pg_locks
  WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = hashtext('headrace job ' || current_schema())::bigint & 4294967295
    AND objid::bigint = hashtext(%s)::bigint & 4294967295)
"""
_RUN = """
SELECT r.id, r.job, r.state, r.version, r.started, r.finished, r.taken_at, r.watermark, r.reason,
       c.run IS NOT NULL
FROM job_runs r LEFT JOIN job_current c ON c.job = r.job AND c.run = r.id
"""


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run. `taken_at` and `watermark` are those of its snapshot, once it is done; `current`:
    its result is the one to be read."""

    id: UUID
    job: str
    state: Literal["running", "done", "failed"]
    version: str
    started: datetime
    finished: datetime | None
    taken_at: datetime | None
    watermark: Watermark | None
    reason: str | None
    current: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """`current` is the run that is read (none: never done, or PostgreSQL was put back to before
    it), `latest` the one that was begun last; `now` the stores' offsets."""

    now: Watermark
    current: JobRun | None
    latest: JobRun | None
    at_work: bool

    @property
    def behind(self) -> int:
        """Offsets that the stores have read since the watermark."""
        seen = self.current.watermark if self.current else None
        return (seen or Watermark()).behind(self.now)


def standing(connection: psycopg.Connection, job: str) -> Standing:
    """How a job (its short name) stands."""
    now = watermark.now(connection)
    row = connection.execute(_AT_WORK, [job]).fetchone()
    return Standing(
        now=now,
        current=current(connection, job, now),
        latest=_one(connection, "WHERE r.job = %s ORDER BY r.started DESC, r.id LIMIT 1", job),
        at_work=bool(row and row[0]),
    )


def behind(connection: psycopg.Connection, job: str) -> int:
    """The lag of a job: offsets that the stores have read since its watermark."""
    return standing(connection, job).behind


def current(connection: psycopg.Connection, job: str, now: Watermark) -> JobRun | None:
    """The run to be read. One that knows more than the stores do is of a time that was undone."""
    found = _one(connection, "WHERE r.job = %s AND c.run IS NOT NULL", job)
    if found is None or found.watermark is None or not now.covers(found.watermark):
        return None
    return found


def read(connection: psycopg.Connection, run: UUID) -> JobRun:
    found = _one(connection, "WHERE r.id = %s", run)
    assert found is not None, "runs are never deleted"
    return found


def _one(connection: psycopg.Connection, where: str, *parameters: object) -> JobRun | None:
    row = connection.execute(f"{_RUN} {where}".encode(), parameters).fetchone()
    if row is None:
        return None
    id_, job, state, version, started, finished, taken_at, marks, reason, is_current = row
    known = watermark.from_json(marks) if marks is not None else None
    return JobRun(id_, job, state, version, started, finished, taken_at, known, reason, is_current)
