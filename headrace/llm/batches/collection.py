"""What became of a batch: usable answers into the ledger, the rest once more.

Completed, expired, failed or cancelled, all are read alike: whatever answers there are count, and a
request without one goes round again, at most `llm.batch_rounds` times; then it is asked directly.
Every line is joined by its request's id, and may be read twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
from psycopg.rows import namedtuple_row

from headrace.config import Settings
from headrace.llm import packing, prices
from headrace.llm.batches.submission import items
from headrace.llm.ledger import Ledger, Reply
from headrace.log import get
from headrace.schedule import duration_ms

log = get(__name__)

ENDED = frozenset({"completed", "expired", "failed", "cancelled"})
_LATE = timedelta(hours=1)  # after its window a batch is cancelled

_SENT = "SELECT * FROM llm_batches WHERE state = 'sent' ORDER BY id"
_REQUEST = """
SELECT id, call, round, task FROM llm_requests WHERE id = %s AND batch = %s AND state = 'sent'
"""
_LEFT = """
SELECT id, call, round, task FROM llm_requests WHERE batch = %s AND state = 'sent'
ORDER BY id LIMIT 1000
"""
_ANSWERED = "UPDATE llm_requests SET state = 'answered', error = NULL WHERE id = %s"
_AGAIN = """
UPDATE llm_requests SET state = %s, round = round + 1, call = NULL, error = %s
WHERE id = %s
"""
_COUNT = """
UPDATE llm_batches SET answered = answered + %s, again = again + %s WHERE id = %s
"""


def sent(connection: psycopg.Connection) -> list[Any]:
    """Batches that the provider has."""
    return connection.cursor(row_factory=namedtuple_row).execute(_SENT).fetchall()


class Collector:
    """Reads what became of the batches of one stage. `client` is the openai client."""

    def __init__(
        self, settings: Settings, connection: psycopg.Connection, ledger: Ledger, client: Any
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._ledger = ledger
        self._client = client

    def look(self, batch: Any) -> bool:
        """Whether the batch is done, and all of it collected."""
        found = self._client.batches.retrieve(batch.batch)
        self._connection.execute(
            "UPDATE llm_batches SET status = %s WHERE id = %s", [found.status, batch.id]
        )
        if found.status not in ENDED:
            self._see_to_its_end(batch, found)
            return False
        for name in (found.output_file_id, found.error_file_id):
            if name:
                for line in self._lines(name):
                    self._read(batch, line)
        said = _errors(found)
        while rows := self._rows(_LEFT, [batch.id]):
            for row in rows:
                self._again(batch, row, said or f"the batch is {found.status}")
        self._connection.execute(
            "UPDATE llm_batches SET state = 'done', done_at = now(), error = %s WHERE id = %s",
            [said, batch.id],
        )
        log.info("collected a batch", batch=batch.name, status=found.status)
        for name in (found.input_file_id, found.output_file_id, found.error_file_id):
            if name:
                self._remove(name)
        return True

    def _see_to_its_end(self, batch: Any, found: Any) -> None:
        """Cancel what is to be cancelled, or should have ended long ago."""
        window = timedelta(milliseconds=duration_ms(_long(self._settings.llm.batch_window)))
        late = datetime.now(UTC) - batch.sent_at > window + _LATE
        if (late or batch.cancel_at is not None) and found.status != "cancelling":
            self._client.batches.cancel(batch.batch)
            log.warning("cancelled a batch", batch=batch.name, reason="late" if late else "asked")

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        with self._client.files.with_streaming_response.content(file) as answer:
            for text in answer.iter_lines():
                if not text.strip():
                    continue
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError:
                    log.warning("a line of a provider's file is not JSON", file=file)
                    continue
                if isinstance(line, dict):
                    yield line

    def _read(self, batch: Any, line: dict[str, Any]) -> None:
        try:
            name = uuid.UUID(str(line.get("custom_id")))
        except ValueError:
            return  # it is none of ours
        rows = self._rows(_REQUEST, [name, batch.id])
        if not rows:
            return  # read before
        (row,) = rows
        answer = line.get("response") or {}
        body = answer.get("body") or {}
        status = answer.get("status_code")
        if status != 200:
            error = line.get("error") or body.get("error") or {}
            said = " ".join(str(error.get("message") or error.get("code") or "no answer").split())
            # The request itself is to blame: asked directly, the one that is can be found.
            self._again(batch, row, f"status {status}: {said}"[:300], direct=status in (400, 422))
            return
        try:
            text = body["choices"][0]["message"]["content"]
            usage = body["usage"]
            tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (LookupError, TypeError, ValueError):
            self._again(batch, row, "its answer is no completion")
            return
        self._keep(batch, row, str(text or ""), *tokens, body)

    def _keep(
        self, batch: Any, row: Any, text: str, took: int, gave: int, body: dict[str, Any]
    ) -> None:
        asked = items(self._connection, row.id)
        task = packing.Reading(row.task["schema"], row.task["pack"])
        read = packing.read(task, len(asked), text)
        details = (body.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = int(details.get("cached_tokens") or 0)
        cost = prices.cost(self._settings, batch.model, took, gave, cached, batch=True)
        good = {asked[place][0]: value for place, value in read.good.items()}
        whole = len(good) == len(asked)
        reply = Reply(took, gave, cached, cost, request_id=str(body.get("id") or "") or None)
        self._ledger.adopt(row.call, asked)
        # What is missing or wrong is given free, and asked for directly with its records.
        reasons = {} if whole else {asked[place][0]: why for place, why in read.bad.items()}
        self._ledger.settle(row.call, reply, good, reasons, raw=None if whole else text)
        if whole:
            self._connection.execute(_ANSWERED, [row.id])
            self._connection.execute(_COUNT, [1, 0, batch.id])
            return
        self._ledger.release([item[0] for item in asked])
        why = read.fault or next(iter(read.bad.values()), "items are missing")
        self._connection.execute(_AGAIN, ["direct", why[:300], row.id])
        self._connection.execute(_COUNT, [int(bool(good)), int(not good), batch.id])

    def _again(self, batch: Any, row: Any, why: str, *, direct: bool = False) -> None:
        """Nothing came of it: its cost is given back, and it waits for the next batch."""
        asked = items(self._connection, row.id)
        if row.call is not None:
            self._ledger.adopt(row.call, asked)
            self._ledger.unsent(row.call, why, down=False)
        last = direct or row.round + 1 >= self._settings.llm.batch_rounds
        if last:
            self._ledger.release([item[0] for item in asked])
        self._connection.execute(_AGAIN, ["direct" if last else "waiting", why, row.id])
        self._connection.execute(_COUNT, [0, 1, batch.id])

    def _rows(self, query: str, parameters: list[Any]) -> list[Any]:
        cursor = self._connection.cursor(row_factory=namedtuple_row)
        return cursor.execute(query.encode(), parameters).fetchall()

    def _remove(self, file: str) -> None:
        """The provider need not keep it; that it does is no harm to us."""
        try:
            self._client.files.delete(file)
        except Exception as error:
            log.debug("a file stays with the provider", file=file, reason=str(error))


def _errors(found: Any) -> str | None:
    """What the provider says of a batch as a whole."""
    rows = getattr(getattr(found, "errors", None), "data", None) or []
    said = [str(row.message or row.code or "") for row in rows]
    return "; ".join(filter(None, said))[:300] or None


def _long(window: str) -> str:
    """`24h`, as the API writes it, for us."""
    return window.replace("h", " hours").replace("d", " days")
