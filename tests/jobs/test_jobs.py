"""One lock, one snapshot, one watermark; and the newest watermark is what is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from consumers.metrics import job as metrics
from headrace import config, jobs
from headrace.backlog import jobs as lags
from headrace.errors import HeadraceError
from headrace.jobs import Watermark, history, runtime, watermark
from headrace.scheduling import windows
from headrace.stream.topology import Job
from tests.stores.conftest import Database
from tests.world import CLONE, wait_for

PLACE = ("postgres", "t.raw", "A", 0)
REBORN = ("postgres", "t.raw", "B", 0)
OTHER = ("postgres", "t.raw", "A", 1)


def test_watermarks_have_a_total_order() -> None:
    early, late = Watermark({PLACE: 5}), Watermark({PLACE: 5, OTHER: 2})
    assert late.covers(early) and not early.covers(late)
    assert late.total > early.total
    assert early.behind(late) == 2 and late.behind(early) == 0
    anew = Watermark({PLACE: 5, OTHER: 2, REBORN: 1})  # the topic was made anew
    assert anew.covers(late) and anew.behind(late) == 0 and late.behind(anew) == 1
    assert list(anew.by_partition()) == [("t.raw", 0, 6), ("t.raw", 1, 2)]
    assert watermark.from_json(anew.as_json()) == anew


def stored(database: Database, native: str, offset: int) -> None:
    """One more post, and the store's offset past it."""
    database.write([database.raw(native, offset)])
    moved(database, offset + 1)


def moved(database: Database, to: int) -> None:
    database.sql(
        'INSERT INTO offsets ("group", topic, partition, topic_id, next) VALUES'
        " ('postgres', %s, 0, 'A', %s)"
        ' ON CONFLICT ("group", topic, partition, topic_id) DO UPDATE SET next = excluded.next',
        f"{database.project}.raw.posts.reddit",
        to,
    )


def counted(database: Database) -> list[tuple[Any, ...]]:
    """The records of all platforms, by what is to be read."""
    return database.sql("SELECT records FROM metrics_current WHERE platform IS NULL")


@contextmanager
def computed(database: Database, job: Job) -> Iterator[tuple[psycopg.Connection, Any, Any]]:
    """A run that has its answer and has published nothing yet."""
    with runtime.session(database.settings, job) as connection:
        number = runtime.begin(connection, job)
        context, result = runtime.compute(
            connection, database.settings, database.topology, job, number, metrics
        )
        yield connection, context, result


def test_a_run_tells_how_far_it_knows(database: Database, job: Job) -> None:
    stored(database, "a", 1)
    assert jobs.behind(database.connection, "metrics") == 2, "it has never run"
    done = jobs.run(database.settings, database.topology, job)
    assert (done.state, done.current, done.version) == ("done", True, "1")
    assert done.watermark == watermark.now(database.connection)
    assert jobs.behind(database.connection, "metrics") == 0
    assert counted(database) == [(1,)]
    stored(database, "b", 4)
    lag = lags.read(database.settings, job)
    assert (lag.kind, lag.lag, lag.members) == ("job", 3, 0)
    assert counted(database) == [(1,)], "the figures are those of the watermark"
    assert jobs.run(database.settings, database.topology, job).current
    assert counted(database) == [(2,)]
    shown = database.sql(
        "SELECT records, current FROM metrics_history WHERE platform = 'reddit' ORDER BY records"
    )
    assert shown == [(1, False), (2, True)], "what was read before is kept"


def test_an_older_watermark_never_replaces_a_newer(database: Database, job: Job) -> None:
    stored(database, "a", 1)
    with ExitStack() as stack:
        first = stack.enter_context(computed(database, job))
        stored(database, "b", 2)
        second = stack.enter_context(computed(database, job))
        assert runtime.publish(second[0], metrics, *second[1:]) is True
        # The second has the first's place; even if nobody had noticed, the newer result stays.
        with pytest.raises(HeadraceError, match="took this one's place"):
            runtime.publish(first[0], metrics, *first[1:])
        assert database.sql("SELECT count(DISTINCT run) FROM metrics") == [(1,)]
        database.sql("UPDATE job_runs SET state = 'running' WHERE id = %s", first[1].run)
        assert runtime.publish(first[0], metrics, *first[1:]) is False
    assert counted(database) == [(2,)]
    assert database.sql("SELECT count(DISTINCT run) FROM metrics") == [(2,)]


def test_what_knows_more_than_the_stores_does_not_count(database: Database, job: Job) -> None:
    """A database that was put back: a run from before may not publish, nor stand in the way."""
    stored(database, "a", 1)
    stored(database, "b", 9)
    jobs.run(database.settings, database.topology, job)
    with computed(database, job) as (connection, *rest):
        moved(database, 5)
        with pytest.raises(HeadraceError, match="put back"):
            runtime.publish(connection, metrics, *rest)
    assert history.standing(database.connection, "metrics").current is None
    assert jobs.behind(database.connection, "metrics") == 5
    database.sql("UPDATE records SET deleted = true WHERE id = 'post:reddit:b'")
    assert jobs.run(database.settings, database.topology, job).current
    assert counted(database) == [(1,)]


