"""What asking a language model takes besides the model, and what is left when things go wrong.

A made-up provider answers on loopback, as slowly as it is told and in the ways that it is told.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import orjson
import psycopg
from pydantic import SecretStr

from bench import harness
from bench.chaos import workers
from bench.harness import Figure, Goal
from bench.rig import CLONE, Rig, environment
from consumers.scores.stage import schema
from headrace.backlog import lag
from headrace.config import Settings
from headrace.llm import asking, packing, prompts
from headrace.llm.asking import Answered, Deferred, Item, Task
from headrace.llm.batches import requests
from headrace.llm.batches.courier import Courier
from headrace.llm.ledger import Admitted, Ledger, Planned, Reply
from headrace.servers import LocalServer
from headrace.servers.guard import throwaway_folder
from headrace.stores import postgres
from headrace.stream import topology
from headrace.stream.stage import Context
from tests.llm import provider
from tests.llm.provider import Call, Provider, Step

STAGE = "scores"
WORKERS = 4
SECONDS = 1.0  # that the provider of the group takes
CALLS = 240  # of each round of the ledger's measurement
TOGETHER = 20  # posts in a call, by either way
KILLS = 2
PATIENCE_SECONDS = 240.0

_Found = tuple[list[Figure], list[Goal]]


def measure(rig: Rig, posts: int, rounds: int) -> tuple[list[Figure], list[Goal]]:
    """`posts` go through the group; a fifth as many meet the faults."""
    parts = (bookkeeping(rig, rounds), group(rig, posts), batches(rig), faults(rig, posts // 5))
    return [one for part in parts for one in part[0]], [one for part in parts for one in part[1]]


# -- ledger and limiter


@dataclass(frozen=True)
class Books:
    """An ask of so many calls with so many items each, calls in the window before, and limits."""

    name: str
    calls: int
    items: int
    before: int
    limits: dict[str, Any]


_HIGH = {"requests_per_minute": 10_000}
BOOKS = (
    Books("ledger and limiter, 12 calls of 20", 12, 20, 0, {"requests_per_minute": 1_000}),
    Books("ledger and limiter, one call of one", 1, 1, 0, {"requests_per_minute": 1_000}),
    Books("12 of 20, 5,000 in the window", 12, 20, 5_000, _HIGH),
    Books("the same, tokens limited too", 12, 20, 5_000, {**_HIGH, "tokens_per_minute": 10**8}),
)

_BEFORE = """
INSERT INTO llm_calls (stage, provider, model, prompt, version, transport, reason, session, worker,
  state, items, tokens, cost, priced, day, sent_at)
SELECT 'scores', %s, 'm', 'p', 1, 'direct', 'first', '', 'w', 'answered', 1, 1000, 0, true,
  current_date, clock_timestamp() - n * interval '50 seconds' / %s
FROM generate_series(1, %s) AS n
"""


def bookkeeping(rig: Rig, rounds: int) -> _Found:
    """Milliseconds of a call without the provider's, on a PostgreSQL that writes to disk."""
    figures: list[Figure] = []
    goals: list[Goal] = []
    with throwaway_folder() as folder:
        server = LocalServer("postgres", folder)
        server.start()
        try:
            with replace(rig, dsn=str(server.address)).project() as settings:
                for books in BOOKS:
                    median, most = (Figure(f"{books.name}{more}", "ms") for more in ("", ", p99"))
                    for number in range(rounds):
                        taken = _kept(_asking(settings, **books.limits), books, number)
                        median.readings.append(statistics.median(taken))
                        most.readings.append(statistics.quantiles(taken, n=100)[-1])
                    _say(median, most)
                    figures += [median, most]
                    if not books.before:
                        goals.append(Goal(f"{books.name}, ms a call", median.median, most=3.0))
        finally:
            server.kill()
    return figures, goals


