"""The store group beside plain COPY of the same rows into a table of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psycopg

from bench import harness
from bench.harness import Figure, Goal
from bench.rig import CLONE, Rig, environment
from headrace.config import Settings
from headrace.stores import postgres

COPIED = "id, kind, native_id, text, title, url, created_at, lang, metrics, value"


def measure(rig: Rig, count: int, rounds: int) -> tuple[list[Figure], list[Goal]]:
    """Rows a second: the store from the first stored record to the last; COPY as a whole."""
    ours = Figure("store group, records", "rows/s")
    plain = Figure("plain COPY of the same rows", "rows/s")

    def both(_: int) -> float:
        with rig.project() as settings:
            harness.fill(rig.bootstrap, f"{settings.project}.raw.posts.reddit", count)
            figure = _store(settings, count)
            plain.readings.append(_copy(settings, count))
            return figure

    harness.rounds(rounds, [(ours, both)])
    goal = Goal("the store group to plain COPY", ours.median / plain.median, least=0.25)
    return [ours, plain], [goal]


def _store(settings: Settings, count: int) -> float:
    """Watches the store's own offsets, which it commits with the rows."""
    watched: list[tuple[float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        with postgres.connect(settings, autocommit=True) as connection:
            while not ended.wait(0.02):
                row = connection.execute("SELECT coalesce(sum(next), 0) FROM offsets").fetchone()
                assert row is not None
                if not watched or row[0] != watched[-1][1]:
                    watched.append((time.monotonic(), int(row[0])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "headrace", "worker", "postgres", "--until-caught-up"],
            env=environment(settings),
            capture_output=True,
            text=True,
            cwd=CLONE,
        )
    finally:
        time.sleep(0.1)
        ended.set()
        watcher.join()
    if done.returncode != 0:
        raise RuntimeError(f"the store ended with {done.returncode}: {done.stderr[-2000:]}")
    moved = [(moment, rows) for moment, rows in watched if rows > 0]
    if moved[-1][1] < count:
        raise RuntimeError(f"{moved[-1][1]} of {count} records were stored")
    full = next(moment for moment, rows in moved if rows >= count)
    return (count - moved[0][1]) / (full - moved[0][0])


def _copy(settings: Settings, count: int) -> float:
    with postgres.connect(settings) as connection:
        query = f"COPY (SELECT {COPIED} FROM records) TO STDOUT"
        with connection.cursor().copy(query) as copy:  # type: ignore[arg-type]
            blocks = [bytes(block) for block in copy]
        connection.execute("CREATE TABLE copied (LIKE records INCLUDING DEFAULTS)")
        connection.execute("ALTER TABLE copied ADD PRIMARY KEY (id)")
        _let_be_empty(connection)
        connection.commit()
        began = time.monotonic()
        with connection.cursor().copy(f"COPY copied ({COPIED}) FROM STDIN") as copy:
            for block in blocks:
                copy.write(block)
        connection.commit()
        return count / (time.monotonic() - began)


def _let_be_empty(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Columns that this COPY does not fill are not asked for."""
    rows = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'copied'"
        " AND table_schema = current_schema() AND is_nullable = 'NO' AND column_name <> 'id'"
    ).fetchall()
    for (name,) in rows:
        connection.execute(f'ALTER TABLE copied ALTER COLUMN "{name}" DROP NOT NULL')  # type: ignore[arg-type]
