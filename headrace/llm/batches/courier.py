"""The courier: takes requests to the provider and answers to the ledger. One at a time, by a lock.

    finish   batches that were on their way when a predecessor ended
    submit   requests that have waited long enough, or are enough for a file
    collect  what the provider is done with
    redo     the records of answered requests, which find their answers in the ledger; and those
             that are to be asked directly

Every step may be cut off anywhere and done again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
from confluent_kafka import KafkaException

from headrace.config import Settings
from headrace.errors import HeadraceError, Pause, Retry
from headrace.llm import endpoint
from headrace.llm.batches import collection, submission
from headrace.llm.batches.requests import COURIER
from headrace.llm.client import Client, Passing, Refused
from headrace.llm.ledger import Ledger
from headrace.log import get
from headrace.redo import sending
from headrace.stores import migrate, postgres
from headrace.stream.topology import Topology

log = get(__name__)

_EVER = timedelta(days=36_500)
_LOCK = "SELECT pg_try_advisory_lock(hashtext('headrace llm batches ' || current_schema()))"
_BACK = """
SELECT DISTINCT r.stage FROM llm_requests r WHERE r.state IN ('over', 'direct')
"""
# A record that its store has not read yet is waited for: nothing could be read of it. So is one
# whose last redo the store has not seen the outcome of: it would be left out as queued already.
_RECORDS = """
SELECT i.key, i.record_id, i.alone
FROM llm_requests r JOIN llm_request_items i ON i.request = r.id AND NOT i.queued
WHERE r.stage = %s AND r.state IN ('over', 'direct')
  AND EXISTS (SELECT FROM records s WHERE s.id = i.record_id)
  AND NOT EXISTS (SELECT FROM redo d WHERE d."group" = r.stage AND d.record_id = i.record_id
                  AND d.state = 'queued')
ORDER BY i.record_id, i.alone LIMIT 10000
"""
_QUEUED = "UPDATE llm_request_items SET queued = true WHERE key = ANY(%s::bytea[])"
_GONE = """
WITH gone AS (
  DELETE FROM llm_requests r WHERE r.stage = %s AND r.state IN ('over', 'direct')
    AND NOT EXISTS (SELECT FROM llm_request_items i WHERE i.request = r.id AND (NOT i.queued
      OR r.state = 'direct' AND NOT EXISTS (SELECT FROM llm_answers a WHERE a.key = i.key)))
  RETURNING id
)
DELETE FROM llm_request_items i USING gone WHERE i.request = gone.id
"""
_DIRECT = """
UPDATE llm_requests r SET state = 'queued' WHERE r.stage = %s AND r.state = 'direct'
  AND NOT EXISTS (SELECT FROM llm_request_items i WHERE i.request = r.id AND NOT i.queued)
"""
# What is never asked for again in the same words leaves its request behind.
_SWEEP = """
WITH gone AS (
  DELETE FROM llm_requests
  WHERE state IN ('over', 'queued') AND made_at < now() - interval '30 days'
  RETURNING id
)
DELETE FROM llm_request_items i USING gone WHERE i.request = gone.id
"""
_OPEN = """
SELECT EXISTS (SELECT FROM llm_requests WHERE state <> 'queued')
    OR EXISTS (SELECT FROM llm_batches WHERE state <> 'done')
