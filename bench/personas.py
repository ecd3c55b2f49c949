"""`python -m bench.personas DATA`: personas of every community in DATA's files, and what they cost.

A made-up provider answers on loopback, so that calls, tokens and kills can be counted: once the
whole way undisturbed, once with the worker killed at random. Both must store the same, and the
calls that came on top must be those in flight at a kill. Exit status 1 if not.

`--workers 1,2,4 --seconds 3 --limit 50` measures instead how long the same takes with so many
workers, answers of so many seconds and so many calls a minute.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from bench.harness import append_times
from bench.real import Checks, command
from bench.rig import CLONE, Rig, environment, rig
from consumers.personas import asked
from headrace.config import Settings
from headrace.llm import prices
from headrace.stores import postgres
from tests.llm import provider
from tests.llm.provider import Provider
from tests.personas.answering import answer

PATIENCE_SECONDS = 1_800.0
LOOK_SECONDS = 0.05
SCHEMA_TOKENS = 500  # of the JSON Schema that goes with a call for ten

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
    extra: list[tuple[int, str, int]]  # lost call, what it was of, the call that repeats it
    embedded: list[int]  # texts of each embedding batch
    commits: int
    input_tokens: int
    output_tokens: int
    lines: list[str]
    began: list[float]  # when each call arrived …
    ended: list[float]  # … and was answered


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kills", default=10, show_default=True)
@click.option("--seconds", default=0.3, show_default=True, help="That each answer takes.")
@click.option("--seed", default=1, show_default=True)
@click.option("--workers", help="Instead: how long it takes with so many, as 1,2,4.")
@click.option("--limit", default=0, help="Calls a minute, of all workers; 0: no limit.")
def main(
    data: Path,
    kills: int,
    seconds: float,
    seed: int,
    workers: str | None,
    limit: int,
) -> None:
    """Make personas of the communities in DATA/*.csv (Reddit's)."""
    files = sorted(data.glob("*.csv"))
    with rig() as on, provider.serve(seconds=seconds, keep=False) as served:
        served.answer = answer
        whole = Whole(on, served, files, limit)
        if workers:
            scale(whole, [int(number) for number in workers.split(",")])
            return
        plain = whole.run()
        calls = len(plain.tables["communities"]) * 5
        draw = random.Random(seed)
        kills = min(kills, calls // 3)
        moments = sorted(draw.sample(range(1, calls, 3), kills))
        killed = whole.run([(moment, draw.uniform(0, 1.5 * seconds)) for moment in moments])
    sys.exit(0 if hold(files, plain, killed, calls, kills) else 1)


def hold(files: list[Path], plain: Run, killed: Run, calls: int, kills: int) -> bool:
    """Whether all is as it must be; tells each point."""
    checks = Checks()
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
        same = rows == killed.tables[name]
        checks.say(same, f"{name}: {len(rows)} rows, the same after {kills} kills")
    lost = killed.states.get("lost", 0)
    checks.say(killed.states.get("answered") == calls, f"{calls} answers, each bought once")
    checks.say(len(killed.extra) == lost <= kills, f"{lost} in flight at a kill, each asked again:")
    for call, part, again in killed.extra:
        print(f"      call {call} of {part} is repeated by call {again}")
    checks.say(
        calls <= killed.arrived <= calls + lost,
        f"{killed.arrived} calls arrived: {calls} and at most those {lost}",
    )
    checks.say(killed.commits == communities, f"{killed.commits} commits after {kills} kills")
    print(f"undisturbed {plain.seconds:.0f} s, with kills {killed.seconds:.0f} s")
    costs(plain.input_tokens, plain.output_tokens, calls, personas)
    return not checks.failed


def scale(whole: Whole, numbers: list[int]) -> None:
    """How long all calls take by workers, from the first that arrives to the last answer."""
    print("| workers | calls | took | calls a minute | most in a minute |\n|---|---|---|---|---|")
    for number in numbers:
        run = whole.run(workers=number)
        took = run.ended[-1] - run.ended[0] + whole.served.seconds
        most = max(sum(at <= one < at + 60 for one in run.began) for at in run.began)
        print(
            f"| {number} | {run.arrived} | {took:.0f} s | {60 * run.arrived / took:.0f} | {most} |",
            flush=True,
        )


@dataclass
class Whole:
    """Publishing and making everything, in a project of its own each time."""

    on: Rig
    served: Provider
    files: list[Path]
    limit: int = 0

    def run(self, kills: Sequence[tuple[int, float]] = (), workers: int = 1) -> Run:
        """`kills`: the worker is killed so many seconds after so many answers are there."""
        with self.on.project() as made, ExitStack() as stack:
            settings = self._settings(made)
            before = len(self.served.calls)
            self._publish(settings)
            log = self.on.folder / f"{settings.project}.log"
            output = stack.enter_context(log.open("wb"))
            connection = stack.enter_context(
                postgres.connect(settings, readonly=True, autocommit=True)
            )

            def one(query: str) -> int:
                row = connection.execute(query.encode()).fetchone()
                return int(row[0]) if row else 0

            def reached(answers: int) -> bool:
                return one(_ANSWERS) >= answers

            began = time.monotonic()
            store = stack.enter_context(started(settings, output, "postgres"))
            _until(lambda: one(_COMMUNITIES) == len(self.files), store)
            for answers, seconds in kills:
                with started(settings, output, "personas", "--now") as worker:
                    _until(partial(reached, answers), store, worker)
                    time.sleep(seconds)
            all_of_them = [
                stack.enter_context(started(settings, output, "personas", "--now"))
                for _ in range(workers)
            ]
            _until(lambda: one(_DONE) == len(self.files), store, *all_of_them)
            seconds = time.monotonic() - began
            told = log.read_text().splitlines()
            ask = connection.execute
            tokens = ask(_TOKENS).fetchone() or (0, 0)
            calls = self.served.calls[before:]
            return Run(
                seconds,
                {name: ask(query.encode()).fetchall() for name, query in _TABLES.items()},
                len(calls),
                dict(ask("SELECT state, count(*) FROM llm_calls GROUP BY 1").fetchall()),
                ask(_EXTRA.encode()).fetchall(),
                [int(found[1]) for line in told if (found := _EMBEDDED.search(line))],
                len(append_times(self.on.bootstrap, f"{settings.project}.enriched.personas")),
                tokens[0],
                tokens[1],
                [line.split(" info ", 1)[-1].strip() for line in told if _is_for_people(line)],
                sorted(call.at for call in calls),
                sorted(call.ended for call in calls if call.ended),
            )

    def _publish(self, settings: Settings) -> None:
        words = ["--platform", "reddit", "--kind", "communities", "--with-posts"]
        names = map(str, self.files)
        done = command(settings, "publish", *words, *names)
        if done.returncode:
            raise click.ClickException(done.stderr[-2000:])

    def _settings(self, settings: Settings) -> Settings:
        llm = settings.llm.model_copy(
            update={
                "base_url": self.served.url,
                "api_key": SecretStr("nobody's"),
                "requests_per_minute": self.limit,
            }
        )
        log = settings.log.model_copy(update={"level": "debug"})
        return settings.model_copy(update={"llm": llm, "log": log})


_EMBEDDED = re.compile(r"embedded (\d+) texts")
_COMMUNITIES = "SELECT count(*) FROM records WHERE kind = 'community'"
_ANSWERS = "SELECT count(*) FROM llm_answers"
_DONE = "SELECT count(*) FROM outcomes WHERE stage = 'personas' AND outcome = 'ok'"
_TOKENS = b"""
SELECT sum(input_tokens)::bigint, sum(output_tokens)::bigint FROM llm_calls WHERE state = 'answered'
"""
_EXTRA = """
SELECT l.id, coalesce(string_agg(a.record_id || ' ' || a.part, ', '), '?'), r.id
FROM llm_calls l
JOIN llm_calls r ON l.id = ANY (r.repeats)
LEFT JOIN llm_answers a ON a.call = r.id
WHERE l.state = 'lost' GROUP BY l.id, r.id ORDER BY l.id
"""


def costs(input_tokens: int, output_tokens: int, calls: int, personas: int) -> None:
    """By the prices of the settings: with tokens as the provider counted them, and with answers of
    a real model's length. It counts four characters as a token, and no schema."""
    schemas = calls * SCHEMA_TOKENS
    given = input_tokens + schemas
    real = personas * asked.PERSONA_TOKENS + personas // 50 * asked.PROFILE_TOKENS
    print(
        f"\n{calls} calls, {input_tokens:,} tokens in and {schemas:,} of schemas,"
        f" {output_tokens:,} out; {real:,} out of a model that writes more\n"
    )
    print("| model | made-up answers | real ones | by batches |")
    print("|---|---|---|---|")
    settings = Settings()
    for model in sorted(settings.llm.prices):
        found = [
            prices.cost(settings, model, given, output, batch=batch)
            for output, batch in ((output_tokens, False), (real, False), (real, True))
        ]
        print(f"| {model} | {' | '.join(f'${cost:.2f}' for cost in found if cost is not None)} |")


@contextmanager
def started(settings: Settings, output: Any, *words: str) -> Iterator[subprocess.Popen[bytes]]:
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
        yield process
    finally:
        process.kill()
        process.wait(30)


def _is_for_people(line: str) -> bool:
    return any(word in line for word in ("[Community", "Batch ", "✓ ", "Progress: "))


def _until(condition: Callable[[], bool], *running: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if any(process.poll() is not None for process in running):
            raise click.ClickException("a worker has ended by itself")
        if time.monotonic() > ends:
            raise click.ClickException(f"not within {PATIENCE_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
