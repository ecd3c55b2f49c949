"""The ledger of language models: what was asked, what is being asked, what was answered.

An answer is kept by item, whatever call it came with, and is never bought again. A call stands here
before it is sent, so that a killed worker leaves word of it; its items are claimed, under a lease,
so that no two workers buy the same. Every step is one transaction of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeVar

import orjson
import psycopg
from psycopg.rows import dict_row

from headrace.config import Settings
from headrace.errors import HeadraceError, Retry
from headrace.llm import admission, endpoint
from headrace.llm.admission import Admitted, Limits, Planned, Wait
from headrace.log import get
from headrace.stores import postgres

__all__ = [
    "Admitted", "Claimed", "Key", "Ledger", "Limits", "Order", "Planned", "Reply", "Wait",
]  # fmt: skip

log = get(__name__)
T = TypeVar("T")
Key = bytes
Item = tuple[Key, str, int, str]  # key, record, set, part

AGAIN_SECONDS = 5.0  # a batch comes back after so long when PostgreSQL is away
PATIENCE_SECONDS = 10.0  # to write down what was bought, where PostgreSQL is away
SHOWN = 500  # characters of an error that are kept

_CLAIM = (
    "SELECT claimed, died, answered FROM llm_claim(%(stage)s, %(owner)s, %(lease)s,"
    " %(keys)s::bytea[], %(records)s::text[])"
)
_ADMIT = (
    "SELECT * FROM llm_admit(%(provider)s, %(stage)s, %(owner)s, %(session)s, %(keys)s::bytea[],"
    " %(model)s, %(prompt)s, %(version)s, %(transport)s, %(reason)s, %(repeats)s::bigint[],"
    " %(tokens)s, %(cost)s::numeric, %(window)s, %(requests)s, %(most)s, %(share)s::float8,"
    " %(failures)s, %(patience)s, %(lease)s, %(renew)s::bytea[], %(zone)s, %(daily)s::numeric,"
    " %(max)s::numeric)"
)
_SETTLE = (
    "SELECT llm_settle(%(call)s, %(owner)s, %(input)s, %(output)s, %(cached)s, %(cost)s::numeric,"
    " %(seconds)s::float8, %(request)s, %(error)s, %(raw)s, %(hold)s::interval, %(done)s::bytea[],"
    " %(keys)s::bytea[], %(records)s::text[], %(sets)s::integer[], %(parts)s::text[],"
    " %(answers)s::text[], %(held)s::text[])"
)
_UNSENT = (
    "SELECT llm_unsent(%(call)s, %(owner)s, %(keys)s::bytea[], %(error)s, %(held)s::text[],"
    " %(down)s, %(billed)s, %(hold)s::interval, %(failures)s, %(open)s)"
)
_KEPT = """
SELECT DISTINCT ON (part) part, answer, model FROM llm_answers
WHERE record_id = %s AND stage = %s AND "set" = %s AND prompt = %s
ORDER BY part, at DESC, call DESC
"""
_ORDER = """
SELECT number, keep, reason FROM llm_sets WHERE stage = %s AND record_id = %s
ORDER BY number DESC LIMIT 1
"""
_RAISE = """
INSERT INTO llm_sets (stage, record_id, number, keep, reason)
SELECT %(stage)s, %(record)s, coalesce(max(number), 1) + 1, %(keep)s::jsonb, %(reason)s
FROM llm_sets WHERE stage = %(stage)s AND record_id = %(record)s
RETURNING number
"""
# A call of theirs that is still under way, as far as is known, was given up with them.
_RELEASE = """
WITH turns AS (DELETE FROM llm_turns WHERE ticket = ANY(%(keys)s::bytea[])),
gone AS (
  DELETE FROM llm_claims WHERE key = ANY(%(keys)s::bytea[]) AND owner = %(owner)s RETURNING call
)
UPDATE llm_calls l SET state = 'lost', ended_at = now() FROM gone
WHERE l.id = gone.call AND l.state = 'sent'
"""
_SUCCEED = "UPDATE llm_claims SET until = clock_timestamp() WHERE owner = %s"
# Claims that nobody came back for: their items are not asked for any more, or changed.
_SWEEP = """
WITH old AS (
  DELETE FROM llm_claims WHERE stage = %s AND until < now() - interval '1 day' RETURNING call
)
UPDATE llm_calls l SET state = 'lost', ended_at = now() FROM old
WHERE l.id = old.call AND l.state = 'sent'
"""
# Why a group waits, for whoever asks; a budget that is spent is noted where it refuses.
_PAUSE = """
INSERT INTO llm_refusals (stage, scope, reason, at) VALUES (%s, 'other', %s, now())
ON CONFLICT (stage) DO UPDATE SET scope = 'other', reason = excluded.reason, at = excluded.at,
  until = NULL
