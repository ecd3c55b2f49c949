"""Requests that wait for a batch: rows written by stages, taken by the courier."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from headrace.llm.admission import Taken
from headrace.schedule import duration_ms

if TYPE_CHECKING:
    import psycopg

    from headrace.config import LLM
    from headrace.llm.ledger import Item, Key, Ledger

State = Literal["waiting", "sent", "over", "direct", "queued"]

COURIER = "batches"  # the worker's name under which requests are claimed


class Told(NamedTuple):
    """What stands of an item: the state of its request, and how often that came back."""

    state: State
    round: int


@dataclass(frozen=True)
class Line:
    """One request. `items` in the order of their numbers; `alone`: of each, the parts that alone
    are asked for of its record, with commas; cost: USD at most, by the batch price."""

    body: dict[str, Any]
    items: Sequence[Item]
    alone: Sequence[str]
    schema: dict[str, Any]
    pack: int
    prompt: str
    version: int
    input_tokens: int
    output_tokens: int
    cost: Decimal | None
    id: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def task(self) -> dict[str, Any]:
        named = {"prompt": self.prompt, "version": self.version}
        return {"schema": self.schema, "pack": self.pack, "items": len(self.items), **named}


_TOLD = """
SELECT i.key, r.state, r.round FROM llm_request_items i JOIN llm_requests r ON r.id = i.request
WHERE i.key = ANY(%s::bytea[])
"""

# The courier holds the claims from now on, for as long as it takes. Nothing is written where one of
# them is another's by now; written twice it comes to the same.
_PUT = """
WITH held AS (
  SELECT key FROM llm_claims WHERE key = ANY(%(keys)s::bytea[])
    AND owner IN (%(mine)s, %(owner)s) FOR UPDATE
), whole AS (
  SELECT FROM held HAVING count(*) = cardinality(%(keys)s::bytea[])
), lines AS (
  SELECT l.* FROM whole, unnest(%(ids)s::uuid[], %(bodies)s::text[], %(tasks)s::jsonb[],
      %(sizes)s::int[], %(inputs)s::int[], %(outputs)s::int[], %(costs)s::numeric[])
    AS l (id, body, task, bytes, input_tokens, output_tokens, cost)
), made AS (
  INSERT INTO llm_requests (id, stage, provider, model, task, body, bytes, input_tokens,
                            output_tokens, cost)
  SELECT id, %(stage)s, %(provider)s, %(model)s, task, body, bytes, input_tokens, output_tokens,
         cost FROM lines
  ON CONFLICT (id) DO NOTHING
), asked AS (
  INSERT INTO llm_request_items (key, request, place, record_id, "set", part, alone)
  SELECT i.* FROM whole, unnest(%(keys)s::bytea[], %(of)s::uuid[], %(places)s::int[],
      %(records)s::text[], %(sets)s::int[], %(parts)s::text[], %(alone)s::text[])
    AS i (key, request, place, record_id, number, part, alone)
  ON CONFLICT (key) DO UPDATE SET request = excluded.request, place = excluded.place,
    alone = excluded.alone, queued = false
)
UPDATE llm_claims c SET owner = %(owner)s, until = 'infinity', call = NULL FROM whole
WHERE c.key = ANY(%(keys)s::bytea[]) RETURNING c.key
"""

_DONE = """
WITH gone AS (
  DELETE FROM llm_request_items i USING llm_requests r
  WHERE i.key = ANY(%(keys)s::bytea[]) AND r.id = i.request AND r.state = 'queued'
  RETURNING i.request
), over AS (
  DELETE FROM llm_requests r USING (SELECT DISTINCT request FROM gone) g
  WHERE r.id = g.request AND NOT EXISTS (
    SELECT FROM llm_request_items i WHERE i.request = r.id AND i.key <> ALL(%(keys)s::bytea[])
      AND NOT EXISTS (SELECT FROM llm_answers a WHERE a.key = i.key))
  RETURNING r.id
)
DELETE FROM llm_request_items i USING over
WHERE i.request = over.id AND i.key <> ALL(%(keys)s::bytea[])
"""

# Nobody holds their items any more, so whoever asks next may.
_OVER = """
WITH over AS (
  UPDATE llm_requests SET state = 'over', error = %(why)s WHERE id = ANY(%(ids)s)
  RETURNING id, stage
)
DELETE FROM llm_claims c USING over o JOIN llm_request_items i ON i.request = o.id
WHERE c.key = i.key AND c.owner = o.stage || '/' || %(courier)s
"""


def window_ms(llm: LLM) -> int:
    """How long a provider may take: `24h`, as its API writes it."""
    return duration_ms(llm.batch_window.replace("h", " hours").replace("d", " days"))


def told(ledger: Ledger, keys: Collection[Key]) -> dict[Key, Told]:
    """Those of the items that a request was written for."""
    rows = ledger.ask(_TOLD, [list(keys)]) if keys else []
    return {bytes(row["key"]): Told(row["state"], row["round"]) for row in rows}


def put(ledger: Ledger, model: str, lines: Sequence[Line]) -> None:
    """Write requests for items that this worker holds, in one transaction; they are the courier's
    then. Raises Taken where another has taken some of them over."""
    if not lines:
        return
    bodies = [orjson.dumps(line.body).decode() for line in lines]
    items = [(item, line.id, place) for line in lines for place, item in enumerate(line.items)]
    held = ledger.ask(
        _PUT,
        {
            "stage": ledger.stage,
            "provider": ledger.provider,
            "model": model,
            "mine": ledger.owner,
            "owner": f"{ledger.stage}/{COURIER}",
            "ids": [line.id for line in lines],
            "bodies": bodies,
            "tasks": [orjson.dumps(line.task).decode() for line in lines],
            "sizes": [len(body.encode()) for body in bodies],
            "inputs": [line.input_tokens for line in lines],
            "outputs": [line.output_tokens for line in lines],
            "costs": [line.cost for line in lines],
            "keys": [item[0] for item, _, _ in items],
            "of": [request for _, request, _ in items],
            "places": [place for _, _, place in items],
            "records": [item[1] for item, _, _ in items],
            "sets": [item[2] for item, _, _ in items],
            "parts": [item[3] for item, _, _ in items],
            "alone": [alone for line in lines for alone in line.alone],
        },
    )
    if not held:
        raise Taken
    ledger.hand_over([item[0] for item, _, _ in items])


def done(ledger: Ledger, keys: Collection[Key]) -> None:
    """These items were asked directly after all: what they came back from is over with them."""
    if keys:
        ledger.ask(_DONE, {"keys": list(keys)})


def over(connection: psycopg.Connection, ids: Sequence[uuid.UUID], why: str | None = None) -> None:
    """These requests are not sent (again): their records are queued, and whatever has no answer is
    asked for as if for the first time."""
    connection.execute(_OVER, {"ids": list(ids), "why": why, "courier": COURIER})
