"""What language models cost, by the ledger: sums over its calls, and a run's own share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Literal

import psycopg
from psycopg.rows import class_row

By = Literal["stage", "run", "model", "day"]

NOBODYS = "–"  # calls that brought no answer, and what is left of those whose records are forgotten

_SUMS = """
SELECT {column} AS name, count(*)::bigint AS calls,
  coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
  coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
  sum(cost) AS cost,
  count(*) FILTER (WHERE repeats <> '{{}}')::bigint AS repeated,
  coalesce(sum(cost) FILTER (WHERE repeats <> '{{}}'), 0) AS repeated_cost,
  count(*) FILTER (WHERE state = 'failed')::bigint AS failed,
  count(*) FILTER (WHERE state = 'lost')::bigint AS lost,
  count(*) FILTER (WHERE state = 'sent')::bigint AS under_way,
  count(*) FILTER (WHERE NOT priced AND state = 'answered')::bigint AS unpriced
FROM llm_calls {where} GROUP BY 1 ORDER BY 1
"""
_COLUMNS = {"stage": "stage", "model": "model", "day": "day::text"}

# A call may hold records of several runs: each has its share of what was answered.
_BY_RUN = """
WITH shares AS (
  SELECT coalesce(d.run, %(nobody)s) AS name, a.call, count(*)::numeric AS answers,
    sum(a.cost) AS cost
  FROM llm_answers a
  LEFT JOIN records r ON r.id = a.record_id LEFT JOIN dim_run d ON d.id = r.run_id
  GROUP BY 1, 2
), parts AS (
  SELECT *, answers / sum(answers) OVER (PARTITION BY call) AS part FROM shares
)
SELECT p.name, count(*)::bigint AS calls,
  round(coalesce(sum(c.input_tokens * p.part), 0))::bigint AS input_tokens,
  round(coalesce(sum(c.output_tokens * p.part), 0))::bigint AS output_tokens,
  sum(p.cost) AS cost,
  count(*) FILTER (WHERE c.repeats <> '{}')::bigint AS repeated,
  coalesce(sum(p.cost) FILTER (WHERE c.repeats <> '{}'), 0) AS repeated_cost,
  0::bigint AS failed, 0::bigint AS lost, 0::bigint AS under_way,
  count(*) FILTER (WHERE NOT c.priced)::bigint AS unpriced
FROM parts p JOIN llm_calls c ON c.id = p.call GROUP BY 1 ORDER BY 1
"""
_OF_RUN = """
SELECT count(DISTINCT a.call)::bigint, coalesce(sum(a.cost), 0)
FROM records r JOIN llm_answers a ON a.record_id = r.id
WHERE r.run_id = (SELECT id FROM dim_run WHERE run = %s)
"""


@dataclass(frozen=True, slots=True)
class Sum:
    """Calls of one stage, run, model or day. Costs in USD.

    cost          with what is reserved for calls under way, and what lost ones may have cost
    repeated      calls that ask again for what was in flight when a worker died
    failed, lost, under_way   part of the calls; not told by run
    unpriced      answered, without a price in the settings
    """

    name: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: Decimal
    repeated: int
    repeated_cost: Decimal
    failed: int
    lost: int
    under_way: int
    unpriced: int

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["cost"], found["repeated_cost"] = float(self.cost), float(self.repeated_cost)
        return found


def read(connection: psycopg.Connection, by: By = "stage") -> list[Sum]:
    """One row for each. By run too they add up to all calls: what is no run's is nobody's."""
    cursor = connection.cursor(row_factory=class_row(Sum))
    if by != "run":
        return cursor.execute(_SUMS.format(column=_COLUMNS[by], where="").encode()).fetchall()
    rows = cursor.execute(_BY_RUN, {"nobody": NOBODYS}).fetchall()
    named = [row for row in rows if row.name != NOBODYS]
    return [*named, *_rest(total(connection), rows, named)]


def total(connection: psycopg.Connection) -> Sum | None:
    """All calls together; None where there was none."""
    cursor = connection.cursor(row_factory=class_row(Sum))
    return cursor.execute(_SUMS.format(column="''::text", where="").encode()).fetchone()


def _rest(whole: Sum | None, rows: Sequence[Sum], named: Sequence[Sum]) -> list[Sum]:
    if whole is None:
        return []
    cost = whole.cost - sum((row.cost for row in named), Decimal(0))
    nobodys = [row for row in rows if row.name == NOBODYS]
    calls = whole.failed + whole.lost + whole.under_way + sum(row.calls for row in nobodys)
    if not calls and abs(cost) < Decimal("1e-9"):
        return []
    return [
        Sum(
            NOBODYS,
            calls,
            max(whole.input_tokens - sum(row.input_tokens for row in named), 0),
            max(whole.output_tokens - sum(row.output_tokens for row in named), 0),
            max(cost, Decimal(0)),
            max(whole.repeated - sum(row.repeated for row in named), 0),
            max(
                whole.repeated_cost - sum((row.repeated_cost for row in named), Decimal(0)),
                Decimal(0),
            ),
            whole.failed,
            whole.lost,
            whole.under_way,
            sum(row.unpriced for row in nobodys),
        )
    ]


def of_run(connection: psycopg.Connection, run: str) -> tuple[int, Decimal]:
    """(calls, USD) of the answers to a run's records."""
    row = connection.execute(_OF_RUN, [run]).fetchone()
    return (int(row[0]), Decimal(row[1])) if row else (0, Decimal(0))
