"""One worker: a process that is one member of one group, whatever the group's home.

`headrace.stream.stage_worker` and `headrace.stream.store_worker` each give a Loop; what is the same
for both stands here: the slot, the signals, pauses, errors that pass, and the end.
"""

from __future__ import annotations

import fcntl
import gc
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from headrace import home
from headrace.config import Settings
from headrace.errors import HeadraceError, Onward, ServerUnavailable
from headrace.log import get
from headrace.stream import clients
from headrace.stream.faults import Exit, Fenced, LimitReached, fences, passes
from headrace.stream.metrics import Metrics
from headrace.stream.signals import Signals
from headrace.stream.stage import Pause, Retry
from headrace.stream.topology import Group, Topic, Topology
from headrace.stream.watchdog import Watchdog

log = get(__name__)

_WAITED_SECONDS = 30.0  # a poll without messages does not end a pause; so many seconds of them do
LEAVE_SECONDS = 10.0
STEP_SECONDS = 60.0  # a commit, a start or an end that takes longer is stuck


@dataclass(frozen=True, slots=True)
class Post:
    """What any loop is given to work with."""

    settings: Settings
    slot: int
    metrics: Metrics
    watchdog: Watchdog
    stopping: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Place(Post):
    """The same for a group of Kafka's."""

    topology: Topology
    group: Group
    topics: tuple[Topic, ...]  # what is really read: the subscription and the group's redo
    admin: clients.Admin

    @property
    def worker(self) -> str:
        """The worker's name: host and slot, which a restart gets again."""
        return f"{socket.gethostname()}-{self.slot}"

    @property
    def transactional_id(self) -> str:
        """Slots are counted in each data folder (another user's, say), so the id names it."""
        return f"{self.group.name}.{self.worker}.{home.data_id()}"


