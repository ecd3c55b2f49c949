"""What a person sees of a publish: bars on a terminal, plain lines in a log, nothing for programs.

Results go to standard output, progress and failures to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from headrace.words import count
from producers.receipts import Receipt
from producers.sources import STDIN
from producers.transfer import Advanced, Job, Opened, Outcome

_EVERY = 10.0  # seconds between a file's lines in a log
_REASONS = 5  # kinds of rejects that are told apart


class Quiet:
    """Says nothing but, at the end, one JSON object."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []

    def started(self, run: str, files: int) -> None: ...

    def opened(self, job: Job, opened: Opened) -> None: ...

    def advanced(self, job: Job, advanced: Advanced) -> None: ...

    def finished(self, job: Job, outcome: Outcome) -> None:
        self._outcomes.append(outcome)

    def ended(self, receipt: Receipt, seconds: float) -> None:
        value = receipt.value()
        value["files"] = [_as_json(outcome) for outcome in self._outcomes]
        value["rows"] = sum(outcome.entry.rows for outcome in self._outcomes)
        value["seconds"] = round(seconds, 3)
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))

    def close(self) -> None: ...


class Silent(Quiet):
    """Says nothing at all."""

    def ended(self, receipt: Receipt, seconds: float) -> None: ...


class Lines(Quiet):
    """Lines for people: one or more a file when it is done, and one now and then on the way."""

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[int, float] = {}
        self._said: dict[int, float] = {}
        self._resumed: dict[int, int] = {}

    def started(self, run: str, files: int) -> None:
        self._say(f"run {run}: publishing {count(files, 'file')}")

    def opened(self, job: Job, opened: Opened) -> None:
        self._began[job.index] = self._said[job.index] = time.monotonic()
        self._resumed[job.index] = opened.resumed_at
        if STDIN in job.paths:
            self._say("standard input: if it is broken off, it cannot be taken up again", err=True)
        if opened.resumed_at:
            self._say(f"{shown(job.path)}: going on behind row {opened.resumed_at:,}")

    def advanced(self, job: Job, advanced: Advanced) -> None:
        now = time.monotonic()
        if now - self._said.get(job.index, now) < _EVERY:
            return
        self._said[job.index] = now
        seconds = now - self._began[job.index]
        rows, fraction = advanced.entry.rows, advanced.fraction
        words = [f"{count(rows, 'row')}"]
        if fraction is not None:
            words.append(f"{fraction:.0%}")
        words.append(f"{rows / seconds:,.0f} rows/s")
        if fraction and rows:
            whole = (rows + self._resumed[job.index]) / fraction
            left = (whole - rows - self._resumed[job.index]) * seconds / rows
            words.append(f"about {left:,.0f} s left")
        self._say(f"{shown(job.path)}: {', '.join(words)}", err=True)

    def finished(self, job: Job, outcome: Outcome) -> None:
        super().finished(job, outcome)
        failed = outcome.entry.state in ("failed", "superseded")
        for line in told(outcome):
            self._say(line, err=failed)

    def ended(self, receipt: Receipt, seconds: float) -> None:
        entries = receipt.files
        rows = sum(entry.rows for entry in entries)
        words = [f"{count(sum(entry.published for entry in entries), 'record')} published"]
        if communities := sum(entry.communities for entry in entries):
            words.append(count(communities, "community"))
        words.append(f"{count(sum(entry.rejected for entry in entries), 'row')} rejected")
        for state, verb in (
            ("known", "already published"),
            ("failed", "failed"),
            ("superseded", "taken over by another run"),
            ("stopped", "stopped"),
            ("waiting", "not begun"),
        ):
            if number := sum(entry.state == state for entry in entries):
                words.append(f"{count(number, 'file')} {verb}")
        rate = f", {rows / seconds:,.0f} rows/s" if rows and seconds else ""
        self._say(f"run {receipt.run} {receipt.state}: {', '.join(words)}; {seconds:.1f} s{rate}")

    def _say(self, line: str, err: bool = False) -> None:
        click.echo(line, err=err)


