"""`Headrace.read` at growing numbers of records: its pace, and the peak of its memory."""

from __future__ import annotations

import subprocess
import sys

from bench import harness
from bench.harness import Figure, Goal
from bench.rig import CLONE, Rig, environment
from headrace.config import Settings
from headrace.stores import postgres

SIZES = (100_000, 1_000_000)
CHUNK = 10_000

_RECORDS = """
INSERT INTO records (id, kind, platform_id, text, created_at, value, topic, topic_id, partition,
                     "offset", appended)
SELECT 'post:reddit:b' || n, 'post', 1,
       (SELECT string_agg(word, ' ') FROM unnest(%(words)s::text[]) word) || n,
       now() - n * interval '1 minute', '{}', %(topic)s, 'x', 0, n, 0
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
_OUTCOMES = """
INSERT INTO outcomes (record_id, stage, outcome, result, version, rank, input_rank, root_topic_id,
                      root_partition, root_offset, root_appended, input_topic, input_partition,
                      input_offset, out_topic_id, out_partition, out_offset, out_appended, at)
SELECT 'post:reddit:b' || n, 'sentiment', 'ok',
       '{"label": "negative", "score": -0.5, "confidence": 0.9, "language": "en"}', '1', 1, 0, 'x',
       0, n, 0, %(topic)s, 0, n, 'o', 0, n, 0, now()
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""

# The kernel notes the most that a program ever held, since it began.
_PROGRAM = """
import sys, time
from headrace import Headrace
began = time.perf_counter()
rows = sum(batch.num_rows for batch in Headrace().read(
    "sentiment", platform="reddit", chunk=int(sys.argv[1]),
    columns=["id", "created_at", "text", "label", "score", "version", "stale"]))
seconds = time.perf_counter() - began
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rows, seconds, peak)
"""


def measure(rig: Rig, sizes: tuple[int, ...] = SIZES) -> tuple[list[Figure], list[Goal]]:
    figures: list[Figure] = []
    peaks: dict[int, float] = {}
    with rig.project() as settings:
        stored = 0
        for size in sizes:
            _fill(settings, stored, size)
            stored = size
            rows, seconds, peak = _read(settings)
            if rows != size:
                raise RuntimeError(f"{rows} of {size} records were read")
            peaks[size], pace = peak / 1024, rows / seconds
            for name, unit, value in (
                (f"read, {size:,} records: peak memory", "MB", peaks[size]),
                (f"read, {size:,} records", "records/s", pace),
            ):
                figures.append(Figure(name, unit, [value]))
            print(f"{size:,}: {pace:,.0f} records/s, {peaks[size]:.0f} MB", file=sys.stderr)
    small, large = sizes[0], sizes[-1]
    what = f"read: peak memory at {large:,} records to that at {small:,}"
    return figures, [Goal(what, peaks[large] / peaks[small], most=1.10)]


def _fill(settings: Settings, stored: int, size: int) -> None:
    with postgres.connect(settings) as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute(
            "INSERT INTO dim_platform (id, name) VALUES (1, 'reddit') ON CONFLICT DO NOTHING"
        )
        values = {
            "words": harness.WORDS, "first": stored + 1, "last": size,
            "topic": f"{settings.project}.raw.posts.reddit",
        }  # fmt: skip
        connection.execute(_RECORDS.encode(), values)
        connection.execute(_OUTCOMES.encode(), values)
        connection.commit()
    with postgres.connect(settings, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE records")
        connection.execute("VACUUM ANALYZE outcomes")


def _read(settings: Settings) -> tuple[int, float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(CHUNK)],
        env=environment(settings), capture_output=True, text=True, cwd=CLONE,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"reading ended with {done.returncode}: {done.stderr[-2000:]}")
    rows, seconds, peak = done.stdout.split()
    return int(rows), float(seconds), float(peak)
