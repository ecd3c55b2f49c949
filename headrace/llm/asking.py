"""How a stage asks a language model: what is answered is looked up, the rest is bought with care.

look up   what the ledger holds of these items
defer     where the group asks by batches: requests are written for the others (llm.batches)
claim     the others, under a lease, so that no two workers buy the same
pack      those that are ours into calls; then for each call, several at a time:
admit     circuit, budgets and limits of all workers; the call is written down
send      outside any transaction
settle    the answers, their tokens and cost in one commit

What an answer lacks is asked for again: broken items once more with what is wrong (`repair`), items
that were left out (`rest`), an answer that was cut short with more room, then in halves (`room`),
a call that is refused as a whole in halves, until the guilty item is found (`split`).
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import psycopg

from headrace import home
from headrace.config import Settings
from headrace.errors import ConfigError, HeadraceError, Onward, Pause, Retry
from headrace.llm import endpoint, packing, prices
from headrace.llm.admission import Spent
from headrace.llm.batches import requests
from headrace.llm.client import Answer, Client, Passing, Refused, Unfit
from headrace.llm.ledger import Admitted, Key, Ledger, Order, Planned, Reply
from headrace.llm.packing import Item as Item
from headrace.llm.packing import Task as Task
from headrace.llm.prompts import Prompt
from headrace.log import get
from headrace.stream.stage import Context

log = get(__name__)

_LOOK_SECONDS = 0.1  # between two looks at whether to stop
_TOLD_SECONDS = 5.0  # between two lines about waiting
_THEIRS_SECONDS = 2.0  # until somebody else's answers are looked up again
_AT_ONCE_SECONDS = 0.1  # the group only shows that it is alive
_MORE_ROOM = 3.0
_RESTS = 2  # calls in a row that an item may be left out of
_PAST_KEPT = 10_000
_BACK = ("direct", "queued")  # states of requests that batches could not answer


@dataclass(frozen=True)
class Answered:
    """An answer that fits the schema. `call`: of the ledger's, where this very ask bought it."""

    value: dict[str, Any]
    call: int | None
    bought: bool


@dataclass(frozen=True)
class Failed:
    """No answer to this item can be had: its record is dead. `raw`: the last answer, if any."""

    reason: str
    raw: str | None = None


@dataclass(frozen=True)
class Deferred:
    """The item is under way in a batch, and its record comes back by redo."""

    reason: str


Outcome = Answered | Failed | Deferred


def open(context: Context) -> Asker:
    """An asker for a stage, the only one of its worker.

    Raises ConfigError: an endpoint that may not be used, a budget without a price.
    """
    settings = context.settings
    stand_in: Any = context.options.get("asker")  # of an estimate, say
    if stand_in is not None:
        return cast(Asker, stand_in)
    found = endpoint.check(settings)
    prices.check(settings, found.model)
    longest = settings.kafka.max_poll_interval_ms / 1000
    if settings.llm.timeout_seconds > longest / 2:
        raise ConfigError(
            f"llm.timeout_seconds: {settings.llm.timeout_seconds:g} s is more than half of "
            "kafka.max_poll_interval_ms, after which the group would take a worker for dead; "
            "raise that too"
        )
    if found.embedded:
        log.warning(
            "neither llm.base_url nor llm.api_key is set: the embedded model answers, "
            "and what it says is for trying out",
            group=context.group,
        )
    # Slots are counted in each data folder, so it belongs to the name.
    ledger = Ledger(settings, context.group, f"{context.worker}.{home.data_id()}")
    with suppress(Retry, psycopg.Error):  # then its leases see to it
        ledger.succeed()
    return Asker(settings, context.group, ledger, context.stopping, longest / 3, context.waiting)


@dataclass
class _Call:
    """Items that are asked for together."""

    keys: list[Key]
    reason: str
    repeats: set[int] = field(default_factory=set)
    room: float = 1.0
    complaint: packing.Complaint | None = None

    def of(self, keys: Sequence[Key], reason: str, room: float | None = None) -> _Call:
        """The next call, for these of its items."""
        return _Call(list(keys), reason, room=room or self.room)

    def halves(self, keys: Sequence[Key], reason: str) -> list[_Call]:
        middle = len(keys) // 2
        return [self.of(keys[:middle], reason), self.of(keys[middle:], reason)]


class _Halted(Exception):
    """The ask ends before this call is sent."""


