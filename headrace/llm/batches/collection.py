"""What became of a batch: usable answers into the ledger, the rest once more.

Completed, expired, failed or cancelled, all are read alike: whatever answers there are count, and a
request without one goes round again, at most `llm.batch_rounds` times; then it is asked directly.
Every line is joined by its request's id, and may be read twice. Nothing is taken for unanswered
before the provider's files have been read to their ends.
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
from headrace.errors import Pause
from headrace.llm import endpoint, packing, prices
from headrace.llm.batches import requests
from headrace.llm.batches.submission import FULL, items
from headrace.llm.client import Passing
from headrace.llm.ledger import Item, Ledger, Reply
from headrace.log import get

log = get(__name__)

ENDED = frozenset({"completed", "expired", "failed", "cancelled"})
_LATE = timedelta(hours=1)  # after its window a batch is cancelled

_FULL_CODE = "token_limit_exceeded"  # of OpenAI's: so much may wait at once, of a model
_SENT = "SELECT * FROM llm_batches WHERE state = 'sent' ORDER BY id"
_COLUMNS = "SELECT id, call, round, task, body IS NULL AS emptied FROM llm_requests"
_REQUEST = f"{_COLUMNS} WHERE id = %s AND batch = %s AND state = 'sent'"
_LEFT = f"{_COLUMNS} WHERE batch = %s AND state = 'sent' ORDER BY id LIMIT 1000"
_OVER = "UPDATE llm_requests SET state = 'over', error = NULL WHERE id = %s"
_AGAIN = """
UPDATE llm_requests SET state = %s, round = round + %s, call = NULL, error = %s WHERE id = %s
"""
_COUNT = """
UPDATE llm_batches SET answered = answered + %s, again = again + %s, cost = cost + %s WHERE id = %s
"""
_DONE = """
UPDATE llm_batches SET state = 'done', status = %s, error = %s, done_at = now() WHERE id = %s
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
        """Whether the batch is done, and all of it collected. Raises Pause where it is not with the
        provider that is asked now, and what the client raises."""
        import openai

        asked = endpoint.named(self._settings).provider
        if batch.provider != asked:
            self._give_up(batch, f"it is with {batch.provider}, and {asked} is asked now")
            return True
        try:
            found = self._client.batches.retrieve(batch.batch)
        except openai.NotFoundError:
            self._give_up(batch, f"{asked} knows no batch {batch.batch}")
            return True
        self._connection.execute(
            "UPDATE llm_batches SET status = %s, error = NULL WHERE id = %s",
            [found.status, batch.id],
        )
        if found.status not in ENDED:
            self._see_to_its_end(batch, found)
            return False
        try:
            if found.output_file_id:
                self._whole(batch, found, self._collect(batch, found.output_file_id))
            if found.error_file_id:
                self._collect(batch, found.error_file_id)
        except openai.NotFoundError:
            self._give_up(batch, f"{batch.provider} has the files of {batch.batch} no more")
            return True
        codes, said = _errors(found)
        full = _FULL_CODE in codes
        for row in self._left(batch):
            self._again(batch, row, said or f"the batch is {found.status}", full=full)
        status = FULL if full else found.status
        self._connection.execute(_DONE, [status, said, batch.id])
        log.info("collected a batch", batch=batch.name, status=status)
        for name in (found.input_file_id, found.output_file_id, found.error_file_id):
            if name:
                self._remove(name)
        return True

    def _give_up(self, batch: Any, why: str) -> None:
        """Where a person has asked to; what was reserved stays, for it may have been answered, and
        billed."""
        if batch.cancel_at is None:
            raise Pause(f"llm: {why}; `headrace llm batches cancel {batch.id}` gives it up")
        for row in self._left(batch):
            self._again(batch, row, why, billed=True)
        self._connection.execute(_DONE, ["given up", why, batch.id])
        log.warning("gave up a batch", batch=batch.name, reason=why)

    def _whole(self, batch: Any, found: Any, lines: int) -> None:
        """An answer that was not read would be bought once more."""
        counts = found.request_counts
        told = counts.completed if counts is not None else 0
        if lines < told and not self._late(batch):
            raise Passing(f"{batch.name}: {lines:,} of {told:,} answers could be read")

    def _left(self, batch: Any) -> Iterator[Any]:
        while rows := self._rows(_LEFT, [batch.id]):
            yield from rows

    def _late(self, batch: Any) -> bool:
        window = timedelta(milliseconds=requests.window_ms(self._settings.llm))
        return bool(datetime.now(UTC) - batch.sent_at > window + _LATE)

    def _see_to_its_end(self, batch: Any, found: Any) -> None:
        """Cancel what is to be cancelled, or should have ended long ago."""
        late = self._late(batch)
        if (late or batch.cancel_at is not None) and found.status != "cancelling":
            self._client.batches.cancel(batch.batch)
            log.warning("cancelled a batch", batch=batch.name, reason="late" if late else "asked")

    def _collect(self, batch: Any, file: str) -> int:
        """How many lines the file has."""
        count = 0
        for text in self._lines(file):
            count += 1
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError:
                log.warning("a line of a provider's file is not JSON", file=file)
                continue
            if isinstance(line, dict):
                self._read(batch, line)
        return count

    def _lines(self, file: str) -> Iterator[bytes]:
        """Ended by a line feed and nothing else: answers may hold other separators."""
        rest = b""
        with self._client.files.with_streaming_response.content(file) as answer:
            for part in answer.iter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                yield from (line for line in lines if line.strip())
        if rest.strip():
            yield rest

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
            self._again(
                batch, row, f"status {status}: {said}"[:300], direct=status in (400, 413, 422)
            )
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
        read = packing.read(task, row.task["items"], text)
        details = (body.get("usage") or {}).get("prompt_tokens_details") or {}
        cached = int(details.get("cached_tokens") or 0)
        cost = prices.cost(self._settings, batch.model, took, gave, cached, batch=True)
        if row.emptied:  # what was forgotten is claimed no more, and nothing is kept of it
            asked = {place: item for place, item in asked.items() if self._holds(item)}
        good = {asked[place][0]: value for place, value in read.good.items() if place in asked}
        whole = len(good) == len(asked)
        reply = Reply(took, gave, cached, cost, request_id=str(body.get("id") or "") or None)
        self._ledger.adopt(row.call, list(asked.values()))
        # What is missing or wrong is given free, and asked for directly with its records.
        bad = {asked[place][0]: why for place, why in read.bad.items() if place in asked}
        reasons, raw = ({}, None) if whole or row.emptied else (bad, text)
        self._ledger.settle(row.call, reply, good, reasons, raw=raw)
        counts = [int(bool(good)), int(not good), cost or 0, batch.id]
        if not whole:
            self._ledger.release([item[0] for item in asked.values()])
        with self._connection.transaction():
            if whole:
                self._connection.execute(_OVER, [row.id])
            else:
                why = read.fault or next(iter(reasons.values()), "items are missing")
                self._connection.execute(_AGAIN, ["direct", 1, why[:300], row.id])
            self._connection.execute(_COUNT, counts)

    def _again(
        self,
        batch: Any,
        row: Any,
        why: str,
        *,
        direct: bool = False,
        full: bool = False,
        billed: bool = False,
    ) -> None:
        """Nothing came of it: its cost is given back, and it waits for the next batch. `full`: it
        was not the request's turn yet, so this was no round."""
        asked = items(self._connection, row.id)
        keys = [item[0] for item in asked.values()]
        if row.call is not None:
            self._ledger.adopt(row.call, list(asked.values()))
            self._ledger.unsent(row.call, why, down=False, billed=billed)
        last = direct or (row.round + 1 >= self._settings.llm.batch_rounds and not full)
        if last:
            self._ledger.release(keys)
        with self._connection.transaction():
            if row.emptied:  # a record of it was forgotten: the others are asked for without it
                requests.over(self._connection, [row.id])
            else:
                state = "direct" if last else "waiting"
                self._connection.execute(_AGAIN, [state, int(not full), why, row.id])
            self._connection.execute(_COUNT, [0, 1, 0, batch.id])

    def _holds(self, item: Item) -> bool:
        asked = [item[0], self._ledger.owner]
        return bool(self._rows("SELECT FROM llm_claims WHERE key = %s AND owner = %s", asked))

    def _rows(self, query: str, parameters: list[Any]) -> list[Any]:
        cursor = self._connection.cursor(row_factory=namedtuple_row)
        return cursor.execute(query.encode(), parameters).fetchall()

    def _remove(self, file: str) -> None:
        """The provider need not keep it; that it does is no harm to us."""
        try:
            self._client.files.delete(file)
        except Exception as error:
            log.debug("a file stays with the provider", file=file, reason=str(error))


def _errors(found: Any) -> tuple[set[str], str | None]:
    """What the provider says of a batch as a whole: codes, and one line."""
    rows = getattr(getattr(found, "errors", None), "data", None) or []
    said = [str(row.message or row.code or "") for row in rows]
    return {str(row.code) for row in rows}, "; ".join(filter(None, said))[:300] or None