"""


class Courier:
    """Call `look` now and then, or `serve`. Raises nothing that passes by itself."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        queue: Callable[[str, Sequence[str], Sequence[str]], None] | None = None,
    ) -> None:
        """`queue` has records of a stage done again (parts of them alone, if any are named);
        without it they go on its redo topic."""
        self._settings = settings
        self._topology = topology
        self._queue = queue or self._send_again
        self._connection: psycopg.Connection | None = None
        self._ledgers: dict[str, Ledger] = {}
        self._client: Client | None = None
        self._said: set[str] = set()  # at the last look
        self._saying: set[str] = set()

    def serve(self, stopping: threading.Event) -> None:
        """Until told to stop, whatever happens meanwhile."""
        while not stopping.is_set():
            try:
                self.look()
            except Exception:
                log.exception("a look at batches failed; the next one comes")
                self.close()
            stopping.wait(self._settings.llm.batch_poll_seconds)
        self.close()

    def look(self) -> bool:
        """Do what there is to do; False where another one holds the lock or nothing could be
        done."""
        try:
            return self._look()
        except (Retry, Pause, Passing, Refused, HeadraceError) as error:
            self._say(str(error))
            return False
        except psycopg.Error as error:
            if not postgres.passing(error):
                raise
            self.close()
            self._say(str(error).splitlines()[0])
            return False
        finally:
            self._said, self._saying = self._saying, set()

    def _look(self) -> bool:
        connection = self._locked()
        if connection is None:
            return False
        if connection.execute(_OPEN).fetchone() == (True,):
            self._submit(connection)
            self._collect(connection)
            self._redo(connection)
        return True

    def close(self) -> None:
        for ledger in self._ledgers.values():
            ledger.close()
        self._ledgers.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._client is not None:
            self._client.close()
            self._client = None

    # -- the steps

    def _submit(self, connection: psycopg.Connection) -> None:
        settings = self._settings
        for batch in submission.making(connection):
            self._send(connection, batch)
        asked = endpoint.named(settings)
        for of in submission.waiting(connection, settings.llm):
            if not of.due(settings.llm):
                continue
            if (of.provider, of.model) != (asked.provider, asked.model):
                why = f"{asked.model} at {asked.provider} is asked now"
                count = submission.drop(connection, of, why)
                log.warning("%s: %d requests for %s are not sent: %s",
                            of.stage, count, of.model, why)  # fmt: skip
                continue
            while submission.make(connection, settings, of):
                sent = [self._send(connection, batch) for batch in submission.making(connection)]
                if not all(sent):
                    break

    def _send(self, connection: psycopg.Connection, batch: Any) -> bool:
        """Whether the batch is with the provider, or there was nothing to send of it."""
        with self._noted(connection, batch) as noted:
            client = self._asked()
            ledger = self._ledger(batch.stage)
            with client.errors():
                submission.submit(connection, ledger, client.openai, self._settings.llm, batch)
        return not noted

    def _collect(self, connection: psycopg.Connection) -> None:
        for batch in collection.sent(connection):
            with self._noted(connection, batch):
                client = self._asked()
                collector = collection.Collector(
                    self._settings, connection, self._ledger(batch.stage), client.openai
                )
                with client.errors():
                    collector.look(batch)

    def _redo(self, connection: psycopg.Connection) -> None:
        for (stage,) in connection.execute(_BACK).fetchall():
            try:
                self._redo_of(connection, stage)
            except (HeadraceError, KafkaException) as error:
                self._say(f"{stage}: what came back is not queued yet: {error}")

    def _redo_of(self, connection: psycopg.Connection, stage: str) -> None:
        while rows := connection.execute(_RECORDS, [stage]).fetchall():
            taken: dict[str, str] = {}  # a record, and which parts of it alone: once at a time
            for _, record, alone in rows:
                taken.setdefault(record, alone)
            for alone in sorted(set(taken.values())):
                records = [record for record, parts in taken.items() if parts == alone]
                self._queue(stage, records, alone.split(",") if alone else ())
            keys = [key for key, record, alone in rows if taken[record] == alone]
            connection.execute(_QUEUED, [keys])
        with connection.transaction():
            connection.execute(_GONE, [stage])
            connection.execute(_DIRECT, [stage])

    def _send_again(self, stage: str, records: Sequence[str], parts: Sequence[str]) -> None:
        group = self._topology.group(stage)
        sending.queue(
            self._settings, self._topology, group, records, "answers of a batch",
            kind="answered", parts=parts,
        )  # fmt: skip

    # -- what they need

    @contextmanager
    def _noted(self, connection: psycopg.Connection, batch: Any) -> Iterator[list[Exception]]:
        """What a batch fails with stands beside it, and is told; the others go on."""
        noted: list[Exception] = []
        try:
            yield noted
        except (Passing, Refused, Pause, Retry, HeadraceError) as error:
            noted.append(error)
            connection.execute(
                "UPDATE llm_batches SET error = %s WHERE id = %s", [str(error)[:300], batch.id]
            )
            self._say(f"{batch.name}: {error}")

    def _ledger(self, stage: str) -> Ledger:
        if stage not in self._ledgers:
            self._ledgers[stage] = Ledger(self._settings, stage, COURIER)
        return self._ledgers[stage]

    def _asked(self) -> Client:
        if self._client is None:
            found = endpoint.check(self._settings)
            if found.embedded:
                raise HeadraceError("llm: the embedded model takes no batches; set llm.base_url")
            self._client = Client(self._settings, found)
        return self._client

    def _locked(self) -> psycopg.Connection | None:
        """A connection that holds the lock, or None where another process does."""
        if self._connection is not None:
            return self._connection
        migrate.upgrade(self._settings, self._topology)
        made = postgres.connect(self._settings, autocommit=True, application="headrace llm batches")
        if made.execute(_LOCK).fetchone() != (True,):
            made.close()
            return None
        made.execute(_SWEEP)
        self._connection = made
        return made

    def _say(self, line: str) -> None:
        """Once, as long as it stays so."""
        if line not in self._said | self._saying:
            log.warning("%s", line)
        self._saying.add(line)


