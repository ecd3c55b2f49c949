"""One run of a job, from the lock to the published result. See the package for the order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, Protocol, cast
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.jobs import history, watermark
from headrace.jobs.history import JobRun
from headrace.jobs.watermark import Watermark
from headrace.log import get
from headrace.scheduling import windows
from headrace.stores import migrate, postgres
from headrace.stream.topology import Job, Topology

log = get(__name__)

_BEGIN = "INSERT INTO job_runs (job, state, version) VALUES (%s, 'running', %s) RETURNING id"
_ABANDONED = """
UPDATE job_runs SET state = 'failed', finished = clock_timestamp(),
       reason = 'its process ended before it was done'
WHERE job = %s AND state = 'running'
"""
_FAILED = """
UPDATE job_runs SET state = 'failed', finished = clock_timestamp(), reason = %s
WHERE id = %s AND state = 'running'
"""
_DONE = """
UPDATE job_runs
SET state = 'done', finished = clock_timestamp(), taken_at = %s, watermark = %s
WHERE id = %s AND state = 'running'
"""
_CURRENT = """
INSERT INTO job_current (job, run) VALUES (%s, %s)
ON CONFLICT (job) DO UPDATE SET run = excluded.run
"""
_LOOK_SECONDS = 0.5


class Busy(HeadraceError):
    """The job is being run already."""


class Overtaken(HeadraceError):
    """What a run has found is of no use any more; another one will do."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a job is told besides the rows. `taken_at` is the snapshot's time."""

    settings: Settings
    topology: Topology
    job: Job
    run: UUID
    taken_at: datetime
    watermark: Watermark
    windows: tuple[int, ...]  # the open windows that the snapshot saw


class Module(Protocol):
    """run      reads in the snapshot's transaction (temporary tables may be made); its answer, a
             small one, outlives it
    publish  writes that answer under `context.run`; what it writes shows with the watermark or
             not at all
    """

    def run(self, connection: psycopg.Connection, context: Context) -> Any: ...

    def publish(self, connection: psycopg.Connection, context: Context, result: Any) -> None: ...


def run(
    settings: Settings,
    topology: Topology,
    job: Job,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> JobRun:
    """Run a job once, now; returns how it ended.

    Raises Busy where it is being run elsewhere, ServerUnavailable without PostgreSQL, and whatever
    the job raises, after that was noted. `stopping` ends it early, as an error of psycopg's.
    """
    module = cast(Module, import_module(job.module))
    migrate.upgrade(settings, topology)
    with session(settings, job) as connection:
        if not take(connection, job):
            raise Busy(f"{job} is being run by another process: wait until that has ended")
        number = begin(connection, job)
        try:
            with _stopped_by(stopping, connection):
                context, result = compute(connection, settings, topology, job, number, module)
                publish(connection, module, context, result)
        except BaseException as error:
            _note(connection, number, error)
            raise
        return history.read(connection, number)


@contextmanager
def session(settings: Settings, job: Job) -> Iterator[psycopg.Connection]:
    """A connection for one run of a job: its queries take as long as they need, and end with the
    process even where that is killed in the middle of one."""
    with postgres.connect(settings, autocommit=True, application=job.application) as connection:
        connection.execute(
            "SELECT set_config('statement_timeout', %s, false),"
            " set_config('client_connection_check_interval', '2s', false)",
            [settings.jobs.statement_timeout],
        )
        yield connection


def take(connection: psycopg.Connection, job: Job) -> bool:
    """The job's lock, for as long as the connection lives; False where another has it."""
    row = connection.execute(
        f"SELECT pg_try_advisory_lock({history.LOCK})".encode(), [job.short]
    ).fetchone()
    return bool(row and row[0])


def begin(connection: psycopg.Connection, job: Job) -> UUID:
    """A run of ours. Whoever holds the lock is alone: other runs that look alive are not."""
    with connection.transaction():
        connection.execute(_ABANDONED, [job.short])
        row = connection.execute(_BEGIN, [job.short, job.version]).fetchone()
    assert row is not None
    return cast(UUID, row[0])


def compute(
    connection: psycopg.Connection,
    settings: Settings,
    topology: Topology,
    job: Job,
    number: UUID,
    module: Module,
) -> tuple[Context, Any]:
    """The job's answer, out of one snapshot."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        seen = watermark.now(connection)  # the first query takes the snapshot
        row = connection.execute("SELECT now()").fetchone()
        assert row is not None
        opened = tuple(window.id for window in windows.open_windows(connection, job.short))
        context = Context(settings, topology, job, number, row[0], seen, opened)
        return context, module.run(connection, context)


def publish(connection: psycopg.Connection, module: Module, context: Context, result: Any) -> bool:
    """Everything that comes of a run, in one transaction; True where its result is now read.

    The result with the newest watermark is read, whichever run ends last. Raises Overtaken
    where this run may not publish at all: another took its place, or the stores were put back to
    before its snapshot.
    """
    job = context.job.short
    with connection.transaction():
        connection.execute(
            f"SELECT pg_advisory_xact_lock({history.LOCK})".encode(), [f"{job} publishes"]
        )
        now = watermark.now(connection)
        if not now.covers(context.watermark):
            raise Overtaken(f"{job}: PostgreSQL was put back while it ran; run it again")
        module.publish(connection, context, result)
        marks = Jsonb(context.watermark.as_json())
        done = connection.execute(_DONE, [context.taken_at, marks, context.run]).rowcount
        if done != 1:
            raise Overtaken(f"{job}: another run took this one's place; its result is kept")
        newest = history.current(connection, job, now)
        is_newest = newest is None or _order(context.watermark, context.taken_at) >= _order(
            newest.watermark, newest.taken_at
        )
        if is_newest:
            connection.execute(_CURRENT, [job, context.run])
        for window in context.windows:
            windows.finish(connection, window)
    return is_newest


def _order(seen: Watermark | None, at: datetime | None) -> tuple[int, float]:
    return (seen.total if seen else -1, at.timestamp() if at else 0.0)


def _note(connection: psycopg.Connection, number: UUID, error: BaseException) -> None:
    """Say in table job_runs why the run failed; if that cannot be, the next run does."""
    said = " ".join(str(error).split("\n", 1)[0].split()) or type(error).__name__
    if isinstance(error, psycopg.errors.QueryCanceled):
        said = f"it was stopped, or took longer than jobs.statement_timeout: {said}"
    elif isinstance(error, KeyboardInterrupt):
        said = "it was interrupted"
    elif not isinstance(error, HeadraceError):
        said = f"{type(error).__name__}: {said}"
    with suppress(psycopg.Error):
        connection.execute(_FAILED, [said[:500], number])


@contextmanager
def _stopped_by(stopping: Callable[[], bool], connection: psycopg.Connection) -> Iterator[None]:
    """Ends the query that runs, and each one after it, once `stopping` says so."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            if stopping():
                with suppress(psycopg.Error):
                    connection.cancel_safe()

    watcher = threading.Thread(target=look, name="stop", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
