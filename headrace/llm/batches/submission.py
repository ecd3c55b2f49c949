"""A batch on its way to the provider. Whoever is killed at any of these steps goes on with it:

    make     the batch and its requests, in one transaction, under a name of its own
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
from typing import IO, Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from headrace.config import LLM
from headrace.errors import Pause
from headrace.llm.admission import Planned, Wait
from headrace.llm.ledger import Item, Ledger
from headrace.log import get

log = get(__name__)

ENDPOINT = "/v1/chat/completions"
METADATA = "headrace"  # the key under which a batch carries our name

_OPEN = """
SELECT stage, provider, model, count(*) AS requests, sum(bytes)::bigint AS bytes,
       extract(epoch FROM now() - min(made_at))::float8 AS seconds, bool_or(urgent) AS urgent
FROM llm_requests WHERE state = 'waiting' GROUP BY 1, 2, 3 ORDER BY min(made_at)
"""
_NEXT = """
SELECT id, bytes FROM llm_requests
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
# Forgotten since: there is nothing to send any more, and the others of the call are asked anew.
_EMPTIED = """
UPDATE llm_requests SET state = 'direct', batch = NULL
WHERE batch = %s AND state = 'sent' AND body IS NULL
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

    def due(self, llm: LLM) -> bool:
        return (
            self.urgent
            or self.requests >= llm.batch_requests
            or self.bytes >= llm.batch_bytes
            or self.seconds >= llm.batch_age_seconds
        )


def waiting(connection: psycopg.Connection) -> list[Waiting]:
    return [Waiting(*row) for row in connection.execute(_OPEN).fetchall()]


def make(connection: psycopg.Connection, llm: LLM, of: Waiting, project: str) -> bool:
    """A batch of the oldest requests; False where there are none any more."""
    with connection.transaction():
        rows = connection.execute(
            _NEXT, [of.stage, of.provider, of.model, llm.batch_requests]
        ).fetchall()
        chosen: list[uuid.UUID] = []
        size = 0
        for name, length in rows:
            size += length + 200  # what stands around a body in its line
            if chosen and size > llm.batch_bytes:
                break
            chosen.append(name)
        if not chosen:
            return False
        name = f"{project}.{of.stage}.{uuid.uuid4().hex[:12]}"
        row = connection.execute(
            _MAKE, [name, of.stage, of.provider, of.model, len(chosen)]
        ).fetchone()
        assert row is not None
        connection.execute(_TAKE, [row[0], chosen])
    return True


def making(connection: psycopg.Connection) -> list[Any]:
    """Batches that are not certainly with the provider yet."""
    return connection.cursor(row_factory=namedtuple_row).execute(_MAKING).fetchall()


def submit(
    connection: psycopg.Connection, ledger: Ledger, client: Any, llm: LLM, batch: Any
) -> None:
    """All steps that are left. `client` is the openai client. Raises Pause where a budget is spent
    before anything could be reserved, and what the client raises."""
    created = _created(client, batch)
    if created is None:
        refused = _reserve(connection, ledger, batch)
        reserved = _count(connection, batch)
        if not reserved:
            connection.execute("DELETE FROM llm_batches WHERE id = %s", [batch.id])
            if refused is not None:
                raise refused
            return
        file = batch.file or _uploaded(client, batch)
        if file is None:
            with tempfile.TemporaryFile() as lines:
                _write(connection, batch, lines)
                lines.seek(0)
                file = client.files.create(file=(_file(batch), lines), purpose="batch").id
            log.info("uploaded a batch", batch=batch.name, requests=reserved, file=file)
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


def _reserve(connection: psycopg.Connection, ledger: Ledger, batch: Any) -> Pause | None:
    """A call in the ledger for each request. Where the budget ends, what is left waits again."""
    connection.execute(_EMPTIED, [batch.id])
    connection.execute(_ADOPT, [batch.id])
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
            assert not isinstance(admitted, Wait), "batches wait for no rate limit"
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


def items(connection: psycopg.Connection, request: uuid.UUID) -> list[Item]:
    """What a request asks for, in the order of its numbers."""
    query = (
        'SELECT key, record_id, "set", part FROM llm_request_items WHERE request = %s'
        " ORDER BY place"
    )
    rows = connection.execute(query, [request]).fetchall()
    return [(bytes(key), record, number, part) for key, record, number, part in rows]