def _kept(settings: Settings, books: Books, number: int) -> list[float]:
    ledger = Ledger(settings, STAGE, "bench-0")
    with postgres.connect(settings, autocommit=True) as connection:
        connection.execute("TRUNCATE llm_calls, llm_answers, llm_claims, llm_turns")
        if books.before:
            connection.execute(_BEFORE, [ledger.provider, books.before, books.before])
        connection.execute("ANALYZE llm_calls")
    taken: list[float] = []
    try:
        while len(taken) < CALLS:
            taken += _ask(ledger, books, f"{number} {len(taken)}")
    finally:
        ledger.close()
    return taken[CALLS // 5 :]  # the first ones connect and prepare


def _ask(ledger: Ledger, books: Books, name: str) -> list[float]:
    """Milliseconds of each call: its own, and its share of what is done once for the ask."""
    items = [
        (hashlib.sha256(f"{name} {n}".encode()).digest(), f"post:reddit:{name} {n}", 1, "all")
        for n in range(books.calls * books.items)
    ]
    keys = [item[0] for item in items]
    cost, answer = Decimal("0.001"), dict.fromkeys(("relevance", "urgency", "novelty"), 5.0)
    moments = [time.perf_counter()]
    ledger.answers(keys)
    requests.told(ledger, keys)
    ledger.claim(items)
    moments.append(time.perf_counter())
    for start in range(0, len(keys), books.items):
        asked = keys[start : start + books.items]
        admitted = ledger.admit(
            Planned("gpt-4.1-mini", "direct", "first", asked, 2_000, 960, cost, prompt="scores")
        )
        assert isinstance(admitted, Admitted), admitted
        reply = Reply(1_900, 900, cost=cost, seconds=1.0)
        ledger.settle(admitted.call, reply, dict.fromkeys(asked, answer))
        moments.append(time.perf_counter())
    ledger.release(keys)
    shared = (moments[1] - moments[0] + time.perf_counter() - moments[-1]) / books.calls
    return [1000 * (shared + after - before) for before, after in pairwise(moments[1:])]


# -- a group of workers

# By Little's law: what was in flight on average while all worked, by the time that a call took.
_RATE = """
WITH calls AS (SELECT * FROM llm_calls WHERE id > %s), own AS (
  SELECT min(sent_at) AS began, max(ended_at) AS ended FROM calls GROUP BY worker
), span AS (SELECT max(began) AS began, min(ended) AS ended FROM own), took AS (
  SELECT extract(epoch FROM l.ended_at - l.sent_at) AS seconds,
    greatest(extract(epoch FROM least(l.ended_at, s.ended) - greatest(l.sent_at, s.began)), 0)
      AS inside
  FROM calls l, span s
)
SELECT (sum(inside) / extract(epoch FROM ended - began) / avg(seconds))::float8
FROM took, span GROUP BY ended, began
"""
_WORKERS = "SELECT count(DISTINCT worker) FROM llm_calls WHERE sent_at > to_timestamp(%s)"


def group(rig: Rig, posts: int) -> _Found:
    """Calls a second of `headrace run scores --workers 4`, from Kafka to Kafka, no limit set."""
    with rig.project() as made, served(SECONDS) as url:
        settings = _asking(made, url, requests_per_minute=0)
        with _running(settings) as runner:
            begun = _begun(rig, settings, runner)
            harness.fill(rig.bootstrap, _raw(settings), posts, begun)
            with postgres.connect(settings, readonly=True) as connection:
                before = _one(connection, "SELECT max(id) FROM llm_calls")
            _end(settings, runner)
        with postgres.connect(settings, readonly=True) as connection:
            rate = _one(connection, _RATE, before)
    figure = Figure(f"a group of {WORKERS} workers, {SECONDS:g} s a call", "calls/s", [rate])
    _say(figure)
    most = WORKERS * settings.llm.concurrency / SECONDS
    return [figure], [Goal("the group to concurrency ÷ latency", rate / most, least=0.9)]


@contextmanager
def served(seconds: float) -> Iterator[str]:
    """A provider in a process of its own: its address."""
    words = [sys.executable, "-m", "tests.llm.provider", "--seconds", str(seconds)]
    process = subprocess.Popen(words, cwd=CLONE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait(30)


@contextmanager
def _running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace run` with as many workers of the stage, to its end by a signal."""
    log = settings.home / "run.log"
    with log.open("wb") as output:
        runner = subprocess.Popen(
            [sys.executable, "-m", "headrace", "run", STAGE, "--only", "--workers", str(WORKERS)],
            env=environment(settings), cwd=CLONE, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            yield runner
        except BaseException:
            print(log.read_text()[-2000:], file=sys.stderr)
            raise
        finally:
            runner.terminate()
            runner.wait(60)


def _begun(rig: Rig, settings: Settings, runner: subprocess.Popen[bytes]) -> int:
    """Posts, a few a second, until every worker asks; returns how many they were."""
    count = 0
    for _ in _patiently(runner):
        with postgres.connect(settings, readonly=True) as connection:
            if _one(connection, _WORKERS, 0) == WORKERS:
                return count
        harness.fill(rig.bootstrap, _raw(settings), 2 * WORKERS, count)
        count += 2 * WORKERS
    raise AssertionError("not reached")


def _end(settings: Settings, runner: subprocess.Popen[bytes]) -> None:
    for _ in _patiently(runner):
        if all(group.caught_up for group in lag.read(settings, [STAGE])):
            return


def _patiently(runner: subprocess.Popen[bytes]) -> Iterator[None]:
    ends = time.monotonic() + PATIENCE_SECONDS
    while runner.poll() is None and time.monotonic() < ends:
        yield
        time.sleep(0.5)
    raise RuntimeError(f"not done within {PATIENCE_SECONDS:.0f} s, or ended by itself")


# -- batches


def batches(rig: Rig, count: int = 200) -> _Found:
    """USD that the same posts cost by either way, as the ledger has them."""
    names = list(Settings().scores.dimensions)
    values = {"dimensions": dict.fromkeys(names, "Is it so?"), "scale": 10}
    prompt = prompts.load("consumers.scores", "scores")
    task = Task(prompt, schema(names), TOGETHER, 50, values=values)
    items = [
        Item(f"post:reddit:b{number}", "all", {"text": f"the {number}th of the posts"})
        for number in range(count)
    ]
    with rig.project() as made, provider.serve() as p:
        settings = _asking(
            made, p.url, requests_per_minute=0,
            transport={"by batch": "batch"}, batch_age_seconds=0.001,
        )  # fmt: skip
        by_batch, direct = (
            asking.open(Context(settings, stage, worker="bench-0"))
            for stage in ("by batch", "direct")
        )
        courier = Courier(settings, topology.load(settings), lambda *_: None)
        try:
            _all(direct.ask(task, items), Answered)
            _all(by_batch.ask(task, items), Deferred)
            for _ in range(2):
                courier.look()
            _all(by_batch.ask(task, items), Answered)
        finally:
            courier.close()
            by_batch.close()
            direct.close()
        with postgres.connect(settings, readonly=True) as connection:
            cost: dict[str, Decimal] = dict(
                connection.execute(
                    "SELECT stage, sum(cost) FROM llm_calls GROUP BY stage"
                ).fetchall()
            )
            calls = connection.execute("SELECT count(*) FROM llm_calls").fetchone()
    if calls != (2 * count // TOGETHER,):
        raise RuntimeError(f"{calls} calls were made for {2 * count} answers")
    ratio = float(cost["by batch"] / cost["direct"])
    figures = [
        Figure(f"{count} posts, {stage}", "USD/1000", [float(cost[stage]) * 1000])
        for stage in ("direct", "by batch")
    ]
    _say(*figures)
    return figures, [Goal("batch to direct cost in the ledger", ratio, most=0.5)]


def _all(outcomes: Sequence[asking.Outcome], kind: type) -> None:
    others = [one for one in outcomes if not isinstance(one, kind)]
    if others:
        raise RuntimeError(f"{len(others)} of {len(outcomes)} came otherwise: {others[0]}")


# -- faults

PACK = 5  # posts in a call here
FAULT_SECONDS = 1.0  # that a call takes

_STATES = "SELECT state, count(*) FROM llm_calls GROUP BY state"
_SETTLED = "SELECT request_id FROM llm_calls WHERE state = 'answered'"
_REPEATED = """
SELECT count(DISTINCT l.id) FROM llm_calls l JOIN llm_calls r ON l.id = ANY (r.repeats)
WHERE l.state = 'lost'
"""


def faults(rig: Rig, posts: int) -> _Found:
    """Storms of 429, errors, time-outs, broken answers, and workers killed with kill -9."""
    with rig.project() as made, provider.serve(seconds=FAULT_SECONDS) as p:
        weather = Weather(p)
        p.judge = weather.judge
        settings = _asking(
            made, p.url, requests_per_minute=0, timeout_seconds=4.0, retry_seconds=0.1,
            retry_max_seconds=1.0, circuit_seconds=1.0,
        )  # fmt: skip
        settings = settings.model_copy(
            update={
                "scores": settings.scores.model_copy(update={"together": PACK}),
                "kafka": settings.kafka.model_copy(update={"transaction_timeout_ms": 5_000}),
                "processing": settings.processing.model_copy(update={"retry_max_seconds": 2.0}),
            }
        )
        with _running(settings) as runner:
            begun = _begun(rig, settings, runner)
            harness.fill(rig.bootstrap, _raw(settings), posts, begun)
            kills = _kill(settings, runner)
            _end(settings, runner)
        outcomes = Counter[str]()
        for message in harness.messages(rig.bootstrap, f"{settings.project}.enriched.scores"):
            envelope = orjson.loads(message.value() or b"{}")
            outcomes[envelope["id"]] += envelope["outcome"] == "ok"
        with postgres.connect(settings, readonly=True) as connection:
            states: dict[str, int] = dict(connection.execute(_STATES).fetchall())
            settled = {name for (name,) in connection.execute(_SETTLED)}
            repeated = _one(connection, _REPEATED)
    lost = states.get("lost", 0)
    missing = posts + begun - sum(count == 1 for count in outcomes.values())
    bought = Counter[str]()
    unsettled = 0
    for call in weather.delivered():
        if f"req_{call.number}" in settled:
            bought.update(weather.answered(call))
        else:
            unsettled += 1
    doubled = sum(bought.values()) - len(bought)
    beyond = max(unsettled - lost, 0) + (lost - repeated) + states.get("sent", 0)
    said = ", ".join(f"{count} {what}" for what, count in sorted(weather.met.items()))
    print(f"{len(p.calls)} calls met {said}; {kills} workers were killed", file=sys.stderr)
    print(
        f"{missing} posts without one outcome, {doubled} answers bought twice, {beyond} calls"
        f" beyond the {lost} in flight at a kill",
        file=sys.stderr,
    )
    figures = [
        Figure("lost or doubled under faults", "requests", [missing + doubled + beyond]),
        Figure(f"in flight at {kills} kills, and asked again", "calls", [lost]),
    ]
    _say(*figures)
    goal = Goal("requests lost or doubled under faults", missing + doubled + beyond, most=0)
    return figures, [goal]


class Weather:
    """What calls meet, by their number: some of each, the same in every run."""

    def __init__(self, served: Provider) -> None:
        self.met: Counter[str] = Counter()
        self._served = served
        self._steps: dict[int, str] = {}
        self._reading = packing.Reading(schema(list(Settings().scores.dimensions)), PACK)

    def judge(self, call: Call) -> Step:
        name, step = self._drawn(call)
        self._steps[call.number] = name
        self.met[name] += 1
        return step

    def _drawn(self, call: Call) -> tuple[str, Step]:
        if call.number % 100 < 12:
            return "429", provider.status(429, retry_after=0.3)
        chance = random.Random(call.number).random()
        # An answer that is broken twice is a dead letter by design: whole calls alone are broken.
        whole = len(call.items) == PACK and len(call.body["messages"]) == 2
        for name, share, step, broken in (
            ("500", 0.04, provider.status(500), False),
            ("503", 0.02, provider.status(503, retry_after=0.2), False),
            ("time-outs", 0.03, provider.slow(8.0), False),
            ("dropped connections", 0.02, provider.dropped(), False),
            ("lost answers", 0.02, provider.lost(), False),
            ("malformed", 0.05, provider.malformed(), True),
            ("truncated", 0.03, provider.truncated(), True),
            ("incomplete", 0.03, provider.left_out(2), True),
        ):
            if chance < share and (whole or not broken):
                return name, step
            chance -= share
        return "good", Step()

    def delivered(self) -> Iterator[Call]:
        """Calls whose answer was sent whole, in time."""
        never = ("time-outs", "dropped connections", "lost answers")
        for call in self._served.calls:
            if call.status == 200 and self._steps[call.number] not in never:
                yield call

    def answered(self, call: Call) -> list[str]:
        """Texts of the items that it answers well."""
        read = packing.read(self._reading, len(call.items), call.content or "")
        return [orjson.dumps(call.items[place]["text"]).decode() for place in read.good]


def _kill(settings: Settings, runner: subprocess.Popen[bytes]) -> int:
    """kill -9 to a worker each time that all of them work, until the work ends; how many times."""
    draw = random.Random(1)
    killed, since = 0, 0.0
    for _ in _patiently(runner):
        if killed == KILLS or all(group.caught_up for group in lag.read(settings, [STAGE])):
            break
        with postgres.connect(settings, readonly=True) as connection:
            if _one(connection, _WORKERS, since) < WORKERS:
                continue
        time.sleep(draw.uniform(0.0, FAULT_SECONDS))
        os.kill(draw.choice(sorted(workers(runner, STAGE))), signal.SIGKILL)
        killed, since = killed + 1, time.time()
    return killed


# -- what they share


def _asking(settings: Settings, url: str = "http://127.0.0.1:9/v1", **llm: Any) -> Settings:
    told = {"base_url": url, "api_key": SecretStr("nobody's"), **llm}
    return settings.model_copy(update={"llm": settings.llm.model_copy(update=told)})


def _raw(settings: Settings) -> str:
    return f"{settings.project}.raw.posts.reddit"


def _one(connection: psycopg.Connection, query: str, *parameters: Any) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None


def _say(*figures: Figure) -> None:
    for figure in figures:
        print(f"llm: {figure.name}: {figure.show()} {figure.unit}", file=sys.stderr, flush=True)
