"""`python -m bench`: every measurement in one run on one broker, medians with their spread."""

from __future__ import annotations

from pathlib import Path

import click

from bench import embeddings, harness, llm, memory, publishing, reading, search, store, throughput
from bench.harness import Figure, Goal
from bench.rig import rig

PARTS = ("publish", "throughput", "store", "embeddings", "search", "read", "llm", "memory")


@click.command()
@click.option("--only", help=f"Some of {', '.join(PARTS)}, with commas between.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the records: whether it runs at all.")
@click.option("--objects", default=100_000, show_default=True, help="Of the search part.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the readings here.")
def main(only: str | None, rounds: int, quick: bool, objects: int, path: Path | None) -> None:
    """Measure Headrace beside its peers. Ratios count; times on a busy machine mean little."""
    parts = only.split(",") if only else list(PARTS)
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise click.UsageError(f"no such part: {', '.join(sorted(unknown))}")
    scale = 10 if quick else 1
    figures: list[Figure] = []
    goals: list[Goal] = []
    with rig() as on:
        for part in parts:
            if part == "publish":
                found = publishing.measure(on, 500_000 // scale, rounds)
            elif part == "throughput":
                found = throughput.measure(on, 500_000 // scale, rounds)
            elif part == "store":
                found = store.measure(on, 200_000 // scale, rounds)
            elif part == "embeddings":
                found = embeddings.measure(on, 5_000 // scale, rounds)
            elif part == "search":
                found = search.measure(on, objects // scale, rounds)
            elif part == "read":
                found = reading.measure(on, tuple(size // scale for size in reading.SIZES))
            elif part == "llm":
                found = llm.measure(on, 6_400 // scale, rounds)
            else:
                found = memory.measure(on, tuple(size // scale for size in memory.SIZES))
            harness.print_figures(part, found[0])
            figures += found[0]
            goals += found[1]
    harness.print_goals(goals)
    if path is not None:
        path.write_text(harness.to_json(figures, goals))


if __name__ == "__main__":
    main()
