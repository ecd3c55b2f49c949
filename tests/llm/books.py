"""A ledger on a real PostgreSQL, and what a worker would do with it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from headrace import config
from headrace.llm.ledger import Admitted, Item, Key, Ledger, Planned, Reply, Wait
from tests.stores.conftest import Database

TABLES = (
    "llm_calls, llm_answers, llm_claims, llm_sets, llm_providers, llm_turns, llm_spent,"
    " llm_refusals, records"
)
UNLIMITED = {"llm.requests_per_minute": 1_000_000}


class Books:
    """The ledger's tables, empty, and workers that share them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.sql = database.sql
        self.sql(f"TRUNCATE {TABLES}")
        self._open: list[Ledger] = []
        self._numbers = itertools.count()

    def settings(self, **flags: Any) -> config.Settings:
        named = {key.replace("__", "."): value for key, value in flags.items()}
        before = self.database.settings
        assert before.postgres.dsn is not None
        return config.load(
            {
                "project": self.database.project,
                "postgres.dsn": before.postgres.dsn.get_secret_value(),
                **UNLIMITED,
                **named,
            }
        )

    def ledger(
        self, worker: str = "h-0", stage: str = "scores", *, window: float = 60.0, **flags: Any
    ) -> Ledger:
        self._open.append(Ledger(self.settings(**flags), stage, worker, window=window))
        return self._open[-1]

    def items(self, *names: str, set: int = 1) -> list[Item]:
        return [(key_of(name, set), f"post:reddit:{name}", set, "all") for name in names]

    def some(self, count: int) -> list[Item]:
        return self.items(*(f"n{next(self._numbers)}" for _ in range(count)))

    def lapse(self) -> None:
        """Every lease runs out."""
        self.sql("UPDATE llm_claims SET until = now() - interval '1 second'")

    def states(self) -> list[str]:
        return [state for (state,) in self.sql("SELECT state FROM llm_calls ORDER BY id")]

    def balanced(self) -> bool:
        """Whether the sums that budgets go by are those of the calls."""
        said = dict(self.sql("SELECT scope, spent FROM llm_spent"))
        for scope in ("day ", "session "):
            column = "day::text" if scope == "day " else "session"
            for name, total in self.sql(f"SELECT {column}, sum(cost) FROM llm_calls GROUP BY 1"):
                if said.pop(f"{scope}{name}", Decimal(0)) != total:
                    return False
        return not any(said.values())

    def close(self) -> None:
        for ledger in self._open:
            ledger.close()


def key_of(name: str, set: int = 1) -> Key:
    return hashlib.sha256(f"{name} {set}".encode()).digest()


def plan(items: Sequence[Item], **over: Any) -> Planned:
    told: dict[str, Any] = {
        "model": "m", "transport": "direct", "reason": "first", "input_tokens": 100,
        "output_tokens": 50, "cost": Decimal("0.10"), "prompt": "scores", "version": 3,
    }  # fmt: skip
    return Planned(keys=[item[0] for item in items], **told | over)


def admitted(answer: Admitted | Wait) -> int:
    assert isinstance(answer, Admitted), answer
    return answer.call


def buy(ledger: Ledger, items: Sequence[Item], **over: Any) -> int:
    """One call for all of these items, from claim to answer."""
    claimed = ledger.claim(items)
    assert claimed.mine.keys() == {item[0] for item in items}
    repeats = {call for call in claimed.mine.values() if call is not None}
    call = admitted(ledger.admit(plan(items, repeats=repeats, **over)))
    ledger.settle(call, reply(), {item[0]: {"of": item[1]} for item in items})
    return call


def reply(cost: str | None = "0.08", **over: Any) -> Reply:
    told: dict[str, Any] = {"input_tokens": 90, "output_tokens": 30, "seconds": 1.5}
    return Reply(cost=None if cost is None else Decimal(cost), **told | over)
