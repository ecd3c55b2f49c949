"""What runs next, and why each waits: `headrace schedule`, and the reasons that `lag` gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

from headrace import platforms
from headrace.backlog import database
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.schedule import next_due
from headrace.scheduling import plan, positions, windows
from headrace.scheduling.plan import Clock, History, Step
from headrace.scheduling.scheduler import is_led, read_history
from headrace.scheduling.units import DISABLED, UNCONFIGURED, Key, Unit, units
from headrace.scheduling.windows import Window
from headrace.stores import migrate, postgres
from headrace.stream import clients
from headrace.stream import topology as topologies


@dataclass(frozen=True, slots=True)
class Row:
    """One unit as it stands.

    last     the window that was opened last, if any
    next     when it is due next at the latest; None: by lag alone, or not to be foreseen
    left     what is left of the open window; None: none is open. Of a job nobody knows
    waiting  messages that wait for it in all; None for a job
    state    open, asked, due (a scheduler will open it), waits, or disabled
    reason   why it waits, or is open
    """

    unit: Unit
    last: Window | None
    next: datetime | None
    left: int | None
    waiting: int | None
    state: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        last = self.last
        return {
            "group": self.unit.group,
            "platform": self.unit.platform,
            "when": self.unit.when.text,
            "state": self.state,
            "reason": self.reason or None,
            "waiting": self.waiting,
            "left": self.left,
            "next_due": self.next.isoformat() if self.next else None,
            "last": last
            and {
                "due": last.due.isoformat(),
                "opened_at": last.opened_at.isoformat() if last.opened_at else None,
                "done_at": last.done_at.isoformat() if last.done_at else None,
                "seconds": took(last),
                "waiting": last.waiting,
                "reason": last.reason,
            },
        }


@dataclass(frozen=True, slots=True)
class Overview:
    """`unknown`: windows that are open or asked for, of what has no schedule here; `led`: a
    scheduler is at work somewhere."""

    rows: tuple[Row, ...]
    unknown: tuple[Window, ...]
    led: bool
    now: datetime
    zone: str


def read(settings: Settings) -> Overview:
    """Everything that has a schedule. Raises HeadraceError without PostgreSQL or Kafka."""
    topology = topologies.load(settings)
    everything = units(settings, topology, platforms.load(settings))
    now = datetime.now(UTC)
    with database.reading(settings) as connection:
        history = read_history(connection)
        last = windows.last_worked(connection)
        unfinished = windows.unfinished(connection)
        led = is_led(connection, settings)
    with clients.admin(settings) as admin:
        left = positions.left(admin, topology, [w for w in unfinished if w.state == "open"])
        waiting = {
            unit.key: positions.standing(
                admin, topology.group(unit.group).name, unit.topics
            ).waiting
            for unit in everything
            if not unit.job
        }
    opened = {window.key: window for window in unfinished if window.state == "open"}
    scheduler = settings.scheduler
    clock = Clock(now, scheduler.zone, timedelta(milliseconds=scheduler.patience_ms))
    steps = {
        step.unit.key: step
        for step in plan.decide(everything, history, clock, lambda unit: waiting.get(unit.key, 0))
    }
    rows = [
        Row(
            unit,
            last.get(unit.key),
            when_next(unit, history.get(unit.key), now, scheduler.zone),
            left.get(opened[unit.key].id) if unit.key in opened else None,
            waiting.get(unit.key),
            *_state(
                unit,
                opened.get(unit.key),
                left,
                history.get(unit.key),
                steps.get(unit.key),
                waiting.get(unit.key),
            ),
        )
        for unit in everything
    ]
    known = {unit.key for unit in everything}
    unknown = tuple(window for window in unfinished if window.key not in known)
    return Overview(tuple(rows), unknown, led, now, scheduler.zone)


def close(settings: Settings, group: str) -> list[str | None]:
    """Closes the windows of a group or job that are open or asked for, whatever is left of them;
    of which platforms there were any."""
    migrate.upgrade(settings)
    with postgres.connect(settings, autocommit=True) as connection:
        return windows.close_all(connection, group, "closed by hand")


def when_next(unit: Unit, was: History | None, now: datetime, zone: str) -> datetime | None:
    """When a unit is due next; by lag: at the latest, if anything waits then."""
    if unit.when.cron is not None:
        return next_due(unit.when, now, zone)
    if unit.when.every_ms is None or was is None:
        return None
    return max(was.opened or was.since, was.since) + timedelta(milliseconds=unit.when.every_ms)


def took(window: Window) -> float | None:
    """Seconds from a window's opening to its end."""
    if window.opened_at is None or window.done_at is None:
        return None
    return max((window.done_at - window.opened_at).total_seconds(), 0.0)


def local(moment: datetime, zone: str) -> str:
    return f"{moment.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}"


@dataclass(frozen=True, slots=True)
class Rest:
    """A scheduled group for those who look at its lag: whether a window of it is open, and when
    it is due next, or why not (words; empty: not to be foreseen)."""

    open: bool
    next: str


def rests(settings: Settings, everything: Sequence[Unit]) -> dict[str, Rest]:
    """By group; without PostgreSQL nothing. One short question."""
    if not everything:
        return {}
    try:
        with postgres.connect(settings, readonly=True, autocommit=True) as connection:
            known = {unit.key for unit in everything}
            opened = {w.group for w in windows.open_windows(connection) if w.key in known}
            history = read_history(connection)
    except (HeadraceError, psycopg.Error):
        return {}
    return _rests(everything, opened, history, datetime.now(UTC), settings.scheduler.zone)


def _rests(
    everything: Iterable[Unit],
    opened: set[str],
    history: Mapping[Key, History],
    now: datetime,
    zone: str,
) -> dict[str, Rest]:
    found: dict[str, Rest] = {}
    due: dict[str, list[datetime]] = {}
    unpaid = {unit.group for unit in everything if unit.held == UNCONFIGURED}
    for unit in everything:
        moment = None if unit.held else when_next(unit, history.get(unit.key), now, zone)
        due.setdefault(unit.group, []).extend([moment] if moment is not None else [])
    for group, moments in due.items():
        text = UNCONFIGURED if group in unpaid else ""
        text = f"next {local(min(moments), zone)} {zone}" if moments else text
        found[group] = Rest(group in opened, text)
    return found


def _state(
    unit: Unit,
    opened: Window | None,
    left: Mapping[int, int],
    was: History | None,
    step: Step | None,
    waiting: int | None,
) -> tuple[str, str]:
    if opened is not None:
        if unit.job:
            return "open", opened.reason
        return "open", f"{left.get(opened.id, 0):,} of {opened.waiting:,} left"
    if was is None or step is None:
        return (DISABLED, "") if unit.held == DISABLED else ("waits", "for a scheduler")
    if unit.held == DISABLED:
        return DISABLED, ""
    if was.asked:
        return "asked", step.reason if step.do == "wait" else ""
    if step.do in ("open", "skip"):
        return "due", step.reason
    if step.reason:
        return "waits", step.reason
    new = f"{waiting:,} new" if waiting is not None else ""
    return "waits", f"{new} of min {unit.minimum:,}" if unit.minimum is not None else new
