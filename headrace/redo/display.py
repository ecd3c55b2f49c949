"""How a command shows that it goes on: a bar on a terminal, plain lines in a log, else nothing."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

_EVERY = 10.0  # seconds between lines in a log


class Quiet:
    """For programs; see `flows.Tell`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def step(self, name: str, total: int | None) -> None: ...

    def advance(self, done: int) -> None: ...

    def say(self, line: str) -> None: ...


class Lines(Quiet):
    """To standard error."""

    def __init__(self) -> None:
        self._name, self._total = "", 0
        self._spoke = time.monotonic()
        self._last = ""

    def step(self, name: str, total: int | None) -> None:
        self._name, self._total = name, total or 0
        self._spoke = time.monotonic()

    def advance(self, done: int) -> None:
        if time.monotonic() - self._spoke >= _EVERY:
            self._spoke = time.monotonic()
            self._echo(f"{self._name}: {done:,} of {self._total:,}")

    def say(self, line: str) -> None:
        kind = "".join(c for c in line if not c.isdigit())  # the same with other numbers waits
        if kind != self._last or time.monotonic() - self._spoke >= _EVERY:
            self._last, self._spoke = kind, time.monotonic()
            self._echo(line)

    def _echo(self, line: str) -> None:
        with suppress(OSError):
            click.echo(line, err=True)


class Bars(Quiet):
    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None
        self._said = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, name: str, total: int | None) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total)

    def advance(self, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def say(self, line: str) -> None:
        if line != self._said:
            self._progress.console.print(line, highlight=False, markup=False)
        self._said = line


def chosen(as_json: bool) -> Quiet:
    if as_json:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()
