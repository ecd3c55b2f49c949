"""Whether a call may be sent now: the circuit, the budgets, the limits of all workers together.

The decision is one function of the database's (llm_admit, migration 0009); here is what it is asked
and what its answer means.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

import psycopg

from headrace.config import LLM, Settings
from headrace.errors import Pause, Retry

WINDOW = 60.0  # seconds of a provider's limits
MARGIN = 0.02  # the window is longer by that, since a call takes its time to the provider
WAIT = 20.0  # the longest that a worker is told to wait; then it asks again, and keeps its place
LEASE = 60.0  # a claim outlives the time-out of a call by so many seconds


class Spent(Pause):
    """A budget is spent, and the ledger has noted it."""


class Taken(Retry):
    """What was about to be asked is another worker's by now."""

    def __init__(self) -> None:
        super().__init__(1.0, "another worker has taken over what this one was about to ask")


@dataclass(frozen=True, slots=True)
class Planned:
    """A call that is about to be sent.

    keys           of the items that it asks for; the first keeps its place in the queue
    input_tokens   estimate; output_tokens: at most so many
    cost           USD that it may cost at most; None where no price is known
    repeats        calls that were in flight when their worker died, of which this asks again
    prompt         its name; version: the prompt's
    """

    model: str
    transport: Literal["direct", "batch"]
    reason: str
    keys: Sequence[bytes]
    input_tokens: int
    output_tokens: int
    cost: Decimal | None = None
    repeats: Collection[int] = ()
    prompt: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """It is to be sent now, as this call of the ledger's."""

    call: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet: ask again in so many seconds. `why` goes after "waiting 3.2 s"."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider says of its limits (x-ratelimit-*); seconds until it counts anew."""

    remaining_requests: int | None = None
    reset_requests: float | None = None
    remaining_tokens: int | None = None
    reset_tokens: float | None = None

    @property
    def hold(self) -> float | None:
        """Seconds in which no call will be answered; None if some may be."""
        spent = (
            (self.remaining_requests, self.reset_requests),
            (self.remaining_tokens, self.reset_tokens),
        )
        return max((s for left, s in spent if left is not None and left <= 0 and s), default=None)


def lease(llm: LLM) -> timedelta:
    return timedelta(seconds=llm.timeout_seconds + LEASE)


def standing(settings: Settings, stage: str, window: float, margin: float) -> dict[str, Any]:
    """The parameters of llm_admit that do not change from call to call."""
    llm = settings.llm
    share = llm.shares.get(stage)
    return {
        "window": timedelta(seconds=window * (1 + margin)),
        "requests": llm.requests_per_minute or None,
        "most": llm.tokens_per_minute,
        "share": None if share is None or share >= 1 else share,
        "failures": llm.circuit_failures,
        "patience": timedelta(seconds=llm.timeout_seconds),
        "lease": lease(llm),
        "zone": settings.scheduler.zone,
        "daily": _usd(llm.daily_budget),
        "max": _usd(llm.max_cost),
        "session": llm.session or "",
    }


_LEFT = """
SELECT least(
  %(daily)s::numeric - coalesce((SELECT spent FROM llm_spent
    WHERE scope = 'day ' || (clock_timestamp() AT TIME ZONE %(zone)s)::date), 0),
  %(max)s::numeric - coalesce((SELECT spent FROM llm_spent
    WHERE scope = 'session ' || %(session)s), 0))
"""


def left(connection: psycopg.Connection, settings: Settings) -> Decimal | None:
    """USD that the budgets leave, None without a budget. Only a reservation makes sure."""
    llm = settings.llm
    asked = {
        "zone": settings.scheduler.zone,
        "daily": _usd(llm.daily_budget),
        "max": _usd(llm.max_cost),
        "session": llm.session or "",
    }
    row = connection.execute(_LEFT, asked).fetchone()
    return row[0] if row else None


def _usd(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def read(row: Mapping[str, Any], settings: Settings, stage: str, provider: str) -> Admitted | Wait:
    """The answer of llm_admit. Raises Pause where a budget is spent or the provider is down, Retry
    where another worker has taken the items over."""
    llm = settings.llm
    kind = row["kind"]
    if kind == "sent":
        return Admitted(row["call"])
    if kind == "taken":
        raise Taken
    if kind in ("day", "session"):
        budget = _usd(llm.daily_budget if kind == "day" else llm.max_cost) or Decimal(0)
        raise Spent(refusal(kind, row["used"], budget, Decimal(row["note"]), settings))
    seconds = float(row["seconds"])
    if kind == "open":
        said = f", the last with: {row['note']}" if row["note"] else ""
        raise Pause(
            f"circuit: {provider} did not answer {row['used']} calls in a row{said}; tried again"
            f" every {llm.circuit_seconds:g} s"
        )
    share = llm.shares.get(stage, 1.0)
    used = row["used"]
    if kind == "hold" and seconds > WINDOW:
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        raise Pause(f"llm: {provider} asks to wait until {until:%H:%M} UTC")
    if kind == "hold":
        why = f"since {provider} asks to"
    elif kind == "probe":
        why = f"while one call tries whether {provider} is back"
    elif kind == "requests":
        why = f"for the rate limit ({used:,} of {llm.requests_per_minute:,} a minute)"
    elif kind == "tokens":
        why = f"for the rate limit ({used:,} of {llm.tokens_per_minute:,} tokens a minute)"
    elif kind == "share":
        most = max(int((llm.requests_per_minute or 0) * share), 1)
        why = f"for the rate limit ({used:,} of {most:,} a minute for {stage})"
    else:
        most = int((llm.tokens_per_minute or 0) * share)
        why = f"for the rate limit ({used:,} of {most:,} tokens a minute for {stage})"
    # A moment more, so that the time has come by the database's clock too.
    return Wait(min(seconds + 0.001, WAIT), why)


def refusal(
    scope: str, spent: Decimal, budget: Decimal, more: Decimal | None, settings: Settings
) -> str:
    """Why a group pauses, in one line. `more`: what the call might have cost."""
    when, do = "in this session", "raise --max-cost"
    if scope == "day":
        when = "today"
        do = (
            f"goes on tomorrow 00:00 {settings.scheduler.zone}, or started again with a higher"
            " llm.daily_budget"
        )
    call = f", and the next call may cost {usd(more)}" if more else ""
    return f"budget: {usd(spent)} of {usd(budget)} spent {when}{call}; {do}"


def usd(value: Decimal | float) -> str:
    """ "$4.98"; small sums with as many digits as tell something: "$0.0031"."""
    amount = Decimal(str(value)) if isinstance(value, float) else value
    if amount and abs(amount) < Decimal("0.1"):
        digits = max(2, 1 - amount.adjusted())
        return f"${amount:.{min(digits, 8)}f}"
    return f"${amount:,.2f}"


def today(settings: Settings, now: datetime | None = None) -> str:
    """The day whose budget is in force, as the ledger writes it."""
    zone = ZoneInfo(settings.scheduler.zone)
    return (now or datetime.now(UTC)).astimezone(zone).date().isoformat()
