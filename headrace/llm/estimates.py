"""What a group's backlog would cost, and how long it would take.

Tokens and calls a record are the ledger's own where it has enough of them; else those of calls that
are made up for a few stored records, and not sent.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from importlib import import_module
from types import ModuleType
from typing import Any

import orjson
import psycopg

from headrace.backlog import database
from headrace.backlog.lag import Reader
from headrace.backlog.report import span
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.llm import endpoint, packing, prices
from headrace.llm.admission import usd
from headrace.llm.asking import Failed
from headrace.llm.batches.requests import window_ms
from headrace.llm.ledger import Order
from headrace.schedule import duration_text
from headrace.stream import topology as topologies
from headrace.stream.stage import Context, Record
from headrace.stream.topology import Group
from headrace.words import count

ENOUGH = 20  # records that the ledger must know, to go by it
LATELY = 2_000  # calls that it is asked for
SAMPLES = 40
_SPEED = 80.0  # tokens of an answer in a second, where nothing is known

_KNOWN = """
WITH calls AS (
  SELECT id, input_tokens, output_tokens, seconds, transport FROM llm_calls
  WHERE stage = %(stage)s AND model = %(model)s AND state = 'answered'
  ORDER BY id DESC LIMIT %(lately)s
)
SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
  coalesce(avg(seconds) FILTER (WHERE transport = 'direct'), 0)::float8,
  (SELECT count(DISTINCT record_id) FROM llm_answers
   WHERE call >= (SELECT min(id) FROM calls) AND call IN (SELECT id FROM calls))
FROM calls
"""
_UNDER_WAY = """
SELECT count(DISTINCT i.record_id) FROM llm_requests r JOIN llm_request_items i ON i.request = r.id
WHERE r.stage = %s AND r.state IN ('waiting', 'sent')
"""
_PENDING = "SELECT coalesce(sum(pending), 0)::bigint FROM coverage WHERE stage = %s"
_SAMPLES = """
SELECT r.id, r.kind, p.name, r.value FROM records r JOIN dim_platform p ON p.id = r.platform_id
WHERE NOT r.deleted AND r.value IS NOT NULL
  AND r.topic IN (SELECT topic FROM stage_topics WHERE stage = %s)
LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Each:
    """Of one record, on the average. `records` that it is known from; `seconds` of one call."""

    calls: float
    input_tokens: float
    output_tokens: float
    seconds: float
    records: int
    by_ledger: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """cost: USD, asked directly, None where no price is known; batch_cost: by batches.

    waiting    messages that the group has yet to read; missing: stored records without an outcome
    under_way  records that are asked for by batches already; they are not part of the others
    batches    how many a record takes one after the other; 0 where it is asked directly
    seconds    directly at the least, under the limits; by batches at the most
    """

    group: str
    model: str
    waiting: int
    missing: int
    each: Each | None
    cost: float | None
    batch_cost: float | None
    seconds: float | None
    batches: int = 0
    under_way: int = 0

    @property
    def records(self) -> int:
        return max(self.waiting, self.missing)

    @property
    def calls(self) -> int:
        return -(-int(self.records * 1000 * (self.each.calls if self.each else 0)) // 1000)

    @property
    def tokens(self) -> tuple[int, int]:
        each = self.each
        if each is None:
            return 0, 0
        return round(self.records * each.input_tokens), round(self.records * each.output_tokens)

    def as_dict(self) -> dict[str, Any]:
        inputs, outputs = self.tokens
        totals = {"records": self.records, "calls": self.calls, "input_tokens": inputs}
        return asdict(self) | totals | {"output_tokens": outputs}


def read(settings: Settings, name: str) -> Estimate:
    """Raises HeadraceError for a group that asks no model, or without Kafka or PostgreSQL."""
    topology = topologies.load(settings)
    group = topology.group(name)
    if not group.paid:
        raise HeadraceError(f"{group.short} asks no language model: nothing of it costs anything")
    with Reader(settings) as reader:
        (lag,) = reader.read([group.short], members=False)
    with database.reading(settings) as connection:
        row = connection.execute(_PENDING, [group.short]).fetchone()
        missing = int(row[0]) if row else 0
        row = connection.execute(_UNDER_WAY, [group.short]).fetchone()
        flying = int(row[0]) if row else 0
        missing = max(missing - flying, 0)
        found = _estimate(connection, settings, group, lag.backlog, missing, ())
        return replace(found, under_way=flying)


def of(settings: Settings, group: Group, records: int, parts: Sequence[str] = ()) -> Estimate:
    """What so many stored records would take; `parts`: those alone."""
    with database.reading(settings) as connection:
        return _estimate(connection, settings, group, 0, records, parts)


def kept(settings: Settings, group: Group) -> str | None:
    """What a stage says of records that it did before, where doing them again buys nothing."""
    return getattr(_module(settings, group), "kept", None)


def told(found: Estimate, settings: Settings) -> list[str]:
    """Lines for people: calls, tokens, cost, time, and where that is known from."""
    each = found.each
    if each is None:
        return ["nothing is known of a record yet: no call was made, and none is stored"]
    inputs, outputs = found.tokens
    lines = [f"{count(found.calls, 'call')}, {inputs:,} tokens in, {outputs:,} out"]
    if endpoint.named(settings).embedded:
        lines.append(f"free with {found.model}, the embedded model: its content is for trying out")
    elif found.cost is None or found.batch_cost is None:
        lines.append(f"no price of {found.model} is known: set llm.prices")
    elif found.batches:
        lines.append(
            f"{usd(found.batch_cost)} with {found.model} by batches; {usd(found.cost)} directly"
        )
    else:
        lines.append(f"{usd(found.cost)} with {found.model}; {usd(found.batch_cost)} by batches")
    if found.batches:
        within = f"within {duration_text(window_ms(settings.llm))}"
        one = f"answered {within} of being sent"
        after = f"{found.batches:,} batches one after the other, each {within}"
        lines.append(one if found.batches == 1 else after)
    elif found.seconds is not None:
        limit = settings.llm.requests_per_minute
        under = f" under {limit:,} calls a minute" if limit else ""
        lines.append(f"{span(found.seconds)} at the least{under}")
    by = f"what {each.records:,} records took lately"
    if not each.by_ledger:
        by = f"what would be sent for {each.records:,} stored records; answers guessed"
    return [*lines, f"by {by}"]


def _estimate(
    connection: psycopg.Connection,
    settings: Settings,
    group: Group,
    waiting: int,
    missing: int,
    parts: Sequence[str],
) -> Estimate:
    model = endpoint.named(settings).model
    # The ledger knows whole records: parts take less.
    each = None if parts else _known(connection, group, model)
    each = each or _rendered(connection, settings, group, parts)
    records = max(waiting, missing)
    cost = _cost(settings, model, records, each)
    batches = _batches(settings, group, records)
    seconds = None if each is None else _seconds(settings, group, records, each)
    if batches:
        seconds = batches * window_ms(settings.llm) / 1000
    return Estimate(
        group.short,
        model,
        waiting,
        missing,
        each,
        None if cost is None else float(cost),
        None if cost is None else float(cost) * settings.llm.batch_price,
        seconds,
        batches,
    )


def _batches(settings: Settings, group: Group, records: int) -> int:
    transport = settings.llm.transport.get(group.short, "direct")
    by_batch = transport == "batch" or (transport == "auto" and records >= settings.llm.auto_from)
    if not by_batch or endpoint.named(settings).embedded:
        return 0
    return _follow(settings, _module(settings, group))


def _module(settings: Settings, group: Group) -> ModuleType:
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))  # groups of a project's own
    return import_module(group.module)