def test_only_one_at_a_time(database: Database, job: Job) -> None:
    with runtime.session(database.settings, job) as connection:
        assert runtime.take(connection, job)
        assert history.standing(database.connection, "metrics").at_work
        with pytest.raises(jobs.Busy, match="another process"):
            jobs.run(database.settings, database.topology, job)
    wait_for(lambda: not history.standing(database.connection, "metrics").at_work)
    assert database.sql("SELECT count(*) FROM job_runs") == [(0,)]


def test_a_failed_run_says_why(database: Database, job: Job) -> None:
    broken = replace(job, module="tests.jobs.failing")
    with pytest.raises(ValueError, match="luck"):
        jobs.run(database.settings, database.topology, broken)
    how = history.standing(database.connection, "metrics")
    assert how.current is None and how.latest is not None
    assert (how.latest.state, how.latest.reason) == ("failed", "ValueError: no")
    assert lags.read(database.settings, job).reason == "its last run failed: ValueError: no"


def test_a_run_can_be_stopped(database: Database, job: Job) -> None:
    endless = replace(job, module="tests.jobs.sleeping")

    def sleeps() -> bool:
        (row,) = database.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
            " AND query = 'SELECT pg_sleep(600)' AND application_name LIKE %s",
            f"%{database.project}%",
        )
        return bool(row[0])

    with pytest.raises(psycopg.errors.QueryCanceled):
        jobs.run(database.settings, database.topology, endless, stopping=sleeps)
    assert database.sql("SELECT state FROM job_runs") == [("failed",)]


def test_a_window_closes_with_the_result_of_a_snapshot_that_saw_it(
    database: Database, job: Job
) -> None:
    stored(database, "a", 1)
    at = datetime(2026, 11, 21, 6, tzinfo=UTC)
    with computed(database, job) as (connection, *rest):
        assert windows.open_window(database.connection, "metrics", None, {}, "test", at, at)
        runtime.publish(connection, metrics, *rest)
    assert database.sql("SELECT state FROM windows") == [("open",)], "this run knew too little"
    assert jobs.run(database.settings, database.topology, job).current
    assert database.sql("SELECT state FROM windows") == [("done",)]


@contextmanager
def started(database: Database, folder: Path, *words: str, **env: str) -> Iterator[Any]:
    """`headrace …` in a process of its own, ended with the block."""
    environment = {**os.environ, **config.as_environment(database.settings), **env}
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", *words],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(CLONE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_worker_waits_for_the_window(database: Database, job: Job, tmp_path: Path) -> None:
    stored(database, "a", 1)
    looks = (
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%%FROM windows%%'"
        " AND application_name = %s"
    )
    at = datetime(2026, 11, 21, 6, tzinfo=UTC)
    quick = {"HEADRACE_SCHEDULER__LOOK_SECONDS": "0.2"}
    with started(database, tmp_path, "worker", "metrics", **quick) as process:
        wait_for(lambda: database.sql(looks, f"headrace {database.project}"), 120)
        assert database.sql("SELECT count(*) FROM job_runs") == [(0,)]
        assert windows.open_window(database.connection, "metrics", None, {}, "test", at, at)
        assert process.wait(120) == 0
    assert counted(database) == [(1,)]
    assert database.sql("SELECT state FROM windows") == [("done",)]


def asleep(database: Database, folder: Path) -> dict[str, str]:
    """The environment in which the job is at work for ever."""
    written = yaml.safe_load(Path(database.settings.topics).read_text())
    written["groups"]["metrics"]["module"] = "tests.jobs.sleeping"
    (folder / "topics.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    return {"HEADRACE_TOPICS": str(folder / "topics.yaml")}


def begun(database: Database) -> bool:
    return bool(database.sql("SELECT 1 FROM job_runs WHERE state = 'running'"))


def at_work(database: Database) -> bool:
    return history.standing(database.connection, "metrics").at_work


def test_a_worker_that_is_told_to_stop_stops(database: Database, job: Job, tmp_path: Path) -> None:
    words = ("worker", "metrics", "--now")
    with started(database, tmp_path, *words, **asleep(database, tmp_path)) as process:
        wait_for(lambda: begun(database), 120)
        process.terminate()
        assert process.wait(120) == 0
    ((state, reason),) = database.sql("SELECT state, reason FROM job_runs")
    assert state == "failed" and reason.startswith("it was stopped")


def test_a_killed_run_leaves_nothing_behind(database: Database, job: Job, tmp_path: Path) -> None:
    stored(database, "a", 1)
    jobs.run(database.settings, database.topology, job)
    with started(database, tmp_path, "job", "run", "metrics", **asleep(database, tmp_path)):
        wait_for(lambda: begun(database), 120)
    wait_for(lambda: not at_work(database))
    stored(database, "b", 2)
    assert counted(database) == [(1,)]
    assert jobs.run(database.settings, database.topology, job).current
    assert counted(database) == [(2,)]
    reasons = database.sql("SELECT reason FROM job_runs WHERE state = 'failed'")
    assert reasons == [("its process ended before it was done",)]