@dataclass
class _Past:
    """What answers to items lacked that have none yet. It outlives an ask that is cut off: however
    little each gets done, nothing is bought again and again.

    failed    outcomes of a batch that comes back
    repaired  asked for once more with what was wrong
    left_out  how often
    alone     to be asked for alone, with so much room: a call for more was cut short, refused or
              too slow
    """

    failed: dict[Key, Failed] = field(default_factory=dict)
    repaired: set[Key] = field(default_factory=set)
    left_out: dict[Key, int] = field(default_factory=dict)
    alone: dict[Key, float] = field(default_factory=dict)

    def close(self, keys: Collection[Key]) -> None:
        """These have an outcome."""
        for key in keys:
            self.repaired.discard(key)
            self.left_out.pop(key, None)
            self.alone.pop(key, None)
        for kept in (self.failed, self.repaired, self.left_out, self.alone):
            if len(kept) > _PAST_KEPT:  # of batches that went to other workers
                kept.clear()


@dataclass
class _Ask:
    """One ask on its way, as its threads share it."""

    task: Task
    items: dict[Key, Item]
    ends: float
    halt: threading.Event = field(default_factory=threading.Event)
    done: dict[Key, Answered | Failed] = field(default_factory=dict)

    def rest(self, seconds: float, why: str = "") -> None:
        """Raises _Halted where it is over meanwhile."""
        if time.monotonic() + seconds >= self.ends or self.halt.wait(seconds):
            raise _Halted(why)


