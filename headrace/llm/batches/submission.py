"""A batch on its way to the provider. Whoever is killed at any of these steps goes on with it:

    make     the batch and its requests, in one transaction, under a name of its own
    check    requests that a forgotten record was in are taken out, and a file that held them
    reserve  the cost of each request, in the ledger, as a call
    upload   the file, named after the batch
    create   the batch, with its name in the metadata
    note     the provider's id

Before a step is done once more, the provider is asked whether it has a batch, or a file, of that
name: nothing is submitted twice.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import IO, Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from headrace.config import LLM, Settings
from headrace.errors import Pause, Retry
from headrace.llm import admission
from headrace.llm.admission import Planned, Taken, Wait
from headrace.llm.batches import requests
from headrace.llm.ledger import Item, Ledger
from headrace.log import get

log = get(__name__)

ENDPOINT = "/v1/chat/completions"
METADATA = "headrace"  # the key under which a batch carries our name
FULL = "full"  # status of a batch that did not find room with the provider

_OPEN = """
SELECT stage, provider, model, count(*) AS requests, sum(bytes)::bigint AS bytes,
       extract(epoch FROM now() - min(made_at))::float8 AS seconds, bool_or(urgent) AS urgent,
       EXISTS (SELECT FROM llm_batches b WHERE b.provider = r.provider AND b.model = r.model
               AND b.status = 'full' AND b.done_at > now() - make_interval(secs => %s)) AS full
FROM llm_requests r WHERE state = 'waiting' GROUP BY 1, 2, 3 ORDER BY min(made_at)
"""
_NEXT = """
SELECT id, bytes, cost FROM llm_requests
WHERE state = 'waiting' AND stage = %s AND provider = %s AND model = %s
ORDER BY made_at, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
_MAKE = """
INSERT INTO llm_batches (name, stage, provider, model, requests) VALUES (%s, %s, %s, %s, %s)
RETURNING id
"""
_TAKE = """
UPDATE llm_requests SET state = 'sent', batch = %s, urgent = false WHERE id = ANY(%s)
"""
_MAKING = "SELECT * FROM llm_batches WHERE state = 'making' ORDER BY id"

_EMPTIED = """
SELECT id, call FROM llm_requests WHERE batch = %s AND state = 'sent' AND body IS NULL
"""
_NO_FILE = "UPDATE llm_batches SET file = NULL WHERE id = %s"
_STALE = """
SELECT id FROM llm_requests
WHERE state = 'waiting' AND stage = %s AND provider = %s AND model = %s LIMIT 10000
"""

# What was reserved when its row could not be told of it any more.
_ADOPT = """
UPDATE llm_requests r SET call = c.call
FROM llm_request_items i JOIN llm_claims c ON c.key = i.key
WHERE r.batch = %s AND r.call IS NULL AND r.state = 'sent' AND i.request = r.id AND i.place = 0
  AND c.call IS NOT NULL
"""
_UNRESERVED = """
SELECT r.id, r.task, r.input_tokens, r.output_tokens, r.cost, r.round,
       array_agg(i.key ORDER BY i.place) AS keys
FROM llm_requests r JOIN llm_request_items i ON i.request = r.id
WHERE r.batch = %s AND r.state = 'sent' AND r.call IS NULL AND r.body IS NOT NULL
GROUP BY r.id ORDER BY r.id LIMIT 1000
"""
_RESERVED = "UPDATE llm_requests SET call = %s WHERE id = %s"
_GIVE_BACK = """
UPDATE llm_requests SET state = 'waiting', batch = NULL
WHERE batch = %s AND state = 'sent' AND call IS NULL AND body IS NOT NULL
"""
_BODIES = """
SELECT id, body FROM llm_requests WHERE batch = %s AND state = 'sent' AND body IS NOT NULL
ORDER BY id
"""
_UPLOADED = "UPDATE llm_batches SET file = %s WHERE id = %s"
_SENT = """
UPDATE llm_batches SET state = 'sent', batch = %s, status = %s, requests = %s, error = NULL,
  sent_at = now()
WHERE id = %s
"""


class Waiting(NamedTuple):
    """Requests of one stage that wait for one model of one provider."""

    stage: str
    provider: str
    model: str
    requests: int
    bytes: int
    seconds: float
    urgent: bool
    full: bool

    def due(self, llm: LLM) -> bool:
        if self.full:
            return False
        return (
            self.urgent
            or self.requests >= llm.batch_requests
            or self.bytes >= llm.batch_bytes
            or self.seconds >= llm.batch_age_seconds
        )


def waiting(connection: psycopg.Connection, llm: LLM) -> list[Waiting]:
    return [Waiting(*row) for row in connection.execute(_OPEN, [llm.batch_age_seconds]).fetchall()]


def make(connection: psycopg.Connection, settings: Settings, of: Waiting) -> bool:
    """A batch of the oldest requests, no more than there is money for; False where there are none
    any more. One is taken however little is left: the ledger says what is wrong then."""
    llm = settings.llm
    with connection.transaction():
        rows = connection.execute(
            _NEXT, [of.stage, of.provider, of.model, llm.batch_requests]
        ).fetchall()
        left = admission.left(connection, settings)
        chosen: list[uuid.UUID] = []
        size, price = 0, Decimal(0)
        for name, length, cost in rows:
            size += length + 200  # what stands around a body in its line
            price += cost or 0
            if chosen and (size > llm.batch_bytes or (left is not None and price > left)):
                break
            chosen.append(name)
        if not chosen:
            return False
        name = f"{settings.project}.{of.stage}.{uuid.uuid4().hex[:12]}"
        row = connection.execute(
            _MAKE, [name, of.stage, of.provider, of.model, len(chosen)]
        ).fetchone()
        assert row is not None
        connection.execute(_TAKE, [row[0], chosen])
    return True