"""
_GO_ON = "DELETE FROM llm_refusals WHERE stage = %s AND scope = 'other'"


class Prompted(Protocol):
    """What the ledger needs of a prompt."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Claimed:
    """Which items this worker may buy.

    mine      None, or the call that was in flight when its owner died: the next one repeats it
    theirs    being bought by another worker
    answered  bought by another since they were looked up
    """

    mine: dict[Key, int | None] = field(default_factory=dict)
    theirs: set[Key] = field(default_factory=set)
    answered: dict[Key, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """Which set of a record is in force; `keep` is what stays of an earlier one."""

    set: int = 1
    keep: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back besides the answers. Cost in USD, None where no price is known."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cost: Decimal | None = None
    seconds: float = 0.0
    request_id: str | None = None
    limits: Limits | None = None


class Ledger:
    """One stage's way to the ledger. Safe for threads: they take turns on one connection.

    Every method may raise Retry: PostgreSQL is away, and the batch comes back later.
    """

    def __init__(
        self,
        settings: Settings,
        stage: str,
        worker: str,
        *,
        window: float = admission.WINDOW,
        margin: float = admission.MARGIN,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.stage = stage
        self.owner = f"{stage}/{worker}"
        self.provider = endpoint.named(settings).provider
        self._settings = settings
        self._patience = patience
        self._standing = admission.standing(settings, stage, window, margin)
        self._lease: timedelta = self._standing["lease"]
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._items: dict[Key, Item] = {}  # claimed by this worker
        self._calls: dict[int, Sequence[Key]] = {}  # admitted and neither settled nor unsent
        self._unwritten: deque[tuple[str, dict[str, Any]]] = deque()
        self._renewed = time.monotonic()

    def close(self) -> None:
        """Claims that are left run out by their lease, or go to this worker's successor."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # -- answers

    def answers(self, keys: Collection[Key]) -> dict[Key, dict[str, Any]]:
        """What is answered already."""
        query = "SELECT key, answer FROM llm_answers WHERE key = ANY(%s::bytea[])"
        rows = self._ask(query, [list(keys)]) if keys else []
        return {bytes(row["key"]): row["answer"] for row in rows}

    def kept(self, record: str, set: int, prompt: Prompted) -> dict[str, Any]:
        """By part what a prompt was answered for a set of a record, whatever was asked and by
        whichever version: the newest of each. Only another set is made anew."""
        asked = [record, self.stage, set, prompt.name]
        return {row["part"]: row["answer"] for row in self._ask(_KEPT, asked)}

    def models(self, record: str, set: int, prompt: Prompted) -> list[str]:
        """Who gave the answers of `kept`."""
        asked = [record, self.stage, set, prompt.name]
        return sorted({row["model"] for row in self._ask(_KEPT, asked)})

    def order(self, record: str) -> Order:
        rows = self._ask(_ORDER, [self.stage, record])
        return Order(*rows[0].values()) if rows else Order()

    def raise_set(self, record: str, keep: Sequence[Mapping[str, Any]], reason: str) -> int:
        """Have a record done anew; returns the number of its new set."""
        told = {"stage": self.stage, "record": record, "reason": reason}
        told["keep"] = orjson.dumps(list(keep)).decode()
        for _ in range(10):
            try:
                return int(self._ask(_RAISE, told)[0]["number"])
            except psycopg.errors.UniqueViolation:  # somebody did the same just now
                continue
        raise HeadraceError(f"{record} is being done anew by others all the time; try again")

    # -- claims

    def claim(self, items: Iterable[Item], *, lease: timedelta | None = None) -> Claimed:
        """Take items for buying: free ones, own ones, and those whose owner's lease ran out."""
        wanted = {item[0]: item for item in items}
        if not wanted:
            return Claimed()
        asked = {
            "stage": self.stage,
            "owner": self.owner,
            "lease": lease or self._lease,
            "keys": list(wanted),
            "records": [item[1] for item in wanted.values()],
        }
        claimed = Claimed()
        with self._lock:
            for row in self._ask(_CLAIM, asked):
                key = bytes(row["claimed"])
                if row["answered"] is not None:
                    claimed.answered[key] = row["answered"]
                    self._items.pop(key, None)
                else:
                    claimed.mine[key] = row["died"]
                    self._items[key] = wanted[key]
        claimed.theirs.update(wanted.keys() - claimed.mine.keys() - claimed.answered.keys())
        return claimed

    def succeed(self) -> None:
        """Whoever bore this worker's name before is dead: what it was asking for is anybody's, who
        need not wait for its leases."""
        self._ask(_SUCCEED, [self.owner])

    def release(self, keys: Collection[Key]) -> None:
        """Give items back that are not bought after all; those of others are left alone."""
        with self._lock:
            own = [key for key in keys if self._items.pop(key, None)]
            if own:
                self._ask(_RELEASE, {"keys": own, "owner": self.owner})

    def hand_over(self, keys: Collection[Key]) -> None:
        """These claims are another's from now on, and its to renew."""
        with self._lock:
            for key in keys:
                self._items.pop(key, None)

    # -- calls

    def adopt(self, call: int, items: Sequence[Item]) -> None:
        """Know a call, and what it asks for, that a predecessor of the same name had admitted."""
        with self._lock:
            self._calls[call] = [item[0] for item in items]
            self._items |= {item[0]: item for item in items}

    def admit(self, planned: Planned) -> Admitted | Wait:
        """Note a call that may be sent now, its tokens and its cost reserved; else say when.

        Raises Pause where a budget is spent or the provider is down.
        """
        with self._lock:
            renew = None  # what waits for a batch is claimed for as long as it takes
            if (
                planned.transport == "direct"
                and time.monotonic() - self._renewed > self._lease.total_seconds() / 4
            ):
                renew = list(self._items)
            asked = {
                **self._standing,
                "provider": self.provider,
                "stage": self.stage,
                "owner": self.owner,
                "keys": list(planned.keys),
                "model": planned.model,
                "prompt": planned.prompt,
                "version": planned.version,
                "transport": planned.transport,
                "reason": planned.reason,
                "repeats": sorted(planned.repeats),
                "tokens": planned.input_tokens + planned.output_tokens,
                "cost": planned.cost,
                "renew": renew,
            }
            (row,) = self._ask(_ADMIT, asked, once=True)
            if renew is not None:
                self._renewed = time.monotonic()
            answer = admission.read(row, self._settings, self.stage, self.provider)
            if isinstance(answer, Admitted):
                self._calls[answer.call] = list(planned.keys)
            return answer

    def settle(
        self,
        call: int,
        reply: Reply,
        answers: Mapping[Key, Mapping[str, Any]],
        failed: Mapping[Key, str] | None = None,
        raw: str | None = None,
    ) -> None:
        """Write down what a call brought: its answers, tokens and cost, in one transaction.

        failed  items whose answer cannot be used, and why; raw: the answer as it came
        """
        with self._lock:
            known = self._calls.pop(call, [])
            items = [self._items[key] for key in answers if key in self._items]
            reasons = list(dict.fromkeys((failed or {}).values()))
            done = [*answers, *(failed or {})]
            held = None
            if raw or reasons:
                keys = {*known, *done}
                held = sorted({self._items[key][1] for key in keys if key in self._items})
            hold = reply.limits.hold if reply.limits else None
            self._write(
                _SETTLE,
                {
                    "call": call,
                    "owner": self.owner,
                    "input": reply.input_tokens,
                    "output": reply.output_tokens,
                    "cached": reply.cached_tokens,
                    "cost": reply.cost,
                    "seconds": reply.seconds,
                    "request": reply.request_id,
                    "error": _plain("; ".join(reasons)[:SHOWN]) or None,
                    "raw": _plain(raw) if raw else None,
                    "hold": None if hold is None else timedelta(seconds=hold),
                    "done": done,
                    "keys": [item[0] for item in items],
                    "records": [item[1] for item in items],
                    "sets": [item[2] for item in items],
                    "parts": [item[3] for item in items],
                    "answers": [_json(answers[item[0]]) for item in items],
                    "held": held,
                },
            )
            for key in done:
                self._items.pop(key, None)

    def unsent(
        self,
        call: int,
        error: str,
        hold_seconds: float | None = None,
        limits: Limits | None = None,
        *,
        down: bool = True,
        billed: bool = False,
    ) -> None:
        """A call that brought nothing; its items stay claimed.

        hold_seconds  no worker calls this provider for so long
        down          the provider is to blame: so many in a row, and nobody calls for a while
        billed        it may have cost something all the same: what was reserved stays
        """
        held = [hold_seconds, limits.hold if limits else None]
        hold = max((seconds for seconds in held if seconds is not None), default=None)
        llm = self._settings.llm
        with self._lock:
            keys = self._calls.pop(call, [])
            self._write(
                _UNSENT,
                {
                    "call": call,
                    "owner": self.owner,
                    "keys": list(keys),
                    "error": _plain(error[:SHOWN]),
                    "held": sorted({self._items[key][1] for key in keys if key in self._items}),
                    "down": down,
                    "billed": billed,
                    "hold": None if hold is None else timedelta(seconds=hold),
                    "failures": llm.circuit_failures,
                    "open": timedelta(seconds=llm.circuit_seconds),
                },
            )

    def pause(self, reason: str) -> None:
        """Note why the stage waits, in one line."""
        self._ask(_PAUSE, [self.stage, _plain(reason)[:SHOWN]])

    def go_on(self) -> None:
        """It waits no longer."""
        self._ask(_GO_ON, [self.stage])

    # -- the connection

    def ask(self, query: str, parameters: Any) -> list[dict[str, Any]]:
        """Rows of any other statement, which may be made twice."""
        return self._ask(query, parameters)

    def _write(self, query: str, parameters: dict[str, Any]) -> None:
        """What was paid for must not be lost: it is tried for a while, then before all else."""
        self._unwritten.append((query, parameters))
        ends = time.monotonic() + self._patience
        while True:
            try:
                self._flush()
                return
            except Retry:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)

    def _flush(self) -> None:
        while self._unwritten:
            try:
                self._run(*self._unwritten[0])
            except Retry:
                raise
            except Exception:
                self._unwritten.popleft()  # it can never be written
                raise
            self._unwritten.popleft()

    def _ask(self, query: str, parameters: Any, *, once: bool = False) -> list[dict[str, Any]]:
        with self._lock:
            self._flush()
            return self._run(query, parameters, once=once)

    def _run(self, query: str, parameters: Any, *, once: bool = False) -> list[dict[str, Any]]:
        """Rows of one statement. A connection that turns out to be gone is made anew, unless what
        may have been done already is to be done `once`."""

        def work() -> list[dict[str, Any]]:
            cursor = self._open().execute(query, parameters, prepare=True)
            return cursor.fetchall() if cursor.description else []

        return self._guarded(lambda: postgres.again(work), 1 if once else 2)

    def _guarded(self, work: Callable[[], T], tries: int) -> T:
        for attempt in range(1, tries + 1):
            try:
                return work()
            except (psycopg.Error, HeadraceError) as error:
                if not postgres.passing(error):
                    raise
                if postgres.lost(error):
                    self.close()
                    if attempt < tries and isinstance(error, psycopg.Error):
                        continue
                said = str(error).strip().splitlines()
                raise Retry(AGAIN_SECONDS, said[0] if said else type(error).__name__) from error
        raise AssertionError("not reached")

    def _open(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            made = postgres.connect(self._settings, autocommit=True, application="headrace llm")
            made.row_factory = dict_row  # type: ignore[assignment]
            self._connection = made  # type: ignore[assignment]
            made.execute(_SWEEP, [self.stage])
        assert self._connection is not None
        return self._connection


def _json(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return orjson.dumps(_without_nul(value)).decode() if "\\u0000" in text else text


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, Mapping):
        return {_plain(key): _without_nul(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(inner) for inner in value]
    return value


def _plain(text: str) -> str:
    """PostgreSQL's text holds no NUL, and no half of a character."""
    return text.replace("\0", "").encode(errors="replace").decode()
