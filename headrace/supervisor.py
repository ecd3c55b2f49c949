"""`headrace run`: one process a worker, started again when it crashes, ended when we end.

The supervisor knows a worker by two things: the lines that it writes into its pipe (a state, or the
counts of a batch) and how it exits (`headrace.stream.faults.Exit`). Whether anything is left to do
it asks Kafka alone.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field

import orjson

from headrace import config
from headrace.config import Settings
from headrace.llm.batches import courier
from headrace.log import get
from headrace.scheduling.attendance import Attendance, Duty, Trouble
from headrace.scheduling.scheduler import Scheduler
from headrace.search import marks
from headrace.stream import clients
from headrace.stream.faults import Exit
from headrace.stream.remaining import in_order, remaining
from headrace.stream.signals import Signals
from headrace.stream.topology import App, Group, Job, Member, Projector, Topic, Topology
from headrace.stream.worker import Backoff

log = get(__name__)

_TICK = 0.25
_LOOK_SECONDS = 0.5
_NEVER = float("inf")
_GIVEN_UP = 5  # crashes in a row, with nothing done between them, after which nobody waits for it


@dataclass
class Child:
    """A worker's place: the process that holds it now, and what is known of it.

    attended  it is started when the group is due only, and rests in between
    now       it works whatever its group's schedule says
    """

    group: Member
    name: str  # for people
    pause: Backoff
    attended: bool = False
    now: bool = False
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    rest: bytes = b""  # a line that has not come whole
    state: str = ""
    reason: str = ""
    crashes: int = 0  # in a row
    start_at: float = 0.0  # monotonic; infinite: not to be started again
    rested_at: float = 0.0  # monotonic: since when nothing was due, as far as it knew
    done: bool = False  # a job that was to run once has run

    @property
    def waits(self) -> str | None:
        """Why this worker does not work and will not soon, or None."""
        if self.state in ("paused", "stopped"):
            return f"{self.state}: {self.reason}"
        if self.crashes >= _GIVEN_UP:
            return f"crashed {self.crashes} times in a row: {self.reason}"
        return None


@dataclass
class Report:
    """How a run ended: exit code, seconds, records by group and outcome, and what waits and why."""

    code: int
    seconds: float
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)


class Supervisor:
    """`topics` are what each group really reads, its redo topic included, by group.

    attended  groups with a schedule: each is started when it is due
    jobs      the same, or, where members are `named`, run once: at once, or when nothing else is
              left to do
    apps      run as the others do, but nothing waits for them
    """

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        groups: Sequence[Group],
        topics: Mapping[str, Sequence[Topic]],
        *,
        projectors: Sequence[Projector] = (),
        attended: Sequence[Group] = (),
        jobs: Sequence[Job] = (),
        apps: Sequence[App] = (),
        named: bool = False,
        workers: int | None = None,
        until_caught_up: bool = False,
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._groups = in_order(topology, groups)
        self._projectors = tuple(projectors)
        self._attended = tuple(attended)
        self._jobs = tuple(jobs)
        members: list[Member] = [
            *self._groups, *self._projectors, *self._attended, *self._jobs, *apps
        ]  # fmt: skip
        self._topics = topics
        self._until_caught_up = until_caught_up
        self._children = [
            Child(
                member,
                f"{member.short}/{number}" if count > 1 else member.short,
                Backoff(settings),
                attended=not named and (member in self._attended or isinstance(member, Job)),
                now=named,
                start_at=_NEVER if named and until_caught_up and isinstance(member, Job) else 0.0,
            )
            for member in members
            for count in [
                (workers or member.workers) if isinstance(member, Group | Projector) else 1
            ]
            for number in range(count)
        ]
        self._awaited = [c for c in self._children if not isinstance(c.group, App)]
        self._awaited = self._awaited or self._children
        self._waits_for_windows = any(child.attended for child in self._children)
        self._duties: dict[str, Duty] = {}
        self._looked_at = 0.0  # when the look at duties began
        self._wake = threading.Event()
        self._jobs_turn = False  # nothing is left but jobs
        self._counts = {group.short: Counter[str]() for group in members}
        self._selector = selectors.DefaultSelector()
        self._left: dict[str, int] = {}
        self._looks = 0  # in a row that found nothing left for whoever may run
        self._ended = threading.Event()
        self._signals = Signals()
        self._signals.on_second = self._kill

    def run(self) -> Report:
        """Returns when everything is caught up (if asked for), after a signal or `stop`. In
        another thread than the main one signals are left alone."""
        began = time.monotonic()
        code: int | None = None
        waiting: dict[str, str] = {}
        with self._signals as signals:
            if self._until_caught_up:
                threading.Thread(target=self._look, name="lookout", daemon=True).start()
            if self._waits_for_windows:
                threading.Thread(target=self._attend, name="windows", daemon=True).start()
                threading.Thread(target=self._schedule, name="scheduler", daemon=True).start()
            threading.Thread(target=self._carry, name="batches", daemon=True).start()
            try:
                while code is None and not signals.stopping():
                    self._start_due()
                    self._listen(_TICK)
                    self._reap()
                    if self._looks >= 2 and self._jobs_have_run():
                        waiting = self._waiting()
                        code = Exit.WAITS if waiting else Exit.DONE
                    elif all(child.done or child.state == "stopped" for child in self._awaited):
                        waiting = self._idle()
                        code = Exit.WAITS if waiting else Exit.DONE
            finally:
                self._ended.set()
                self._wake.set()
                self._drain()
        rested = {child.group.short for child in self._children if child.attended}
        counts = {name: n for name, n in self._counts.items() if n or name not in rested}
        return Report(code or Exit.DONE, time.monotonic() - began, counts, waiting)

    def stop(self) -> None:
        """Ends `run` in another thread, as a signal does: every worker finishes its batch."""
        self._signals.stop()

    # -- processes

    def _start_due(self) -> None:
        now = time.monotonic()
        for index, child in enumerate(self._children):
            if child.process is None and child.start_at <= now and self._is_due(child):
                self._start(child, index)

    def _is_due(self, child: Child) -> bool:
        """Whether there is something to do, by a look that is newer than the worker's own."""
        if not child.attended:
            return True
        if self._until_caught_up and isinstance(child.group, Job) and not self._jobs_turn:
            return False  # it is to find what the others make
        duty = self._duties.get(child.group.short)
        return duty is not None and duty.due and self._looked_at > child.rested_at

    def _jobs_have_run(self) -> bool:
        """Starts the jobs that come last, and says whether all have run or cannot."""
        jobs = [child for child in self._children if child.now and isinstance(child.group, Job)]
        for child in jobs:
            if child.start_at == _NEVER and not child.done and child.state != "stopped":
                child.start_at = 0.0
        return all(child.done or child.waits for child in jobs)

    def _start(self, child: Child, index: int) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)  # a worker does not wait for us
        environment = {**os.environ, **config.as_environment(self._settings)}
        port = self._settings.processing.metrics_port
        if port:
            environment["HEADRACE_PROCESSING__METRICS_PORT"] = str(port + index)
        command = [sys.executable, "-m", "headrace", "worker", child.group.short]
        command += ["--supervisor", f"{os.getpid()}:{write}", *["--now"][: child.now]]
        # A process group of its own: Ctrl-C reaches us alone, and we pass it on once.
        child.process = subprocess.Popen(
            command, env=environment, pass_fds=[write], stdin=subprocess.DEVNULL, process_group=0
        )
        os.close(write)
        child.pipe, child.rest = read, b""
        child.state, child.reason = "starting", ""
        self._selector.register(read, selectors.EVENT_READ, child)
        log.info("started", worker=child.name, pid=child.process.pid)

    def _listen(self, timeout: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout)
            return
        for key, _ in self._selector.select(timeout):
            self._hear(key.data)

    def _hear(self, child: Child) -> None:
        while True:
            try:
                chunk = os.read(child.pipe, 65_536)
            except BlockingIOError:
                return
            if not chunk:  # it closed its end: it ends or has ended
                self._selector.unregister(child.pipe)
                os.close(child.pipe)
                child.pipe = -1
                return
            *lines, child.rest = (child.rest + chunk).split(b"\n")
            for line in lines:
                with suppress(orjson.JSONDecodeError):  # one that did not fit into the pipe
                    self._note(child, orjson.loads(line))

    def _note(self, child: Child, event: dict[str, object]) -> None:
        counts = event.get("counts")
        if isinstance(counts, dict):
            self._counts[child.group.short].update(counts)
            child.crashes = 0
            child.pause.reset()
            return
        child.state, child.reason = str(event.get("state")), str(event.get("reason") or "")

    def _reap(self) -> None:
        for child in self._children:
            if child.process is None or child.process.poll() is None:
                continue
            code = child.process.returncode
            child.process = None
            if child.pipe >= 0:
                self._hear(child)
            if child.pipe >= 0:  # somebody whom the worker started still holds the other end
                self._selector.unregister(child.pipe)
                os.close(child.pipe)
                child.pipe = -1
            if code == Exit.RESTS or (code == Exit.DONE and isinstance(child.group, Job)):
                self._rest(child)
                continue
            if code in (Exit.LIMIT, Exit.MISTAKE):
                child.start_at = _NEVER
                child.state, child.reason = "stopped", child.reason or f"exit code {code}"
                log.error("stopped; not started again", worker=child.name, reason=child.reason)
                continue
            if child.state != "crashed":
                child.state, child.reason = "crashed", _how(code)
            child.crashes += 1
            seconds = child.pause.next()
            child.start_at = time.monotonic() + seconds
            log.warning(
                "ended; starting it again",
                worker=child.name,
                how=_how(code),
                again_in=f"{seconds:g} s",
            )

    def _rest(self, child: Child) -> None:
        """It has done what was due."""
        child.state, child.reason, child.crashes = "resting", "", 0
        child.rested_at = time.monotonic()
        if child.attended:
            child.pause.reset()
            self._wake.set()
        elif isinstance(child.group, Job):
            child.done, child.start_at = True, _NEVER
        else:  # it was given a schedule while we run, and looks for itself
            child.start_at = time.monotonic() + child.pause.next()
        log.info("rests", worker=child.name)

    def _drain(self) -> None:
        """Asks every worker to finish its batch; whoever does not in time is killed."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        ends = time.monotonic() + self._settings.processing.drain_seconds + 5
        for process in running:
            while process.poll() is None and time.monotonic() < ends:
                self._listen(0.05)
            if process.poll() is None:
                process.kill()
                process.wait()
        for child in self._children:
            if child.pipe >= 0:
                self._hear(child)

    def _kill(self) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.kill()

    # -- windows

    def _attend(self) -> None:
        """Asks who is due, in a thread of its own: PostgreSQL and Kafka may take their time."""
        attendance = Attendance(self._settings, self._topology, self._attended, self._jobs)
        trouble = Trouble("cannot see whether a window is open")
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._duties, self._looked_at = attendance.look(), began
                trouble.passed()
            except Exception as error:
                trouble.has(error)
            self._wake.wait(self._settings.scheduler.look_seconds)
            self._wake.clear()
        attendance.close()

    def _schedule(self) -> None:
        """The scheduler; whatever becomes of it, workers go on."""
        try:
            Scheduler(self._settings, self._topology).run(self._ended.wait)
        except Exception:
            log.exception("the scheduler has ended")

    def _carry(self) -> None:
        """Requests to language models and their answers, where any group asks by batches."""
        if courier.wanted(self._settings, self._topology):
            courier.Courier(self._settings, self._topology).serve(self._ended)

    # -- what is left

    def _waiting(self) -> dict[str, str]:
        """Groups that have work left which they may not do now, and why."""
        return {group: reason for group, reason in self._idle().items() if self._left.get(group, 1)}

    def _idle(self) -> dict[str, str]:
        """Groups none of whose workers works, and why."""
        reasons = {child.group.short: child.waits or "" for child in self._children}
        at_work = {child.group.short for child in self._children if child.waits is None}
        return {group: reason for group, reason in reasons.items() if group not in at_work}

    def _look(self) -> None:
        """Counts what is left, in a thread of its own: the broker may take its time to answer."""
        trouble = Trouble("cannot see what is left")
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                with self._admin() as admin, self._attendance() as attendance:
                    while not self._ended.wait(_LOOK_SECONDS):
                        # Windows first: who reads what comes out of them is asked after that.
                        duties = attendance.look() if attendance else {}
                        # Marks last: a store makes them with the rows, before it tells Kafka.
                        left = remaining(admin, self._groups, self._topics) if admin else {}
                        for projector in self._projectors:
                            left[projector.short] = marks.left(self._settings)
                        for short, duty in duties.items():
                            left[short] = left.get(short, 0) + duty.left
                        self._left = left
                        trouble.passed()
                        idle = self._idle()
                        # One that is asked for may wait for a group that cannot go on.
                        busy = {short for short, n in left.items() if n and short not in idle}
                        if not idle:
                            busy |= {short for short, duty in duties.items() if duty.asked}
                        self._jobs_turn = not busy - {job.short for job in self._jobs}
                        if busy:
                            self._looks = 0
                        else:
                            self._looks += 1
            except Exception as error:
                self._looks = 0
                trouble.has(error)

    def _attendance(self) -> AbstractContextManager[Attendance | None]:
        if not self._waits_for_windows:
            return nullcontext()
        return closing(Attendance(self._settings, self._topology, self._attended, self._jobs))

    def _admin(self) -> AbstractContextManager[clients.Admin | None]:
        """Nobody asks Kafka where projectors run alone."""
        return clients.admin(self._settings) if self._groups else nullcontext()


def _how(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    names: dict[int, str] = {
        Exit.CRASHED: "crashed, see its log",
        Exit.FENCED: "another worker took its place",
        Exit.STUCK: "a step hung past its deadline",
    }
    return names.get(code, f"exit code {code}")


def reporter(pipe: int) -> Callable[[dict[str, object]], None]:
    """A worker's end of the pipe. A line that does not fit is lost rather than waited for."""
    os.set_inheritable(pipe, False)

    def report(event: dict[str, object]) -> None:
        with suppress(OSError):
            os.write(pipe, orjson.dumps(event) + b"\n")

    return report
