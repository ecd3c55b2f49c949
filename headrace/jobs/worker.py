"""`headrace worker JOB`: waits until the job's window is open, runs it once, and leaves.

What opens its windows is the schedule; a job that is asked for by name runs at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psycopg

from headrace.config import Settings
from headrace.errors import Retry, ServerUnavailable
from headrace.jobs import runtime
from headrace.log import get
from headrace.scheduling import windows
from headrace.stores import migrate, postgres
from headrace.stream import worker
from headrace.stream.faults import Exit
from headrace.stream.topology import Job, Topology
from headrace.stream.worker import Backoff, Post

log = get(__name__)


def serve(
    settings: Settings,
    topology: Topology,
    job: Job,
    *,
    at_once: bool,
    slot: int | None = None,
    report: Callable[[dict[str, object]], None] = lambda event: None,
) -> Exit:
    """`at_once`: window or not. Ends when the job has run, or after a signal."""
    made: list[JobLoop] = []

    def build(post: Post) -> JobLoop:
        made.append(JobLoop(post, topology, job, at_once))
        return made[0]

    return worker.serve(
        settings,
        job.short,
        job.name,
        build,
        slot=slot,
        report=report,
        finished=lambda: made[0].done,
    )


class JobLoop:
    """See `headrace.stream.worker.Loop`."""

    def __init__(self, post: Post, topology: Topology, job: Job, at_once: bool) -> None:
        self._post = post
        self._topology = topology
        self._job = job
        self._at_once = at_once
        self._backoff = Backoff(post.settings)
        self._connection: psycopg.Connection | None = None  # asks for windows
        self.done = False

    def open(self) -> None:
        """A server that does not answer is waited for in `work`."""

    def work(self) -> bool:
        if self.done:
            return False
        try:
            if not (self._at_once or self._window()):
                self.rest(self._post.settings.scheduler.look_seconds)
                return False
            started = time.perf_counter()
            found = runtime.run(
                self._post.settings, self._topology, self._job, stopping=self._post.stopping
            )
        except (runtime.Busy, runtime.Overtaken) as error:
            # The other's snapshot may be older than our window: look again when it is done.
            raise Retry(self._post.settings.scheduler.look_seconds, str(error)) from None
        except Exception as error:
            self.close()
            if self._post.stopping() and isinstance(error, psycopg.errors.QueryCanceled):
                return False
            if not isinstance(error, ServerUnavailable | psycopg.Error):
                raise
            if isinstance(error, psycopg.Error) and not postgres.passing(error):
                raise
            raise Retry(self._backoff.next(), f"PostgreSQL: {error}") from error
        log.info("done", run=str(found.id), current=found.current)
        self._post.metrics.committed({"runs": 1}, time.perf_counter() - started)
        self.done = True
        return True

    def rest(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._post.stopping():
            time.sleep(min(left, 0.25))

    def close(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.close()
            self._connection = None

    def _window(self) -> bool:
        if self._connection is None:
            migrate.upgrade(self._post.settings, self._topology)
            self._connection = postgres.connect(self._post.settings, autocommit=True)
        return bool(windows.open_windows(self._connection, self._job.short))
