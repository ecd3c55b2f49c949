"""Worker processes for many files: each takes one job at a time and tells how it goes.

A worker that dies takes only its own job with it. Workers end when their parent does, however it
ended: their pipe breaks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

Report = Callable[[Any], None]
Stopping = Callable[[], bool]
Work = Callable[[Any, Report, Stopping], Any]  # job, report, stopping → result


@dataclass(frozen=True, slots=True)
class Told:
    """A worker says something about its job."""

    job: Any
    event: Any


@dataclass(frozen=True, slots=True)
class Finished:
    job: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Died:
    """The worker is gone, and its job with it."""

    job: Any
    reason: str


_STOP = "stop"


def work_along(
    jobs: Iterator[Any],
    size: int,
    hire: Callable[..., Work],
    arguments: tuple[Any, ...],
    stopping: Stopping,
    tick: float = 0.5,
) -> Iterator[Told | Finished | Died | None]:
    """Do the jobs with up to `size` workers at once; None every `tick` seconds of silence.

    `hire(*arguments)` is called in the new process and returns what works on a job. Jobs are taken
    from the iterator when a worker is free; a None among them means that none is ready yet.
    """
    crew: dict[Connection, _Worker] = {}
    ended = told_to_stop = False
    try:
        while True:
            if stopping() and not told_to_stop:
                told_to_stop = True
                for worker in crew.values():
                    worker.stop()
            while not ended and not told_to_stop:
                free = next((worker for worker in crew.values() if worker.job is None), None)
                if free is None and len(crew) >= size:
                    break
                job = next(jobs, _END)
                if job is _END:
                    ended = True
                elif job is None:
                    break
                else:
                    if free is None:
                        free = _Worker(hire, arguments)
                        crew[free.pipe] = free
                    free.give(job)
            busy = [worker.pipe for worker in crew.values() if worker.job is not None]
            if not busy:
                if ended or told_to_stop:
                    return
                yield None
                continue
            ready = wait(busy, timeout=tick)
            if not ready:
                yield None
            for pipe in ready:
                assert isinstance(pipe, Connection)
                worker = crew[pipe]
                heard = worker.hear()
                if isinstance(heard, Died):
                    del crew[pipe]
                yield heard
    finally:
        for worker in crew.values():
            worker.dismiss()


_END = object()


class _Worker:
    def __init__(self, hire: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")  # threads of librdkafka survive no fork
        self.pipe, theirs = context.Pipe()
        self.job: Any = None
        self._process: SpawnProcess = context.Process(
            target=_live, args=(theirs, hire, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def give(self, job: Any) -> None:
        self.job = job
        self._say(job)

    def stop(self) -> None:
        if self.job is not None:
            self._say(_STOP)

    def _say(self, message: Any) -> None:
        with suppress(OSError):  # it has died; `hear` finds out
            self.pipe.send(message)

    def hear(self) -> Told | Finished | Died:
        job = self.job
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            self.pipe.close()
            return Died(job, _how(self._process.exitcode))
        if kind == "told":
            return Told(job, content)
        self.job = None
        return Finished(job, content)

    def dismiss(self) -> None:
        self.pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)


def _live(pipe: Connection, hire: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and says so
    try:
        work = hire(*arguments)
        while True:
            job = pipe.recv()
            if job == _STOP:
                continue
            result = work(job, lambda event: pipe.send(("told", event)), pipe.poll)
            pipe.send(("finished", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent is gone; an open transaction ends with our connection or in time


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by signal {signal.Signals(-code).name}"
    return f"its process ended with status {code}"