class Asker:
    """Asks for one stage. Made by `open`."""

    def __init__(
        self,
        settings: Settings,
        stage: str,
        ledger: Ledger,
        stopping: Callable[[], bool] = lambda: False,
        seconds: float = 100.0,
        waiting: Callable[[], int] = lambda: 0,
    ) -> None:
        """`seconds`: that an ask may take; what it has bought by then is not lost. `waiting`: how
        much the group has still to do."""
        self._settings = settings
        self._stage = stage
        self._ledger = ledger
        self._stopping = stopping
        self._seconds = seconds
        self._waiting = waiting
        self._endpoint = endpoint.named(settings)
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._past = _Past()
        self._told = -_TOLD_SECONDS
        self._noted = True  # perhaps by a predecessor

    @property
    def model(self) -> str:
        """The model in force."""
        return self._endpoint.model

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if self._client is not None:
            self._client.close()
        self._ledger.close()

    # -- what the ledger knows

    def key(self, task: Task, item: Item) -> Key:
        return item.key(self._stage, task, self.model)

    def known(self, task: Task, item: Item) -> bool:
        """Whether this very question is answered already."""
        return bool(self._ledger.answers([self.key(task, item)]))

    def kept(self, record: str, set: int, prompt: Prompt) -> dict[str, dict[str, Any]]:
        """Answers by part of a record's set by any version of a prompt, whatever was asked."""
        return self._ledger.kept(record, set, prompt)

    def models(self, record: str, set: int, prompt: Prompt) -> list[str]:
        """Whose answers these are."""
        return self._ledger.models(record, set, prompt)

    def order(self, record: str) -> Order:
        """Which set of the record is in force."""
        return self._ledger.order(record)

    # -- asking: the whole order of it

    def ask(
        self, task: Task, items: Sequence[Item], *, since: float | None = None
    ) -> list[Outcome]:
        """One outcome each, in order. Raises Pause where somebody has to act, Retry where the same
        is to be asked again later: what is bought by then is in the ledger.

        since  time.monotonic() when the batch was begun, for a stage that asks several times in it
        """
        try:
            outcomes = self._ask(task, items, since or time.monotonic())
        except Spent:
            raise
        except (Pause, HeadraceError) as error:
            reason = str(error) if isinstance(error, Pause) else f"llm: {error}"
            self._note(reason)
            raise Pause(reason) from error
        except psycopg.ProgrammingError as error:  # no record is to blame for a ledger in disorder
            raise Pause(f"llm: the ledger cannot be used: {_line(error)}") from error
        if self._noted:
            with suppress(Retry):
                self._ledger.go_on()
            self._noted = False
        return outcomes

    def _ask(self, task: Task, items: Sequence[Item], since: float) -> list[Outcome]:
        keys = [self.key(task, item) for item in items]
        wanted = dict(zip(keys, items, strict=True))
        answered = self._ledger.answers(wanted)
        missing = {
            key: item
            for key, item in wanted.items()
            if key not in answered and key not in self._past.failed
        }
        told = requests.told(self._ledger, missing)
        deferred = {key: Deferred("batch") for key, one in told.items() if one.state not in _BACK}
        missing = {key: item for key, item in missing.items() if key not in deferred}
        claimed = self._ledger.claim(
            (key, item.record, item.set, item.part) for key, item in missing.items()
        )
        answered |= claimed.answered
        mine = claimed.mine
        ask = _Ask(task, missing, since + self._seconds)
        try:
            if self._by_batch(len(wanted)):
                deferred |= self._defer(task, missing, mine.keys() - told.keys())
                mine = {key: lost for key, lost in mine.items() if key not in deferred}
            self._buy(ask, _packed(task, missing, mine, self._past.alone))
        finally:
            self._past.close(answered.keys() | ask.done.keys())
            failed = {key: one for key, one in ask.done.items() if isinstance(one, Failed)}
            self._past.failed |= failed
            self._release(mine.keys())  # those that are settled are gone already
            requests.done(self._ledger, told.keys() & ask.done.keys())
        if claimed.theirs:
            answered |= self._ledger.answers(claimed.theirs)
            if left := claimed.theirs - answered.keys():
                raise Retry(
                    _THEIRS_SECONDS, f"another worker is asking for {len(left)} of these items"
                )
        past = self._past.failed
        outcomes: dict[Key, Outcome] = {key: past.pop(key) for key in wanted if key in past}
        outcomes |= {key: Answered(value, None, False) for key, value in answered.items()}
        outcomes |= deferred
        outcomes |= ask.done
        return [outcomes[key] for key in keys]

    def _by_batch(self, more: int) -> bool:
        """Whether what is missing goes with batches: `auto` where enough waits to be worth it."""
        llm = self._settings.llm
        transport = llm.transport.get(self._stage, "direct")
        if self._endpoint.embedded:
            return False  # it takes none
        if transport == "auto":
            return self._waiting() + more >= llm.auto_from
        return transport == "batch"

    def _defer(
        self, task: Task, items: Mapping[Key, Item], keys: Collection[Key]
    ) -> dict[Key, Deferred]:
        """Write requests for items that this worker holds."""
        lines = []
        for call in _packed(task, items, dict.fromkeys(key for key in items if key in keys), {}):
            asked = [items[key] for key in call.keys]
            request = packing.request(self._settings, self._endpoint, task, asked)
            cost = prices.cost(
                self._settings, self.model, request.input_tokens, request.most_tokens, batch=True
            )
            lines.append(
                requests.Line(
                    body=request.body,
                    items=[
                        (key, item.record, item.set, item.part)
                        for key, item in zip(call.keys, asked, strict=True)
                    ],
                    alone=[",".join(item.alone) for item in asked],
                    schema=dict(task.schema),
                    pack=task.pack,
                    prompt=task.prompt.name,
                    version=task.prompt.version,
                    input_tokens=request.input_tokens,
                    output_tokens=request.output_tokens,
                    cost=cost,
                )
            )
        requests.put(self._ledger, self.model, lines)
        return dict.fromkeys(keys, Deferred("batch"))

    def _buy(self, ask: _Ask, calls: Sequence[_Call]) -> None:
        """All calls, several at a time. What is halted or fails leaves its items without outcome,
        and raises when every thread is done."""
        if not calls:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._settings.llm.concurrency, "llm")
        running = [self._pool.submit(self._carry_out, ask, call) for call in calls]
        try:
            self._watch(ask, running)
        finally:
            ask.halt.set()
            wait(running)
        _raise(running, self._stopping(), bool(ask.done))

    def _watch(self, ask: _Ask, running: Collection[Future[None]]) -> None:
        waiting = set(running)
        while waiting and not self._stopping() and time.monotonic() < ask.ends:
            done, waiting = wait(waiting, _LOOK_SECONDS, FIRST_EXCEPTION)
            if any(future.exception() for future in done):
                return

    def _carry_out(self, ask: _Ask, first: _Call) -> None:
        """One call, and those that it makes necessary. What ends one ends them all: a refused key
        is not tried with every call."""
        try:
            self._carry_on(ask, deque([first]))
        except BaseException:
            ask.halt.set()
            raise

    def _carry_on(self, ask: _Ask, calls: deque[_Call]) -> None:
        while calls:
            call = calls.popleft()
            try:
                number, answer = self._send(ask, call)
            except (Refused, Unfit) as error:
                if isinstance(error, Unfit) and call.room == 1.0:
                    raise  # whatever is asked; else it may be the room alone
                if len(call.keys) > 1:
                    calls += self._halves(call, call.keys, "split")
                else:
                    ask.done[call.keys[0]] = Failed(f"Refused: {error}")
                continue
            calls += self._settle(ask, call, number, answer)

    # -- one call

    def _send(self, ask: _Ask, call: _Call) -> tuple[int, Answer]:
        """Sends a call until it is answered. Raises Refused, Pause, Retry, _Halted."""
        llm = self._settings.llm
        items = [ask.items[key] for key in call.keys]
        request = packing.request(
            self._settings,
            self._endpoint,
            ask.task,
            items,
            room=call.room,
            complaint=call.complaint,
        )
        repeats = set(call.repeats)
        pauses = _backoff(llm.retry_seconds, llm.retry_max_seconds)
        trouble, pause = "", 0.0
        for _ in range(llm.tries):
            ask.rest(pause, trouble)
            client = self._connected()
            number = self._admitted(ask, call, request, repeats)
            try:
                answer = client.ask(request.body)
                if not answer.input_tokens:  # an endpoint that does not count
                    gave = packing.tokens(answer.text or "")
                    answer = replace(answer, input_tokens=request.input_tokens, output_tokens=gave)
                return number, answer
            except Passing as error:
                self._ledger.unsent(
                    number,
                    str(error),
                    error.hold,
                    error.limits,
                    down=error.down,
                    billed=error.billed,
                )
                trouble, pause = str(error), next(pauses)
                if error.hold:  # the ledger holds everybody back for so long
                    pause = random.uniform(0.0, 0.1 * error.hold)
                if error.billed:
                    repeats.add(number)
                    self._apart(call, call.keys)  # it may be too much for the time it has
                self._forget(client)
            except BaseException as error:
                self._ledger.unsent(number, _line(error), down=False)
                raise
        reason = f"llm: {trouble} ({llm.tries} tries)"
        self._note(reason)
        raise Retry(next(pauses), reason)

    def _admitted(
        self, ask: _Ask, call: _Call, request: packing.Request, repeats: Collection[int]
    ) -> int:
        """The call's number, as soon as it may be sent."""
        planned = Planned(
            self.model,
            "direct",
            call.reason,
            call.keys,
            request.input_tokens,
            request.output_tokens,
            prices.cost(self._settings, self.model, request.input_tokens, request.most_tokens),
            repeats,
            ask.task.prompt.name,
            ask.task.prompt.version,
        )
        while True:
            ask.rest(0.0)
            if self._stopping():
                raise _Halted
            answer = self._ledger.admit(planned)
            if isinstance(answer, Admitted):
                return answer.call
            self._tell(answer.seconds, answer.why)
            ask.rest(answer.seconds, f"waiting {answer.why}")

    def _settle(self, ask: _Ask, call: _Call, number: int, answer: Answer) -> list[_Call]:
        """Writes down what a call brought; returns the calls that are still needed."""
        found = packing.Read()
        refused = _refusal(answer)
        if refused is None:
            found = packing.read(ask.task, len(call.keys), answer.text or "")
        good = {call.keys[place]: value for place, value in found.good.items()}
        next_calls, failed = self._what_next(ask, call, answer, found, refused)
        raw = answer.refusal or answer.text if failed or next_calls else None
        reply = Reply(
            answer.input_tokens,
            answer.output_tokens,
            answer.cached_tokens,
            prices.cost(
                self._settings,
                self.model,
                answer.input_tokens,
                answer.output_tokens,
                answer.cached_tokens,
            ),
            answer.seconds,
            answer.request_id,
            answer.limits,
        )
        self._ledger.settle(number, reply, good, failed, raw)
        ask.done |= {key: Answered(value, number, True) for key, value in good.items()}
        ask.done |= {key: Failed(reason, raw) for key, reason in failed.items()}
        return next_calls

    def _what_next(
        self,
        ask: _Ask,
        call: _Call,
        answer: Answer,
        found: packing.Read,
        refused: str | None,
    ) -> tuple[list[_Call], dict[Key, str]]:
        """Calls for the items that an answer lacks, and those that are given up with the reason."""
        past = self._past
        if refused is not None:
            if len(call.keys) > 1:
                return self._halves(call, call.keys, "split"), {}
            return [], {call.keys[0]: refused}
        missing = found.missing(len(call.keys))
        if answer.finish == "length" and (cut := sorted([*missing, *found.bad])):
            keys = [call.keys[place] for place in cut]
            if call.room == 1.0:
                past.alone.update(dict.fromkeys(keys, _MORE_ROOM))
                return [call.of(keys, "room", _MORE_ROOM)], {}
            if len(keys) > 1:
                return self._halves(call, keys, "room"), {}
            return [], {keys[0]: "Truncated: the answer is longer than there is room for"}
        calls: list[_Call] = []
        failed: dict[Key, str] = {}
        broken = sorted([*missing, *found.bad]) if found.fault else sorted(found.bad)
        for place in broken:
            if call.keys[place] in past.repaired:
                said = found.bad.get(place) or found.fault
                failed[call.keys[place]] = f"InvalidAnswer: {said}"
        mended = [place for place in broken if call.keys[place] not in failed]
        if mended:
            keys = [call.keys[place] for place in mended]
            past.repaired.update(keys)
            text = answer.text or ""
            complaint = packing.again(ask.task, found, mended, text)
            calls.append(replace(call.of(keys, "repair"), complaint=complaint))
        rest = []
        for place in missing if not found.fault else ():
            key = call.keys[place]
            past.left_out[key] = past.left_out.get(key, 0) + 1
            if past.left_out[key] > _RESTS and not found.good:
                failed[key] = "LeftOut: the model answers the other items only"
            else:
                rest.append(key)
        if rest:
            calls.append(call.of(rest, "rest"))
        return calls, failed

    def _halves(self, call: _Call, keys: Sequence[Key], reason: str) -> list[_Call]:
        self._apart(call, keys)
        return call.halves(keys, reason)

    def _apart(self, call: _Call, keys: Sequence[Key]) -> None:
        for key in keys:
            self._past.alone.setdefault(key, call.room)

    # -- besides

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                found = endpoint.started(self._settings, self._endpoint)
                self._client = Client(self._settings, found)
            return self._client

    def _forget(self, client: Client) -> None:
        """The embedded model may have gone: the next call starts it again."""
        if self._endpoint.embedded:
            with self._lock:
                if self._client is client:
                    self._client = None

    def _tell(self, seconds: float, why: str) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._told < _TOLD_SECONDS:
                return
            self._told = now
        log.info("waiting %.1f s %s", seconds, why, group=self._stage)

    def _note(self, reason: str) -> None:
        """Why the group waits, for `lag` and whoever else asks."""
        self._noted = True
        with suppress(Retry):
            self._ledger.pause(reason)

    def _release(self, keys: Collection[Key]) -> None:
        with suppress(Retry):  # the lease sees to it
            self._ledger.release(keys)