class Bars(Lines):
    """Lines as above, and below them a bar for each file that is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rows]:>12,} rows  {task.fields[rate]:>9,.0f}/s"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[int, TaskID] = {}
        self._progress.start()

    def opened(self, job: Job, opened: Opened) -> None:
        super().opened(job, opened)
        self._tasks[job.index] = self._progress.add_task(
            shown(job.path), total=None, rows=0, rate=0.0
        )

    def advanced(self, job: Job, advanced: Advanced) -> None:
        seconds = max(time.monotonic() - self._began[job.index], 0.001)
        fraction, rows = advanced.fraction, advanced.entry.rows
        self._progress.update(
            self._tasks[job.index],
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            rows=rows,
            rate=rows / seconds,
        )

    def finished(self, job: Job, outcome: Outcome) -> None:
        if (task := self._tasks.pop(job.index, None)) is not None:
            self._progress.remove_task(task)
        super().finished(job, outcome)

    def ended(self, receipt: Receipt, seconds: float) -> None:
        self.close()
        super().ended(receipt, seconds)

    def close(self) -> None:
        with suppress(OSError):
            self._progress.stop()

    def _say(self, line: str, err: bool = False) -> None:
        if sys.stdout.isatty() or err:
            # above the bars, which live on the same terminal
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line)


def choose(as_json: bool) -> Quiet:
    if as_json:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


def shown(path: str) -> str:
    return "standard input" if path == STDIN else path


def told(outcome: Outcome) -> Iterable[str]:
    """A file's result as lines."""
    entry = outcome.entry
    name = shown(entry.path)
    behind = f" (rows before {entry.resumed_at + 1:,} were out)" if entry.resumed_at else ""
    counts = _counts(outcome)
    if entry.state in ("done", "limited"):
        rate = f", {entry.rows / outcome.seconds:,.0f} rows/s" if outcome.seconds else ""
        yield f"{name}: {counts}{behind}; {outcome.seconds:.1f} s{rate}"
        if way := " · ".join(filter(None, (entry.mapping, outcome.detected))):
            yield f"  read as {way}"
        if entry.state == "limited":
            yield f"  stopped at --limit behind row {entry.resumed_at + entry.rows:,};" + (
                " publish it again to go on"
            )
    else:
        before = f"; {counts} before" if entry.rows else ""
        says_it = str(entry.message).startswith(name)
        yield f"{entry.message if says_it else f'{name}: {entry.message}'}{before}"
    yield from _details(outcome)


def _counts(outcome: Outcome) -> str:
    entry = outcome.entry
    words = []
    if entry.published or not entry.communities:
        words.append(f"{count(entry.published, 'record')} published")
    if entry.communities:
        words.append(f"{count(entry.communities, 'community')} of {count(entry.rows, 'row')}")
    if entry.rejected:
        words.append(f"{count(entry.rejected, 'row')} rejected")
    return ", ".join(words)


def _details(outcome: Outcome) -> Iterable[str]:
    entry = outcome.entry
    for reason, number in outcome.reasons.most_common(_REASONS):
        yield f"  {count(number, 'row')} rejected: {reason}"
    if (more := len(outcome.reasons) - _REASONS) > 0:
        yield f"  … and {count(more, 'other reason')}"
    if entry.rejected and entry.rejects_file:
        yield f"  the rejected rows are in {entry.rejects_file}"
    for field, number in outcome.left_out.most_common(_REASONS):
        yield f"  {field} could not be read in {count(number, 'row')} and was left out"
    if outcome.nul_removed:
        yield f"  NUL characters were taken out of {count(outcome.nul_removed, 'record')}"


def _as_json(outcome: Outcome) -> dict[str, Any]:
    value = outcome.entry.value() | {"seconds": round(outcome.seconds, 3)}
    if outcome.detected:
        value["detected"] = outcome.detected
    if outcome.reasons:
        value["reasons"] = dict(outcome.reasons)
    if outcome.left_out:
        value["left_out"] = dict(outcome.left_out)
    if outcome.nul_removed:
        value["nul_removed"] = outcome.nul_removed
    return value
