"""Which windows to open now. Pure: it is given the time, what there was, and what waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from headrace.schedule import duration_text, last_due
from headrace.scheduling.units import DISABLED, Key, Unit


@dataclass(frozen=True, slots=True)
class History:
    """What there was of a unit.

    since    from when its schedule counts: what was due before is not made up
    due      the latest due time that a window (or its leaving out) stands for
    opened   when a window was last opened
    open     a window is open now
    asked    somebody has asked for one
    """

    since: datetime
    due: datetime | None = None
    opened: datetime | None = None
    open: bool = False
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with a unit now.

    open   a window for `due`; `asked`: the one that somebody has asked for
    skip   the window for `due` is left out, and `due` is done with
    wait   nothing, for this reason (empty: nothing is due)
    """

    unit: Unit
    do: Literal["open", "skip", "wait"]
    reason: str = ""
    due: datetime | None = None
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, whose clock schedules go by, and how long a window waits at most for those of the
    groups that it reads from. One that was asked for waits to the end: it is to find all of it."""

    now: datetime
    zone: str = "UTC"
    patience: timedelta = timedelta(hours=6)


def decide(
    units: Sequence[Unit],
    history: Mapping[Key, History],
    clock: Clock,
    waiting: Callable[[Unit], int],
) -> list[Step]:
    """One step for each unit that has a history; give writers before readers. `waiting` says how
    many messages wait for a unit, and is asked only where that matters."""
    known = dict(history)
    steps = []
    for unit in units:
        was = known.get(unit.key)
        if was is None:
            continue
        step = _step(unit, was, clock, known, waiting)
        if step.do == "open":
            known[unit.key] = replace(was, open=True, asked=False, opened=clock.now)
        steps.append(step)
    return steps


def _step(
    unit: Unit,
    was: History,
    clock: Clock,
    known: Mapping[Key, History],
    waiting: Callable[[Unit], int],
) -> Step:
    if unit.held == DISABLED:
        return Step(unit, "wait", DISABLED)
    if was.open:
        return Step(unit, "wait", "its window is open")
    above = _above(unit, known, clock, to_the_end=was.asked)
    if was.asked:
        if above:
            return Step(unit, "wait", f"for {above}")
        return Step(unit, "open", "asked for", clock.now, asked=True)
    if unit.held:
        return Step(unit, "wait", unit.held)
    if unit.when.cron is None:
        return _by_lag(unit, was, clock.now, waiting)
    due = last_due(unit.when, clock.now, clock.zone)
    if due is None or due <= was.since or (was.due is not None and due <= was.due):
        return Step(unit, "wait")
    if above:
        return Step(unit, "wait", f"for {above}")
    if unit.minimum is not None and (new := waiting(unit)) < unit.minimum:
        return Step(unit, "skip", f"{new:,} new of min {unit.minimum:,}", due)
    return Step(unit, "open", unit.when.text, due)


def _above(unit: Unit, known: Mapping[Key, History], clock: Clock, *, to_the_end: bool) -> str:
    """The windows that this unit's waits for, for people."""
    found = []
    for key in sorted(unit.after, key=str):
        was = known.get(key)
        if was is None:
            continue
        fresh = was.opened is None or clock.now - was.opened < clock.patience
        if was.asked or (was.open and (to_the_end or fresh)):
            found.append(" ".join(filter(None, key)))
    return ", ".join(found)


def _by_lag(
    unit: Unit,
    was: History,
    now: datetime,
    waiting: Callable[[Unit], int],
) -> Step:
    when = unit.when
    assert when.lag is not None
    rested = now - max(was.opened or was.since, was.since)
    long_enough = when.every_ms is not None and rested >= timedelta(milliseconds=when.every_ms)
    new = waiting(unit)
    if new < when.lag and not (new and long_enough):
        return Step(unit, "wait", f"lag {new:,} of {when.lag:,}")
    if unit.minimum is not None and new < unit.minimum:
        return Step(unit, "wait", f"{new:,} new of min {unit.minimum:,}")
    if new >= when.lag:
        return Step(unit, "open", f"lag {new:,} of {when.lag:,}", now)
    return Step(unit, "open", f"{new:,} wait for {duration_text(when.every_ms or 0)}", now)