def making(connection: psycopg.Connection) -> list[Any]:
    """Batches that are not certainly with the provider yet."""
    return connection.cursor(row_factory=namedtuple_row).execute(_MAKING).fetchall()


def drop(connection: psycopg.Connection, of: Waiting, why: str) -> int:
    """Nobody asks for these answers any more: what is asked now is asked for instead."""
    count = 0
    while rows := connection.execute(_STALE, [of.stage, of.provider, of.model]).fetchall():
        requests.over(connection, [name for (name,) in rows], why)
        count += len(rows)
    return count


def submit(
    connection: psycopg.Connection, ledger: Ledger, client: Any, llm: LLM, batch: Any
) -> None:
    """All steps that are left. `client` is the openai client. Raises Pause where a budget is spent
    before anything could be reserved, and what the client raises."""
    created = _created(client, batch)
    if created is None:
        file = _checked(connection, ledger, client, batch)
        refused = _reserve(connection, ledger, batch)
        reserved = _count(connection, batch)
        if not reserved:
            connection.execute("DELETE FROM llm_batches WHERE id = %s", [batch.id])
            if refused is not None:
                raise refused
            return
        if file is None:
            with tempfile.TemporaryFile() as lines:
                _write(connection, batch, lines)
                lines.seek(0)
                file = client.files.create(file=(_file(batch), lines), purpose="batch").id
            log.info("uploaded a batch", batch=batch.name, requests=reserved, file=file)
        # Whoever has lost the connection, and with it the lock, comes no further.
        connection.execute(_UPLOADED, [file, batch.id])
        created = client.batches.create(
            input_file_id=file,
            endpoint=ENDPOINT,
            completion_window=llm.batch_window,
            metadata={METADATA: batch.name},
        )
    connection.execute(_SENT, [created.id, created.status, _count(connection, batch), batch.id])
    log.info("submitted a batch", batch=batch.name, id=created.id)


def _file(batch: Any) -> str:
    return f"{batch.name}.jsonl"


def _created(client: Any, batch: Any) -> Any:
    """The provider's batch of this name, if it was created before."""
    since = batch.made_at.timestamp() - 3600  # clocks differ
    for found in client.batches.list(limit=100):
        if (found.metadata or {}).get(METADATA) == batch.name:
            return found
        if found.created_at < since:
            return None
    return None


def _uploaded(client: Any, batch: Any) -> str | None:
    """The file of this name, if it was uploaded before."""
    since = batch.made_at.timestamp() - 3600
    for found in client.files.list(purpose="batch"):
        if found.filename == _file(batch) and found.created_at >= since:
            return str(found.id)
    return None


def _checked(connection: psycopg.Connection, ledger: Ledger, client: Any, batch: Any) -> str | None:
    """The file that was uploaded before, if what it holds may still be sent. Of what was forgotten
    meanwhile nothing is: the others of its request are asked for without it."""
    connection.execute(_ADOPT, [batch.id])
    file: str | None = batch.file or _uploaded(client, batch)
    emptied = connection.execute(_EMPTIED, [batch.id]).fetchall()
    if emptied and file is not None:
        client.files.delete(file)
        connection.execute(_NO_FILE, [batch.id])
        file = None
    for name, call in emptied:
        if call is not None:
            ledger.adopt(call, list(items(connection, name).values()))
            ledger.unsent(call, "a record was forgotten", down=False)
        requests.over(connection, [name])
    return file


def _reserve(connection: psycopg.Connection, ledger: Ledger, batch: Any) -> Pause | None:
    """A call in the ledger for each request. Where the budget ends, what is left waits again."""
    cursor = connection.cursor(row_factory=namedtuple_row)
    while rows := cursor.execute(_UNRESERVED, [batch.id]).fetchall():
        row: Any
        for row in rows:
            planned = Planned(
                model=batch.model,
                transport="batch",
                reason=f"round {row.round + 1}" if row.round else "first",
                keys=[bytes(key) for key in row.keys],
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                cost=row.cost,
                prompt=row.task["prompt"],
                version=row.task["version"],
            )
            try:
                admitted = ledger.admit(planned)
            except Pause as pause:
                connection.execute(_GIVE_BACK, [batch.id])
                return pause
            except Taken:  # somebody asks for them directly
                requests.over(connection, [row.id])
                continue
            if isinstance(admitted, Wait):
                raise Retry(admitted.seconds, admitted.why)
            connection.execute(_RESERVED, [admitted.call, row.id])
    return None


def _count(connection: psycopg.Connection, batch: Any) -> int:
    row = connection.execute(
        "SELECT count(*) FROM llm_requests WHERE batch = %s AND state = 'sent'", [batch.id]
    ).fetchone()
    return int(row[0]) if row else 0


def _write(connection: psycopg.Connection, batch: Any, lines: IO[bytes]) -> None:
    for name, body in _bodies(connection, batch):
        line = f'{{"custom_id":"{name}","method":"POST","url":"{ENDPOINT}","body":{body}}}\n'
        lines.write(line.encode())


def _bodies(connection: psycopg.Connection, batch: Any) -> Iterator[tuple[uuid.UUID, str]]:
    """By a cursor of the server's: a file may hold 200 MB."""
    with connection.transaction(), closing(connection.cursor("bodies")) as cursor:
        yield from cursor.execute(_BODIES, [batch.id])


def items(connection: psycopg.Connection, request: uuid.UUID) -> dict[int, Item]:
    """What a request asks for, by the places of their numbers."""
    query = (
        'SELECT place, key, record_id, "set", part FROM llm_request_items WHERE request = %s'
        " ORDER BY place"
    )
    rows = connection.execute(query, [request]).fetchall()
    return {place: (bytes(key), *rest) for place, key, *rest in rows}
