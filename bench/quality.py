"""`python -m bench.quality DATA`: thirty questions to real records, and how well search answers.

DATA holds the folders that `bench.real` knows. Of every file of reddit/ and social/ the first rows
are published, embedded and projected, into a project of their own (which `--keep` leaves for the
next time). Then every question is asked in each mode:

recall@10    of the ten records whose vectors are nearest to the question's, by numpy over all
             vectors in PostgreSQL, how many are among the ten that search gives
at home      how many of the ten stand where the question's answers are to be expected
repeats      how many of the ten repeat the text of one above them
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import click
import numpy as np

from bench.questions import QUESTIONS, Question
from bench.real import by_platform
from bench.rig import rig
from bench.search import drop, weaviate_flags
from headrace import Headrace, config
from headrace.config import Settings
from headrace.models import embedding
from headrace.search.query import Hit, Mode, Searcher
from headrace.slug import slug
from headrace.stores import migrate
from headrace.stream import topics

MODES: tuple[Mode, ...] = get_args(Mode)
TOP = 10
SHOWN = 3


class Exact:
    """All vectors in memory, and the nearest of them by what their numbers say."""

    def __init__(self, headrace: Headrace) -> None:
        table = headrace.read("embeddings", columns=["id", "vector"]).to_table()
        vectors = table.column("vector").combine_chunks()
        self._vectors = vectors.flatten().to_numpy().reshape(len(vectors), -1)
        self._place = {name: at for at, name in enumerate(table.column("id").to_pylist())}
        self._model = embedding.load(headrace.settings.embeddings, headrace.settings.llm)

    def __len__(self) -> int:
        return len(self._place)

    def found(self, words: str, hits: list[Hit]) -> int:
        """How many of the hits are as near as the ten nearest are."""
        near = self._vectors @ self._model.embed([words])[0]
        limit = np.sort(near)[-TOP] - 1e-5  # equal texts are equally near
        places = [self._place[hit.id] for hit in hits[:TOP] if hit.id in self._place]
        return int(sum(near[place] >= limit for place in places))


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--limit", default=800, show_default=True, help="Rows of each file.")
@click.option("--keep", metavar="PROJECT", help="Use this project, and leave it there.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write everything here.")
def main(data: Path, limit: int, keep: str | None, path: Path | None) -> None:
    """Ask real records thirty questions, and show what comes."""
    with project(keep) as settings, Headrace(settings) as headrace:
        if not headrace.sql("SELECT 1 FROM records LIMIT 1").num_rows:
            fill(headrace, data, limit)
        exact = Exact(headrace)
        with Searcher(settings) as searcher:
            answers = {
                question: {mode: searcher.search(question.words, mode) for mode in MODES}
                for question in QUESTIONS
            }
        records = headrace.sql("SELECT count(*) AS n FROM records WHERE NOT deleted")
        print(f"{records.column('n')[0]} records, {len(exact):,} vectors\n")
        rows = [row for q, hits in answers.items() for row in judged(q, hits, exact)]
        for question, hits in answers.items():
            show(question, hits)
        print(
            f"{'':<10}{'recall@10':>10}{'at home':>10}{'repeats':>10}   means of {len(QUESTIONS)}"
        )
        for mode in MODES:
            mine = [row for row in rows if row["mode"] == mode]
            recall, home, repeats = (
                mean(row[name] for row in mine) for name in ("recall", "home", "repeats")
            )
            print(f"{mode:<10}{recall:>10.3f}{home:>10.2f}{repeats:>10.2f}")
        if path is not None:
            path.write_text(json.dumps(rows, indent=2))


@contextmanager
def project(keep: str | None) -> Iterator[Settings]:
    with rig() as on, weaviate_flags() as flags:
        if keep is not None:
            base = config.load(
                {"project": keep, "kafka.bootstrap_servers": on.bootstrap, "postgres.dsn": on.dsn,
                 "weaviate": flags}
            )  # fmt: skip
            topics.ensure(base)
            migrate.upgrade(base)
            yield base
            return
        with on.project() as base:
            settings = base.model_copy(update={"weaviate": base.weaviate.model_copy(update=flags)})
            try:
                yield settings
            finally:
                drop(settings)


def fill(headrace: Headrace, data: Path, limit: int) -> None:
    for platform, files in by_platform(data).items():
        files = [file for file in files if file.relative_to(data).parts[0] != "comments"]
        if files:
            done = headrace.publish(*files, platform=platform, limit=limit)
            print(f"{platform}: {len(files)} files, {done.records:,} records", flush=True)
    report = headrace.run("text", "embeddings", "search")
    print({name: dict(counts) for name, counts in report.counts.items()}, report.waiting)


def judged(question: Question, hits: dict[Mode, list[Hit]], exact: Exact) -> Iterator[Any]:
    for mode, found in hits.items():
        texts = [" ".join(hit.text.casefold().split()) for hit in found]
        yield {
            "question": question.words,
            "mode": mode,
            "recall": exact.found(question.words, found) / TOP,
            "home": sum(at_home(question, hit) for hit in found),
            "repeats": len(texts) - len(set(texts)),
            "hits": [[hit.id, round(hit.score, 3), hit.text[:200]] for hit in found],
        }


def at_home(question: Question, hit: Hit) -> bool:
    return bool({hit.platform, f"{hit.platform}:{slug(hit.community or '')}"} & {*question.places})


def show(question: Question, hits: dict[Mode, list[Hit]]) -> None:
    print(question.words)
    for mode, found in hits.items():
        for hit in found[:SHOWN]:
            text = " ".join(hit.text.split())[:80]
            mark = "·" if at_home(question, hit) else " "
            print(f"  {mode:<9}{mark} {hit.platform:<14}{hit.id.rpartition(':')[2][:20]:<21}{text}")
    print()


if __name__ == "__main__":
    main()