def _follow(settings: Settings, module: ModuleType) -> int:
    """How many calls of a record follow from one another."""
    return int(getattr(module, "calls", lambda settings: 1)(settings))


def _known(connection: psycopg.Connection, group: Group, model: str) -> Each | None:
    asked = {"stage": group.short, "model": model, "lately": LATELY}
    row = connection.execute(_KNOWN, asked).fetchone()
    if row is None or row[4] < ENOUGH:
        return None
    calls, inputs, outputs, seconds, records = row
    return Each(
        calls / records, float(inputs) / records, float(outputs) / records, seconds, records, True
    )


def _rendered(
    connection: psycopg.Connection, settings: Settings, group: Group, parts: Sequence[str]
) -> Each | None:
    """By the calls that the stage would make for stored records. None where none is stored."""
    rows = connection.execute(_SAMPLES, [group.short, SAMPLES]).fetchall()
    if not rows:
        return None
    records = [
        Record(id, kind, platform, orjson.loads(value), tuple(parts))
        for id, kind, platform, value in rows
    ]
    module = _module(settings, group)
    recorder = Recorder(settings)
    options = {**group.options, "asker": recorder}
    module.build(Context(settings, group.short, options))(records)
    made = recorder.requests
    if not made:
        return None
    # A stage whose calls follow from one another shows but the first of them.
    each = _follow(settings, module) / len(records)
    answered = sum(request.output_tokens for request in made)
    return Each(
        len(made) * each,
        sum(request.input_tokens for request in made) * each,
        answered * each,
        answered / len(made) / _SPEED,
        len(records),
        False,
    )


class Recorder:
    """Stands in for an Asker: notes what would be sent, and answers nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._endpoint = endpoint.named(settings)
        self.model = self._endpoint.model
        self.requests: list[packing.Request] = []

    def ask(
        self, task: packing.Task, items: Sequence[packing.Item], *, since: float | None = None
    ) -> list[Failed]:
        for start in range(0, len(items), task.pack):
            some = items[start : start + task.pack]
            self.requests.append(packing.request(self._settings, self._endpoint, task, some))
        return [Failed("it was only estimated", None) for _ in items]

    def kept(self, record: str, set: int, prompt: object) -> dict[str, dict[str, Any]]:
        return {}

    def order(self, record: str) -> Order:
        return Order()

    def known(self, task: object, item: object) -> bool:
        return False

    def close(self) -> None:
        pass


def _cost(settings: Settings, model: str, records: int, each: Each | None) -> Decimal | None:
    if each is None:
        return None
    inputs, outputs = round(records * each.input_tokens), round(records * each.output_tokens)
    return prices.cost(settings, model, inputs, outputs)


def _seconds(settings: Settings, group: Group, records: int, each: Each) -> float:
    """At the least: by requests a minute, tokens a minute, and calls at once."""
    llm = settings.llm
    share = llm.shares.get(group.short, 1.0)
    calls = records * each.calls
    tokens = records * (each.input_tokens + each.output_tokens)
    found = [calls * each.seconds / (group.workers * llm.concurrency)]
    if llm.requests_per_minute:
        found.append(60 * calls / max(llm.requests_per_minute * share, 1))
    if llm.tokens_per_minute:
        found.append(60 * tokens / (llm.tokens_per_minute * share))
    return max(found)
