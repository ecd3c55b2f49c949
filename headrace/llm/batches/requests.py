"""Requests that wait for a batch: rows written by stages, taken by the courier."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

if TYPE_CHECKING:
    from headrace.llm.ledger import Item, Key, Ledger

State = Literal["waiting", "sent", "answered", "direct", "queued"]

COURIER = "batches"  # the worker's name under which requests are claimed


class Told(NamedTuple):
    """What stands of an item: the state of its request, and how often that came back."""

    state: State
    round: int


@dataclass(frozen=True)
class Line:
    """One request. `items` in the order of their numbers; cost: USD at most, by the batch price."""

    body: dict[str, Any]
    items: Sequence[Item]
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
        return {"schema": self.schema, "pack": self.pack, **named}


_TOLD = """
SELECT i.key, r.state, r.round FROM llm_request_items i JOIN llm_requests r ON r.id = i.request
WHERE i.key = ANY(%s::bytea[])
"""

# The courier holds the claims from now on, for as long as it takes.
_PUT = """
WITH lines AS (
  SELECT * FROM unnest(%(ids)s::uuid[], %(bodies)s::text[], %(tasks)s::jsonb[], %(sizes)s::int[],
                       %(inputs)s::int[], %(outputs)s::int[], %(costs)s::numeric[])
    AS l (id, body, task, bytes, input_tokens, output_tokens, cost)
), made AS (
  INSERT INTO llm_requests (id, stage, provider, model, task, body, bytes, input_tokens,
                            output_tokens, cost)
  SELECT id, %(stage)s, %(provider)s, %(model)s, task, body, bytes, input_tokens, output_tokens,
         cost FROM lines
), asked AS (
  INSERT INTO llm_request_items (key, request, place, record_id, "set", part)
  SELECT * FROM unnest(%(keys)s::bytea[], %(of)s::uuid[], %(places)s::int[], %(records)s::text[],
                       %(sets)s::int[], %(parts)s::text[])
  ON CONFLICT (key) DO UPDATE SET request = excluded.request, place = excluded.place
)
UPDATE llm_claims SET owner = %(owner)s, until = 'infinity' WHERE key = ANY(%(keys)s::bytea[])
"""

_DONE = """
WITH gone AS (
  DELETE FROM llm_request_items WHERE key = ANY(%s::bytea[]) RETURNING request
)
DELETE FROM llm_requests r USING gone
WHERE r.id = gone.request AND r.state IN ('direct', 'queued')
  AND NOT EXISTS (SELECT FROM llm_request_items i
                  WHERE i.request = r.id AND i.key <> ALL(%s::bytea[]))
"""


def told(ledger: Ledger, keys: Collection[Key]) -> dict[Key, Told]:
    """Those of the items that a request was written for."""
    rows = ledger.ask(_TOLD, [list(keys)]) if keys else []
    return {bytes(row["key"]): Told(row["state"], row["round"]) for row in rows}


def put(ledger: Ledger, model: str, lines: Sequence[Line]) -> None:
    """Write requests for items that this worker holds, in one transaction; they are the courier's
    then."""
    if not lines:
        return
    bodies = [orjson.dumps(line.body).decode() for line in lines]
    items = [(item, line.id, place) for line in lines for place, item in enumerate(line.items)]
    ledger.ask(
        _PUT,
        {
            "stage": ledger.stage,
            "provider": ledger.provider,
            "model": model,
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
        },
    )
    ledger.hand_over([item[0] for item, _, _ in items])


def done(ledger: Ledger, keys: Collection[Key]) -> None:
    """These items were asked directly after all: their requests are over."""
    if keys:
        ledger.ask(_DONE, [list(keys), list(keys)])
