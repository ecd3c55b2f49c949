"""`headrace publish` beside `kcat -P` of the same JSON lines, which neither parses nor checks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

from bench import harness
from bench.harness import Figure, Goal
from bench.rig import CLONE, Rig, environment
from headrace.config import Settings
from headrace.errors import HeadraceError


def measure(rig: Rig, count: int, rounds: int) -> tuple[list[Figure], list[Goal]]:
    """Rates in records a second; for publish as a whole command, its start included."""
    kcat = shutil.which("kcat")
    if kcat is None:
        raise HeadraceError("kcat is not installed: apt-get install kcat")
    path = rig.folder / "bench.jsonl"
    _write(path, count)
    peer = Figure("kcat -P", "records/s")
    ours = Figure("headrace publish", "records/s")
    start = Figure("headrace publish, one record", "ms")

    def with_kcat(_: int) -> float:
        topic = harness.create_topic(rig.bootstrap, f"bench.kcat.{uuid.uuid4().hex[:6]}")
        began = time.monotonic()
        subprocess.run(
            [kcat, "-P", "-b", rig.bootstrap, "-t", topic, "-l", str(path), "-z", "lz4"],
            check=True,
        )
        seconds = time.monotonic() - began
        harness.delete_topics(rig.bootstrap, [topic])
        return count / seconds

    one = rig.folder / "one.jsonl"
    _write(one, 1)

    def with_publish(_: int) -> float:
        with rig.project() as settings:
            return count / _publish(settings, path, count)

    def one_record(_: int) -> float:
        with rig.project() as settings:
            return 1000 * _publish(settings, one, 1)

    harness.rounds(rounds, [(peer, with_kcat), (ours, with_publish), (start, one_record)])
    steady = Figure("headrace publish, its start left out", "records/s")
    steady.readings = [
        count / (count / whole - once / 1000)
        for whole, once in zip(ours.readings, start.readings, strict=True)
    ]
    goals = [
        Goal("publish, the whole command, to kcat", ours.median / peer.median, least=0.15),
        Goal("publish, its start left out, to kcat", steady.median / peer.median, least=0.15),
    ]
    return [peer, ours, start, steady], goals


def _publish(settings: Settings, path: Path, count: int) -> float:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "publish", str(path), "--platform", "reddit", "--json"],
        env=environment(settings),
        capture_output=True,
        text=True,
        cwd=CLONE,
    )
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise RuntimeError(f"publish ended with {done.returncode}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    if said["records"] != count:
        raise RuntimeError(f"{said['records']} of {count} records were published")
    return seconds


def _write(path: Path, count: int) -> None:
    """Posts as reddit gives them, about 374 bytes a line."""
    with path.open("wb") as file:
        for number in range(count):
            post = json.loads(harness.post(number))
            row = {
                "id": post["native_id"],
                "title": post["text"][:40],
                "selftext": post["text"],
                "author": post["author"],
                "subreddit": "technology",
                "score": post["metrics"]["score"],
                "num_comments": post["metrics"]["comments"],
                "created_utc": 1375000000 + number,
                "permalink": f"/r/technology/comments/{post['native_id']}/x/",
            }
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
