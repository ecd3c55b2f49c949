"""How things stand with the provider: limits used, circuit, budgets, what is under way."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import dict_row

from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.llm import admission, endpoint, prices
from headrace.words import count

_NOW = """
SELECT now() AS now, p.hold_until, p.failures, p.error, p.open_until,
  (SELECT coalesce(spent, 0) FROM llm_spent
   WHERE scope = 'day ' || (now() AT TIME ZONE %(zone)s)::date) AS today,
  (SELECT coalesce(spent, 0) FROM llm_spent WHERE scope = 'session ' || %(session)s) AS session,
  (SELECT count(*) FROM llm_turns WHERE provider = %(provider)s AND at > now()) AS waiting,
  (SELECT max(at) FROM llm_turns WHERE provider = %(provider)s AND at > now()) AS last_turn
FROM (SELECT) AS one LEFT JOIN llm_providers p ON p.provider = %(provider)s
"""
_WINDOW = """
SELECT stage, count(*) AS calls, sum(tokens)::bigint AS tokens FROM llm_calls
WHERE provider = %s AND transport = 'direct' AND sent_at > now() - interval '60 seconds'
GROUP BY 1 ORDER BY 1
"""
_UNDER_WAY = """
SELECT count(*) AS calls, min(sent_at) AS oldest, coalesce(sum(cost), 0) AS cost
FROM llm_calls WHERE state = 'sent' AND transport = %s
  AND id IN (SELECT call FROM llm_claims WHERE until > now() AND call IS NOT NULL)
"""
# What is with the provider is counted by batches: their requests may be many, and large.
_IN_FLIGHT = """
SELECT g.stage,
  (SELECT count(*) FROM llm_requests r WHERE r.stage = g.stage AND r.state = 'waiting'),
  (SELECT coalesce(sum(b.requests - b.answered - b.again), 0) FROM llm_batches b
   WHERE b.stage = g.stage AND b.state <> 'done')::bigint,
  (SELECT extract(epoch FROM now() - min(r.made_at))::float8 FROM llm_requests r
   WHERE r.stage = g.stage AND r.state IN ('waiting', 'sent'))
FROM unnest(%s::text[]) AS g (stage)
"""
_REFUSED = """
SELECT stage, scope, spent, budget, more, reason, at FROM llm_refusals
WHERE until IS NULL OR until > now() ORDER BY stage
"""
_STUCK = """
SELECT stage, name, error FROM llm_batches WHERE state <> 'done' AND error IS NOT NULL ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a group waits, in one line, and since when at the latest. `budget`: one is spent."""

    reason: str
    budget: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class InFlight:
    """Requests of a group that go by batches: those that wait for one, those that the provider has,
    and the seconds since the oldest of them was made."""

    waiting: int
    sent: int
    seconds: float

    def __str__(self) -> str:
        from headrace.backlog.report import span

        requests = count(self.waiting + self.sent, "request")
        sent = f", {self.sent:,} with the provider" if self.waiting and self.sent else ""
        return f"{requests} in batches{sent}, the oldest for {span(self.seconds)}"

    def as_dict(self) -> dict[str, float]:
        return {"waiting": self.waiting, "sent": self.sent, "oldest_seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class UnderWay:
    calls: int
    oldest: datetime | None
    reserved: Decimal


@dataclass(frozen=True, slots=True)
class Standing:
    """used: (calls, tokens) of the last minute by group; waits: why, by group; stuck: batches that
    wait, and why; problems: what the settings have against asking."""

    provider: str
    model: str
    embedded: bool
    now: datetime
    used: dict[str, tuple[int, int]]
    waiting: int
    last_turn: datetime | None
    hold_until: datetime | None
    failures: int
    error: str | None
    open_until: datetime | None
    today: Decimal
    session: Decimal
    direct: UnderWay
    batch: UnderWay
    waits: dict[str, Refused]
    stuck: list[str]
    problems: list[str]

    @property
    def requests(self) -> int:
        return sum(calls for calls, _ in self.used.values())

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.used.values())


def read(connection: psycopg.Connection, settings: Settings) -> Standing:
    found = endpoint.named(settings)
    cursor = connection.cursor(row_factory=dict_row)
    asked = {
        "provider": found.provider,
        "zone": settings.scheduler.zone,
        "session": settings.llm.session or "",
    }
    row = cursor.execute(_NOW, asked).fetchone()
    assert row is not None
    window = cursor.execute(_WINDOW, [found.provider]).fetchall()
    return Standing(
        provider=found.provider,
        model=found.model,
        embedded=found.embedded,
        now=row["now"],
        used={one["stage"]: (one["calls"], one["tokens"]) for one in window},
        waiting=row["waiting"],
        last_turn=row["last_turn"],
        hold_until=_ahead(row["hold_until"], row["now"]),
        failures=row["failures"] or 0,
        error=row["error"],
        open_until=_ahead(row["open_until"], row["now"]),
        today=row["today"] or Decimal(0),
        session=row["session"] or Decimal(0),
        direct=_under_way(cursor, "direct"),
        batch=_under_way(cursor, "batch"),
        waits=refused(connection, settings),
        stuck=stuck(connection),
        problems=problems(settings),
    )


def refused(connection: psycopg.Connection, settings: Settings) -> dict[str, Refused]:
    """By group, why its last call was not sent, or brought nothing."""
    cursor = connection.cursor(row_factory=dict_row)
    found = {}
    for row in cursor.execute(_REFUSED):
        budget = row["reason"] is None
        reason = row["reason"] or admission.refusal(
            row["scope"], row["spent"], row["budget"], row["more"], settings
        )
        found[row["stage"]] = Refused(reason, budget, row["at"])
    return found


def in_flight(connection: psycopg.Connection, groups: Collection[str]) -> dict[str, InFlight]:
    """By group, where there are any."""
    rows = connection.execute(_IN_FLIGHT, [list(groups)]).fetchall() if groups else []
    return {
        stage: InFlight(waiting, max(sent, 0), seconds)
        for stage, waiting, sent, seconds in rows
        if seconds is not None
    }


def stuck(connection: psycopg.Connection) -> list[str]:
    """What batches wait for that cannot be sent or collected, a line each."""
    rows = connection.execute(_STUCK).fetchall()
    return [f"{stage}: batch {name}: {error}" for stage, name, error in rows]


def problems(settings: Settings) -> list[str]:
    """What the settings have against asking at all, a line each."""
    found = []
    for check in (lambda: endpoint.check(settings), lambda: _priced(settings)):
        try:
            check()
        except ConfigError as error:
            found.append(str(error))
    return found


def _priced(settings: Settings) -> None:
    prices.check(settings, endpoint.named(settings).model)


def _under_way(cursor: psycopg.Cursor[dict[str, Any]], transport: str) -> UnderWay:
    row = cursor.execute(_UNDER_WAY, [transport]).fetchone()
    assert row is not None
    return UnderWay(row["calls"], row["oldest"], row["cost"])


def _ahead(at: datetime | None, now: datetime) -> datetime | None:
    return at if at is not None and at > now else None