def wanted(settings: Settings, topology: Topology) -> bool:
    """Whether any group asks by batches, or did, and something of that is under way."""
    paid = [group.short for group in topology.stages() if group.paid]
    if any(settings.llm.transport.get(short, "direct") != "direct" for short in paid):
        return True
    if not paid or not settings.llm.configured:
        return False
    try:
        with postgres.connect(settings, readonly=True) as connection:
            return connection.execute(_OPEN).fetchone() == (True,)
    except (HeadraceError, psycopg.Error):
        return False  # there is nothing to carry without PostgreSQL


# Of the others a part is answered, and not to be bought once more.
_UNANSWERED = """
SELECT r.id, r.state, array_agg(i.key ORDER BY i.place), array_agg(i.record_id ORDER BY i.place),
       array_agg(i."set" ORDER BY i.place), array_agg(i.part ORDER BY i.place)
FROM llm_requests r JOIN llm_request_items i ON i.request = r.id
WHERE r.batch = %s AND r.state IN ('waiting', 'direct', 'queued') AND r.body IS NOT NULL
GROUP BY r.id HAVING count(*) = (r.task ->> 'items')::integer ORDER BY r.id
"""
_ANEW = """
WITH anew AS (
  UPDATE llm_requests SET state = 'waiting', round = 0, urgent = true, error = NULL
  WHERE id = %s AND state IN ('waiting', 'direct', 'queued') RETURNING id
), back AS (
  UPDATE llm_request_items i SET queued = false FROM anew WHERE i.request = anew.id
)
SELECT FROM anew
"""


def resubmit(settings: Settings, batch: int, stage: str) -> int:
    """Let what a batch left unanswered go with the next one; returns how many requests. What a
    worker is asking for directly at this moment is left to it, and so is a request of which a part
    is answered."""
    chosen = 0
    ledger = Ledger(settings, stage, COURIER)
    try:
        with postgres.connect(settings, autocommit=True) as connection:
            for request, state, *columns in connection.execute(_UNANSWERED, [batch]).fetchall():
                asked = [(bytes(key), *rest) for key, *rest in zip(*columns, strict=True)]
                if state != "waiting":  # the claims of those are free, or a worker's
                    mine = ledger.claim(asked, lease=_EVER).mine
                    if len(mine) < len(asked):
                        ledger.release(list(mine))
                        continue
                chosen += connection.execute(_ANEW, [request]).rowcount
    finally:
        ledger.close()
    return chosen
