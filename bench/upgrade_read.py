"""A stage upgraded under readers: does anybody ever see a record without a result, or a mixed one?

    python -m bench.upgrade_read [--records 1000000]

Posts go through `text` and `postgres`; both are then started with a newer version of `text`, and
`headrace upgrade` queues every record, while a reader asks for 2,000 records at a time, each time
in one query. What comes of a version is told apart by its name, rank and result.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from bench import harness
from bench.rig import CLONE, environment, rig
from headrace.config import Settings
from headrace.stores import postgres

_SERVED = """
SELECT version, rank, result->>'clean' IS NOT NULL, count(*) FROM served
WHERE facet = 'text' AND record_id = ANY(%s) GROUP BY 1, 2, 3
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    count = parser.parse_args().records
    with rig() as servers, servers.project() as settings:
        harness.fill(servers.bootstrap, f"{settings.project}.raw.posts.reddit", count)
        before = environment(settings)
        for group in ("text", "postgres"):
            _call(["worker", group, "--until-caught-up"], before)
        after = before | {"HEADRACE_TOPICS": str(_newer(servers.folder / "newer.yaml"))}
        with _workers(after) as workers, _Reader(settings, count) as reader:
            print(_call(["upgrade", "text", "--yes", "--json"], after), flush=True)
            while _old(settings):
                time.sleep(2)
            peaks = [_peak(worker) for worker in workers]
    print(f"{reader.polls:,} looks, {reader.missing:,} of them found a record without a result")
    for (version, rank, whole), number in sorted(reader.seen.items()):
        print(f"  version {version}, rank {rank}, {'whole' if whole else 'NOT WHOLE'}: {number:,}")
    print(f"peak memory of the workers: {', '.join(f'{peak:.0f} MB' for peak in peaks)}")
    ranks_fit = all((rank == 2) == version.startswith("2") for version, rank, _ in reader.seen)
    whole = all(whole for _, _, whole in reader.seen)
    return 0 if whole and ranks_fit and not reader.missing else 1


def _newer(path: Path) -> Path:
    topics = yaml.safe_load((CLONE / "topics.yaml").read_text())
    topics["groups"]["text"] |= {"version": "2", "rank": 2}
    path.write_text(yaml.safe_dump(topics, sort_keys=False))
    return path


def _call(words: list[str], env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "headrace", *words]
    done = subprocess.run(command, env=env, cwd=CLONE, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"headrace {' '.join(words)} ended with {done.returncode}")
    return done.stdout.strip()


@contextmanager
def _workers(env: dict[str, str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers of text and postgres that have joined: `upgrade` asks what version runs."""
    command = [sys.executable, "-m", "headrace", "worker"]
    _call(["migrate"], env)
    workers = [subprocess.Popen([*command, group], env=env) for group in ("text", "postgres")]
    try:
        while not all('"members":1' in _call(["lag", name, "--json"], env).replace(" ", "")
                      for name in ("text", "postgres")):  # fmt: skip
            time.sleep(1)
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)


class _Reader:
    def __init__(self, settings: Settings, count: int) -> None:
        self.polls = self.missing = 0
        self.seen: Counter[tuple[str, int, bool]] = Counter()
        self._settings = settings
        self._count = count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        draw = random.Random(1)
        with postgres.connect(self._settings, readonly=True, autocommit=True) as connection:
            while not self._stop.wait(0.2):
                numbers = {draw.randrange(self._count) for _ in range(2_000)}
                ids = [f"post:reddit:b{number:08d}" for number in numbers]
                rows = connection.execute(_SERVED, [ids]).fetchall()
                self.polls += 1
                self.missing += sum(row[3] for row in rows) != len(ids)
                for version, rank, whole, number in rows:
                    self.seen[version, rank, whole] += number


def _old(settings: Settings) -> bool:
    with postgres.connect(settings, readonly=True) as connection:
        query = "SELECT EXISTS (SELECT FROM outcomes WHERE stage = 'text' AND rank < 2)"
        return connection.execute(query).fetchone() == (True,)


def _peak(worker: subprocess.Popen[bytes]) -> float:
    """Megabytes."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    sys.exit(main())