def _packed(
    task: Task,
    items: Mapping[Key, Item],
    mine: Mapping[Key, int | None],
    alone: Mapping[Key, float],
) -> list[_Call]:
    """Items as calls: those of one reason together, and those of a lost call, which is repeated."""
    together: dict[tuple[str, int | None, Key | None], list[Key]] = {}
    for key, item in items.items():
        if key in mine:
            own = key if key in alone else None
            together.setdefault((item.reason, mine[key], own), []).append(key)
    return [
        _Call(
            keys[start : start + task.pack],
            reason,
            set() if lost is None else {lost},
            1.0 if own is None else alone[own],
        )
        for (reason, lost, own), keys in together.items()
        for start in range(0, len(keys), task.pack)
    ]


def _refusal(answer: Answer) -> str | None:
    """Why there is no answer to be read."""
    if answer.refusal:
        return f"Refusal: {_line(answer.refusal)}"
    if answer.finish == "content_filter":
        return "Filtered: the provider's content filter stopped the answer"
    return None


def _raise(running: Collection[Future[None]], stopping: bool, some_done: bool) -> None:
    """The gravest of what went wrong: a mistake of ours, then what a person has to see to. That the
    time of a batch is over is nothing wrong, unless all of it went by in waiting."""
    errors = [error for future in running if (error := future.exception()) is not None]
    if not errors:
        return
    grave = [error for error in errors if not isinstance(error, Pause | Retry | _Halted)]
    grave += [error for error in errors if isinstance(error, Pause)]
    grave += [error for error in errors if isinstance(error, Retry)]
    if grave:
        raise grave[0]
    if stopping:
        raise Retry(_AT_ONCE_SECONDS, "llm: stopping")
    trouble = next(filter(None, map(str, errors)), "")
    if trouble and not some_done:
        raise Retry(_AT_ONCE_SECONDS, f"llm: {trouble}")
    raise Onward(_AT_ONCE_SECONDS, "llm: the batch's time is over")


def _backoff(first: float, most: float) -> Iterator[float]:
    """Pauses that double, with jitter."""
    seconds = first
    while True:
        yield random.uniform(0.5, 1.0) * seconds
        seconds = min(seconds * 2, most)


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
