"""Memory of `headrace upgrade`, `requeue`, `scores backfill` and `scores recompute` while a stage
has more and more records.

    python -m bench.upgrade [--records 1000000] [--small 100000] [--only backfill]

The tables are filled in PostgreSQL itself; no stage runs, since what is measured is the choosing
and the queueing. The goal: what the commands take in memory at the larger size is no more than a
tenth above what they take at the smaller one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from bench.rig import environment, rig
from headrace.config import Settings
from headrace.stores import postgres

LIMIT = 1.1

COMMANDS = {
    "upgrade": ["upgrade", "sentiment", "--yes", "--json"],
    "requeue": ["requeue", "entities", "--missing", "--json"],
    "backfill": ["scores", "backfill", "--dimension", "novelty", "--yes", "--json"],
    "recompute": ["scores", "recompute", "--json"],
}

# Posts of about 400 bytes, each with an outcome of an older version of `sentiment`, two of four
# scores, weighed by other weights, and none of `entities`, which has passed all of them (their
# topic has been made anew since).
_FILL = """
INSERT INTO dim_platform (name) VALUES ('reddit') ON CONFLICT DO NOTHING;
INSERT INTO records (id, kind, platform_id, native_id, text, value, topic, topic_id, partition,
                     "offset", appended)
SELECT 'post:reddit:' || n, 'post', p.id, n::text, t.text,
       json_build_object('id', 'post:reddit:' || n, 'kind', 'post', 'platform', 'reddit',
                         'native_id', n::text, 'text', t.text)::text,
       '{project}.raw.posts.reddit', 'an-earlier-one', 0, n, n
FROM generate_series({first}, {last}) n, dim_platform p,
     LATERAL (SELECT repeat('some words of post ' || n || ' ', 12) AS text) t
WHERE p.name = 'reddit';
INSERT INTO outcomes (record_id, stage, outcome, result, version, rank, input_rank, root_topic_id,
                      root_partition, root_offset, root_appended, input_topic, input_partition,
                      input_offset, out_topic_id, out_partition, out_offset, out_appended, at)
SELECT 'post:reddit:' || n, was.stage, 'ok', was.result::jsonb, was.version, was.rank, 0,
       'an-earlier-one', 0, n, n, '{project}.raw.posts.reddit', 0, n, 'out', 0, n, n, now()
FROM generate_series({first}, {last}) n, (VALUES
  ('sentiment', '{{"label": "neutral", "confidence": 0.5}}', '0', 0),
  ('scores', '{{"relevance": 3, "urgency": 7}}', '1+1-m', 1)) AS was (stage, result, version, rank);
INSERT INTO scores (record_id, stage, scores, weighted, version, rank, root_topic_id,
                    root_partition, root_offset, root_appended)
SELECT 'post:reddit:' || n, 'scores', '{{"relevance": 3, "urgency": 7}}', n % 1000 / 100.0, '1+1-m',
       1, 'an-earlier-one', 0, n, n
FROM generate_series({first}, {last}) n;
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--only", choices=COMMANDS, action="append")
    given = parser.parse_args()
    peaks: dict[str, list[int]] = {}
    with rig() as servers, servers.project() as settings:
        done = 0
        for size in (given.small, given.records):
            began = time.perf_counter()
            _fill(settings, done + 1, size)
            print(f"{size:,} records stand after {time.perf_counter() - began:.0f} s", flush=True)
            done = size
            for name in given.only or COMMANDS:
                count, seconds, peak = _measure(settings, COMMANDS[name])
                peaks.setdefault(name, []).append(peak)
                print(
                    f"{name:9} {size:>9,} records: {count:,} done in {seconds:.0f} s"
                    f" ({count / seconds:,.0f} a second), {peak / 2**20:.0f} MB at most",
                    flush=True,
                )
            with postgres.connect(settings, autocommit=True) as connection:
                connection.execute("TRUNCATE redo")
    flat = True
    for name, (small, large) in peaks.items():
        flat = flat and large <= LIMIT * small
        print(f"{name}: {large / small:.2f} times the memory (goal: at most {LIMIT})")
    return 0 if flat else 1


def _fill(settings: Settings, first: int, last: int) -> None:
    with postgres.connect(settings, autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        for start in range(first, last + 1, 100_000):
            text = _FILL.format(
                project=settings.project, first=start, last=min(start + 99_999, last)
            )
            connection.execute(text.encode())
        connection.execute("ANALYZE records")
        connection.execute("ANALYZE outcomes")
        connection.execute("ANALYZE scores")


def _measure(settings: Settings, command: list[str]) -> tuple[int, float, int]:
    """Records queued (or reckoned), seconds, peak resident bytes of the command's process."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "headrace", *command],
        stdout=subprocess.PIPE,
        env=environment(settings),
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"headrace {' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    told = json.loads(said)
    return int(told.get("queued", told.get("records"))), seconds, usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