class Loop(Protocol):
    """One group's way of working. Everything is called from one thread.

    open   connects and joins the group
    work   polls, works and commits once; True where it committed records. Whatever it raises, the
           batch is then as good as never read: rolled back, and the source rewound
    rest   stays a member for so many seconds without reading; ends early when stopping
    close  leaves the group
    """

    def open(self) -> None: ...

    def work(self) -> bool: ...

    def rest(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def run(
    settings: Settings,
    topology: Topology,
    group: Group,
    topics: tuple[Topic, ...],
    *,
    slot: int | None = None,
    report: Callable[[dict[str, object]], None] = lambda event: None,
    finished: Callable[[clients.Admin], bool] = lambda admin: False,
    leaving: Callable[[], bool] = lambda: False,
    signals: Signals | None = None,
) -> Exit:
    """`serve` for a group of Kafka's; `finished` is given a client to ask with."""
    admin: clients.Admin | None = None

    def asked() -> clients.Admin:
        nonlocal admin
        admin = admin or clients.admin(settings)
        return admin

    def build(post: Post) -> Loop:
        place = Place(
            post.settings,
            post.slot,
            post.metrics,
            post.watchdog,
            post.stopping,
            topology,
            group,
            topics,
            asked(),
        )
        loop: Loop = import_module(f"headrace.stream.{group.kind}_worker").build(place)
        return loop

    return serve(
        settings,
        group.short,
        group.name,
        build,
        slot=slot,
        report=report,
        finished=lambda: finished(asked()),
        leaving=leaving,
        signals=signals,
    )


def serve(
    settings: Settings,
    short: str,
    name: str,
    build: Callable[[Post], Loop],
    *,
    slot: int | None = None,
    report: Callable[[dict[str, object]], None] = lambda event: None,
    finished: Callable[[], bool] = lambda: False,
    leaving: Callable[[], bool] = lambda: False,
    signals: Signals | None = None,
) -> Exit:
    """Works until a signal, until `finished` says so after an idle poll, until `leaving` says so
    between two batches, or until it cannot go on. `signals`: those that the caller waits for too.

    `report` hears {"state", "reason"} of every change (starting, ready, working, retrying, paused,
    stopped) and {"counts": {…}} of every batch.
    """
    signals = signals or Signals()
    watchdog = Watchdog()
    signals.on_first = lambda: watchdog.begin(
        "draining", settings.processing.drain_seconds, Exit.CRASHED
    )
    with held_slot(f"{settings.project}.{short}", slot) as taken, signals:
        metrics = Metrics(settings, name)
        metrics.on_counts = lambda counts: report({"counts": dict(counts)})
        post = Post(settings, taken, metrics, watchdog, signals.stopping)

        def say(state: str, reason: str = "") -> None:
            if metrics.state != (state, reason):
                metrics.state = (state, reason)
                report({"state": state, "reason": reason})

        say("starting")
        loop: Loop | None = None
        code = Exit.CRASHED
        try:
            loop = build(post)
            _open(loop, post, say)
            _serve(loop, post, say, finished, leaving)
            code = Exit.DONE
        except LimitReached as error:
            log.error(str(error))
            say("stopped", str(error))
            code = Exit.LIMIT
        except Fenced as error:
            log.warning("fenced", reason=str(error))
            code = Exit.FENCED
        except ServerUnavailable as error:
            log.error(str(error))
        except HeadraceError as error:
            log.error(str(error))
            say("stopped", str(error))
            code = Exit.MISTAKE
        except Exception:
            log.exception("the worker crashed")
        if loop is not None and code != Exit.FENCED:
            # Whatever happened: a member that leaves is not waited for by the others.
            with watchdog.step("leaving the group", LEAVE_SECONDS, code), suppress(Exception):
                loop.close()
        metrics.close()
        return code


def _open(loop: Loop, place: Post, say: Callable[..., None]) -> None:
    pause = Backoff(place.settings)
    while not place.stopping():
        try:
            loop.open()
            break
        except Retry as retry:
            say("retrying", str(retry))
            log.warning("cannot start yet", again_in=f"{retry.after:g} s", reason=str(retry))
            _sleep(retry.after, place.stopping)
        except Exception as error:
            if fences(error):
                raise Fenced(str(error)) from error
            if not passes(error):
                raise
            say("retrying", str(error))
            seconds = pause.next()
            log.warning("cannot start yet", again_in=f"{seconds:g} s", reason=str(error))
            _sleep(seconds, place.stopping)
    # What is alive now stays; looking at it again and again took a third of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _serve(
    loop: Loop,
    place: Post,
    say: Callable[..., None],
    finished: Callable[[], bool],
    leaving: Callable[[], bool],
) -> None:
    pause = Backoff(place.settings)
    longest = place.settings.processing.retry_max_seconds
    waited: float | None = None  # since when nothing was done after a pause
    while not place.stopping() and not leaving():
        try:
            busy = loop.work()
            pause.reset()
            if busy:
                if place.metrics.state[0] == "paused":
                    log.info("goes on")
                say("working")
                waited = None
            elif waited is None or time.monotonic() - waited > _WAITED_SECONDS:
                say("ready")
                waited = None
            if not busy and finished():
                break
        except Onward as part:
            pause.reset()
            say("working")
            loop.rest(part.after)
        except Retry as retry:
            say("retrying", str(retry))
            waited = time.monotonic()
            if not place.stopping():
                again_in = f"{retry.after:.1f} s"
                log.warning("the stage asks to wait", again_in=again_in, reason=str(retry))
            loop.rest(retry.after)
        except Pause as wait:
            state, reason = place.metrics.state
            if state != "paused" or _words(reason) != _words(wait.reason):
                log.warning("paused", reason=wait.reason)
            say("paused", wait.reason)
            waited = time.monotonic()
            loop.rest(longest)
        except Exception as error:
            if fences(error):
                raise Fenced(str(error)) from error
            if not passes(error):
                raise
            seconds = pause.next()
            say("retrying", str(error))
            waited = time.monotonic()
            log.warning("trouble that passes", again_in=f"{seconds:g} s", reason=str(error))
            loop.rest(seconds)


def _words(reason: str) -> str:
    """Without its numbers: seconds that are left make no other reason."""
    return re.sub(r"\d+", "", reason)


class Backoff:
    """Seconds to wait: the first pause, doubled each time up to the longest."""

    def __init__(self, settings: Settings) -> None:
        self._first = settings.processing.retry_seconds
        self._longest = settings.processing.retry_max_seconds
        self._next = self._first

    def next(self) -> float:
        seconds, self._next = self._next, min(self._next * 2, self._longest)
        return seconds

    def reset(self) -> None:
        self._next = self._first


@contextmanager
def held_slot(group: str, wanted: int | None = None) -> Iterator[int]:
    """The lowest free slot of a group on this machine (or the wanted one), until the block ends.

    The lock is the operating system's, so a killed worker's slot is free at once, and its successor
    ends its transaction by coming back under the same transactional id.
    """
    folder = home.data_dir() / "slots"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadraceError(
            f"{folder}: {error.strerror}; let HEADRACE_DATA_DIR name a folder to write to"
        ) from None
    for slot in range(10_000) if wanted is None else [wanted]:
        lock = os.open(folder / f"{group}.{slot}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield slot
            return
        finally:
            os.close(lock)
    raise HeadraceError(f"slot {wanted} of {group} is taken by another worker on this machine")


def _sleep(seconds: float, until: Callable[[], bool]) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and not until():
        time.sleep(min(left, 0.25))
