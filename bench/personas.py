"""`python -m bench.personas DATA`: personas of every community in DATA's files, and what they cost.

A made-up provider answers on loopback, so that calls, tokens and kills can be counted: once the
whole way undisturbed, once with the worker killed at random. Both must store the same, and the
calls that came on top must be those in flight at a kill. Exit status 1 if not.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from bench.real import Checks, command
from bench.rig import CLONE, Rig, environment, rig
from headrace.config import Settings
from headrace.llm import prices
from headrace.stores import postgres
from tests.llm import provider
from tests.llm.provider import Provider
from tests.personas.answering import answer

PATIENCE_SECONDS = 1_800.0
LOOK_SECONDS = 0.05
REAL_TOKENS = 260  # of a persona as a good model writes one; the made-up ones are shorter

# All that a set is, but for when it was stored.
_TABLES = {
    "personas": "SELECT id, community_id, name, age_range, occupation, interests, goals,"
    " frustrations, tone_of_voice, typical_posts, evidence, set FROM personas ORDER BY id",
    "communities": "SELECT id, name, about, tone, themes, personas FROM communities"
    " WHERE id IS NOT NULL ORDER BY id",
    "relationships": "SELECT id, kind, source, target FROM edges ORDER BY id",
    "vectors": "SELECT record_id, space, encode(vector, 'hex') FROM vectors ORDER BY record_id",
}


@dataclass(slots=True)
class Run:
    """What one run came to."""

    seconds: float
    tables: dict[str, list[tuple[Any, ...]]]
    arrived: int  # calls that the provider saw
    states: dict[str, int]
    reasons: dict[str, int]
    extra: list[tuple[int, str, int]]  # lost call, what it was of, the call that repeats it
    embedded: list[int]  # texts of each embedding batch
    commits: int
    input_tokens: int = 0
    output_tokens: int = 0
    lines: list[str] = field(default_factory=list)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kills", default=10, show_default=True)
@click.option("--seconds", default=0.3, show_default=True, help="That each answer takes.")
@click.option("--posts", default=50, show_default=True, help="Rows of each file.")
@click.option("--seed", default=1, show_default=True)
def main(data: Path, kills: int, seconds: float, posts: int, seed: int) -> None:
    """Make personas of the communities in DATA/*.csv (Reddit's)."""
    files = sorted(data.glob("*.csv"))
    checks = Checks()
    with rig() as on, provider.serve(seconds=seconds, keep=False) as served:
        served.answer = answer
        plain = whole(on, served, files, posts, [])
        draw = random.Random(seed)
        calls = len(plain.tables["communities"]) * 5
        moments = sorted(draw.sample(range(1, calls), min(kills, calls - 1)))
        killed = whole(on, served, files, posts, moments)
    communities = len(plain.tables["communities"])
    personas = len(plain.tables["personas"])
    for line in plain.lines[:8] + plain.lines[-3:]:
        print(f"      {line}")
    checks.say(communities == len(files), f"{communities} communities of {len(files)} files")
    checks.say(personas == communities * 50, f"{personas} personas")
    checks.say(plain.arrived == calls, f"{plain.arrived} persona calls ({plain.states})")
    batches = plain.embedded
    checks.say(
        batches == [51] * communities, f"{len(batches)} embedding batches, {sum(batches)} texts"
    )
    checks.say(plain.commits == communities, f"{plain.commits} commits")
    relationships = len(plain.tables["relationships"])
    checks.say(relationships == personas, f"{relationships} relationships")
    for name, rows in plain.tables.items():
        checks.say(rows == killed.tables[name], f"{name} the same after {len(moments)} kills")
    lost = killed.states.get("lost", 0)
    checks.say(killed.states.get("answered") == calls, f"{calls} answers, each bought once")
    checks.say(len(killed.extra) == lost, f"{lost} calls in flight at a kill, each asked again:")
    for call, part, again in killed.extra:
        print(f"      call {call} of {part} is repeated by call {again}")
    checks.say(
        calls <= killed.arrived <= calls + lost,
        f"{killed.arrived} calls arrived: {calls} and at most those {lost}",
    )
    print(f"undisturbed {plain.seconds:.0f} s, with kills {killed.seconds:.0f} s")
    costs(plain, calls, personas)
    sys.exit(1 if checks.failed else 0)


def whole(on: Rig, served: Provider, files: list[Path], posts: int, moments: list[int]) -> Run:
    """Publish and make everything; the worker is killed when so many answers are there."""
    with on.project() as made:
        settings = _with_model(made, served)
        before = len(served.calls)
        for words in (["--kind", "communities"], []):
            names = list(map(str, files))
            done = command(
                settings, "publish", "--platform", "reddit", *words, "--limit", str(posts), *names
            )
            if done.returncode:
                raise click.ClickException(done.stderr[-2000:])
        log = on.folder / f"{settings.project}.log"
        began = time.monotonic()
        with log.open("wb") as output, started(settings, output, "postgres"):
            _until(lambda: _one(settings, _COMMUNITIES) == len(files))
            for moment in moments:
                with started(settings, output, "personas", "--now"):
                    _until(lambda m=moment: _one(settings, _ANSWERS) >= m)
            with started(settings, output, "personas", "--now"):
                _until(lambda: _one(settings, _DONE) == len(files))
        seconds = time.monotonic() - began
        told = [line for line in log.read_text().splitlines() if " info " in line]
        texts = [
            int(line.split("embedded ")[1].split()[0])
            for line in log.read_text().splitlines()
            if "embedded " in line
        ]
        with postgres.connect(settings, readonly=True) as connection:
            ask = connection.execute
            tokens = ask(
                "SELECT sum(input_tokens)::bigint, sum(output_tokens)::bigint FROM llm_calls"
                " WHERE state = 'answered'"
            ).fetchone()
            return Run(
                seconds,
                {name: ask(query.encode()).fetchall() for name, query in _TABLES.items()},
                len(served.calls) - before,
                dict(ask("SELECT state, count(*) FROM llm_calls GROUP BY 1").fetchall()),
                dict(ask("SELECT reason, count(*) FROM llm_calls GROUP BY 1").fetchall()),
                ask(_EXTRA).fetchall(),
                texts,
                _one(settings, _DONE),
                *(tokens or (0, 0)),
                lines=[line.split(" info ", 1)[1].strip() for line in told if _is_for_people(line)],
            )


_COMMUNITIES = "SELECT count(*) FROM records WHERE kind = 'community'"
_ANSWERS = "SELECT count(*) FROM llm_answers"
_DONE = "SELECT count(*) FROM outcomes WHERE stage = 'personas' AND outcome = 'ok'"
_EXTRA = """
SELECT l.id, coalesce(string_agg(a.record_id || ' ' || a.part, ', '), '?'), r.id
FROM llm_calls l
JOIN llm_calls r ON l.id = ANY (r.repeats)
LEFT JOIN llm_answers a ON a.call = r.id
WHERE l.state = 'lost' GROUP BY l.id, r.id ORDER BY l.id
"""


def costs(run: Run, calls: int, personas: int) -> None:
    """Tokens as they were measured, by the prices of the settings; and with answers of a real
    model's length."""
    real = personas * REAL_TOKENS
    print(
        f"\n{calls} calls, {run.input_tokens:,} tokens in, {run.output_tokens:,} out as measured;"
        f" {real:,} out where a persona takes {REAL_TOKENS}\n"
    )
    print("| model | as measured | with answers of real length | by batches |")
    print("|---|---|---|---|")
    settings = Settings()
    for model in sorted(settings.llm.prices):
        found = [
            prices.cost(settings, model, run.input_tokens, output, batch=batch)
            for output, batch in ((run.output_tokens, False), (real, False), (real, True))
        ]
        print(f"| {model} | {' | '.join(f'${cost:.2f}' for cost in found if cost is not None)} |")


@contextmanager
def started(settings: Settings, output: Any, *words: str) -> Iterator[None]:
    """A worker, killed at the end of the block as by the operating system."""
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "worker", *words],
        env={**environment(settings), "HEADRACE_LOG__FORMAT": "text"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=CLONE,
    )
    try:
        yield
        if process.poll() is not None:
            raise click.ClickException(f"the worker of {words[0]} ended by itself")
    finally:
        process.kill()
        process.wait(30)


def _with_model(settings: Settings, served: Provider) -> Settings:
    llm = settings.llm.model_copy(
        update={
            "base_url": served.url,
            "api_key": SecretStr("nobody's"),
            "requests_per_minute": None,
        }
    )
    log = settings.log.model_copy(update={"level": "debug"})
    return settings.model_copy(update={"llm": llm, "log": log})


def _is_for_people(line: str) -> bool:
    return any(word in line for word in ("[Community", "Batch ", "✓ ", "Progress: "))


def _one(settings: Settings, query: str) -> int:
    with postgres.connect(settings, readonly=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


def _until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > ends:
            raise click.ClickException(f"not within {PATIENCE_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
