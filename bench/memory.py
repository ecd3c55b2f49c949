"""Time and peak memory of a stage and of the store at growing numbers of records."""

from __future__ import annotations

import subprocess
import sys
import time

from bench import harness
from bench.harness import Figure, Goal
from bench.rig import CLONE, Rig, environment
from headrace.config import Settings

SIZES = (10_000, 100_000, 1_000_000)
GROUPS = ("text", "postgres")


def measure(rig: Rig, sizes: tuple[int, ...] = SIZES) -> tuple[list[Figure], list[Goal]]:
    """One run a size and group; a worker's peak is what the kernel noted when it ended."""
    figures: list[Figure] = []
    peaks: dict[tuple[str, int], float] = {}
    costs: dict[tuple[str, int], float] = {}
    for size in sizes:
        with rig.project() as settings:
            harness.fill(rig.bootstrap, f"{settings.project}.raw.posts.reddit", size)
            for group in GROUPS:
                seconds, megabytes = _run(settings, group)
                peaks[group, size], costs[group, size] = megabytes, seconds / size * 1e6
                for name, unit, value in (
                    (f"{group}, {size:,} records: peak memory", "MB", megabytes),
                    (f"{group}, {size:,} records: time", "s", seconds),
                    (f"{group}, {size:,} records: a record", "µs", seconds / size * 1e6),
                ):
                    figures.append(Figure(name, unit, [value]))
                print(f"{group} {size:,}: {seconds:.1f} s, {megabytes:.0f} MB", file=sys.stderr)
    goals: list[Goal] = []
    for group in GROUPS:
        small, large = sizes[-2], sizes[-1]
        what = f"{group}: {{}} at {large:,} records to that at {small:,}"
        ratio = peaks[group, large] / peaks[group, small]
        goals.append(Goal(what.format("peak memory"), ratio, most=1.10))
        ratio = costs[group, large] / costs[group, small]
        goals.append(Goal(what.format("cost of a record"), ratio, most=1.25))
    return figures, goals


_MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(status)
"""


def _run(settings: Settings, group: str) -> tuple[float, float]:
    """Seconds and peak megabytes; measured by a small parent, since a child starts as its copy."""
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _MEASURED,
            sys.executable,
            "-m",
            "headrace",
            "worker",
            group,
            "--until-caught-up",
        ],
        env=environment(settings),
        capture_output=True,
        text=True,
        cwd=CLONE,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{group} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - began, float(done.stdout.split()[-1])
