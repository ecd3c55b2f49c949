"""A trivial stage on the runtime, beside bare loops, Quix Streams and Faust, on one broker.

Every contender reads the same topic of 374-byte posts and writes a topic of its own whose messages
the broker stamps on arrival; the rate is taken from those stamps, so nobody's start-up counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from bench import harness
from bench.harness import Figure, Goal
from bench.rig import CLONE, HERE, Rig, environment

BATCHES = (2_000, 5_000)
QUIX = "quixstreams==3.28.1"


def measure(rig: Rig, count: int, rounds: int) -> tuple[list[Figure], list[Goal]]:
    """Rates in records a second of `count` records (Faust and Quix get fewer, they are slower)."""
    source = harness.create_topic(rig.bootstrap, f"bench.source.{uuid.uuid4().hex[:6]}")
    harness.fill(rig.bootstrap, source, count)
    quix = _quix_python()
    contenders: list[tuple[Figure, Callable[[int], float]]] = []

    def add(name: str, run: Callable[[str], None]) -> Figure:
        figure = Figure(name, "records/s")

        def once(_: int) -> float:
            target = harness.create_topic(rig.bootstrap, f"bench.target.{uuid.uuid4().hex[:6]}")
            try:
                run(target)
                return harness.rate(harness.append_times(rig.bootstrap, target))
            finally:
                harness.delete_topics(rig.bootstrap, [target])

        contenders.append((figure, once))
        return figure

    def bare(batch: int, *more: str) -> Callable[[str], None]:
        return lambda target: harness.run_python(
            ["-m", "bench.peers.bare", rig.bootstrap, source, target, str(count), str(batch), *more]
        )

    add("bare loop", bare(2_000))
    loops, ours = {}, {}
    for batch in BATCHES:
        loops[batch] = add(f"bare transactional, {batch:,} a batch", bare(batch, "--transactional"))
        ours[batch] = Figure(f"headrace, {batch:,} a batch", "records/s")
        contenders.append((ours[batch], lambda _, size=batch: _headrace(rig, count, size)))  # type: ignore[misc]
    quix_count, faust_count = count // 2, max(count // 20, 5_000)
    quix_figure = add(
        "Quix Streams, exactly once, 5,000 a commit",
        lambda target: _call(
            [
                quix,
                str(HERE / "peers" / "quix_app.py"),
                rig.bootstrap,
                source,
                target,
                str(quix_count),
                "5000",
            ]
        ),
    )
    faust_figure = add(
        "Faust, at least once",
        lambda target: harness.run_python(
            [
                "-m",
                "bench.peers.faust_app",
                rig.bootstrap,
                source,
                target,
                str(faust_count),
                str(rig.folder / target),
            ]
        ),
    )
    harness.rounds(rounds, contenders)
    harness.delete_topics(rig.bootstrap, [source])
    goals = [
        Goal(
            f"headrace to the bare transactional loop, {batch:,} a batch",
            ours[batch].median / loops[batch].median,
            least=0.6,
        )
        for batch in BATCHES
    ]
    best = ours[5_000].median
    goals.append(Goal("headrace to Quix Streams", best / quix_figure.median, least=1.0))
    goals.append(Goal("headrace to Faust", best / faust_figure.median, least=12.0))
    return [figure for figure, _ in contenders], goals


def _headrace(rig: Rig, count: int, batch: int) -> float:
    with rig.project(batch=batch, trivial=True) as settings:
        harness.fill(rig.bootstrap, f"{settings.project}.raw.posts.reddit", count)
        _call(
            [sys.executable, "-m", "headrace", "worker", "passing", "--until-caught-up"],
            environment(settings),
        )
        times = harness.append_times(rig.bootstrap, f"{settings.project}.enriched.passing")
        if len(times) != count:
            raise RuntimeError(f"{len(times)} of {count} records came out")
        return harness.rate(times)


def _call(words: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=900, cwd=CLONE)
    if done.returncode != 0:
        raise RuntimeError(f"{words[1:4]} ended with {done.returncode}: {done.stderr[-2000:]}")


def _quix_python() -> str:
    """A virtual environment of its own: Quix Streams caps confluent-kafka below our version."""
    folder = Path(os.environ.get("HEADRACE_CACHE_DIR", Path.home() / ".cache" / "headrace"))
    venv = folder / "bench-quix"
    python = venv / "bin" / "python"
    if not (venv / "installed").exists():
        print("installing Quix Streams into a virtual environment of its own …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", QUIX], check=True)
        (venv / "installed").touch()
    return str(python)
