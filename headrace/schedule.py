"""When a group runs: `always`, `cron "0 2 * * *"`, `lag >= 1000 or 7 days`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from croniter import croniter
from croniter.croniter import CroniterBadDateError

DAY_MS = 86_400_000
_UNITS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": DAY_MS, "week": 7 * DAY_MS}
_CRON = re.compile(r"""^cron\s+(["']?)(\S+(?:\s+\S+){4})\1$|^(\S+(?:\s+\S+){4})$""")
_LAG = re.compile(r"^lag\s*>=\s*([1-9]\d*(?:_\d+)*)(?:\s+or\s+(.+))?$")
_DURATION = re.compile(r"^(\d+)\s*([a-z]+?)s?$")


def duration_ms(text: str) -> int:
    """Milliseconds of "30 days", "1 hour"; raises ValueError."""
    match = _DURATION.match(text.strip())
    if not match or match[2] not in _UNITS:
        raise ValueError(f'"{text}" is no duration; write it like "30 days" or "1 hour"')
    return int(match[1]) * _UNITS[match[2]]


def duration_text(milliseconds: int) -> str:
    """The same the other way round, in the largest unit that fits; forever for -1."""
    if milliseconds < 0:
        return "forever"
    for name, size in reversed(_UNITS.items()):
        if name != "week" and milliseconds >= size and milliseconds % size == 0:
            count = milliseconds // size
            return f"{count} {name}{'s' if count != 1 else ''}"
    return f"{milliseconds} ms"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A `when`: always (all fields None), by the clock (`cron`), or by `lag` and at the latest
    after `every_ms` (None: only by lag)."""

    text: str
    cron: str | None = None
    lag: int | None = None
    every_ms: int | None = None

    @property
    def always(self) -> bool:
        return self.cron is None and self.lag is None

    @property
    def longest_ms(self) -> int | None:
        """The longest that a group may rest, an upper bound; None: no bound."""
        if self.always:
            return 0
        return self.every_ms if self.cron is None else _longest_gap_ms(self.cron)


ALWAYS = Schedule("always")


def parse(text: str) -> Schedule:
    """Raises ValueError, saying how a schedule is written."""
    words = " ".join(text.split())
    if words == "always":
        return ALWAYS
    if (lag := _LAG.match(words)) is not None:
        every = duration_ms(lag[2]) if lag[2] else None
        return Schedule(words, lag=int(lag[1]), every_ms=every)
    if (cron := _CRON.match(words)) is not None:
        fields = cron[2] or cron[3]
        try:
            croniter.expand(fields)
            return Schedule(words, cron=fields)
        except ValueError as error:
            raise ValueError(f'"{fields}" is no cron expression: {error}') from None
    raise ValueError(
        f'"{text}" is no schedule; write always, cron "0 2 * * *" or lag >= 1000 or 7 days'
    )


def last_due(when: Schedule, now: datetime, zone: str = "UTC") -> datetime | None:
    """The latest moment up to `now` (aware) at which `when` was due by the clock of `zone`; UTC.

    None for what does not go by the clock, or never was due.
    """
    if when.cron is None:
        return None
    clock = ZoneInfo(zone)
    # Only where the clock was set lately can an earlier hour of it have come later.
    start = _wall(now, clock) + _shift(now, clock) + timedelta(seconds=1)
    times = croniter(when.cron, start)
    try:
        while (due := _moment(times.get_prev(datetime), clock)) > now:
            pass
    except CroniterBadDateError:
        return None
    return due


def next_due(when: Schedule, after: datetime, zone: str = "UTC") -> datetime | None:
    """The first moment later than `after` (aware) at which `when` is due by the clock; UTC."""
    if when.cron is None:
        return None
    clock = ZoneInfo(zone)
    times = croniter(when.cron, _wall(after, clock) - _shift(after, clock) - timedelta(seconds=1))
    try:
        while (due := _moment(times.get_next(datetime), clock)) <= after:
            pass
    except CroniterBadDateError:
        return None
    return due


def _wall(moment: datetime, clock: ZoneInfo) -> datetime:
    """What the clock on the wall shows, in whole seconds."""
    return moment.astimezone(clock).replace(tzinfo=None, microsecond=0)


def _moment(wall: datetime, clock: ZoneInfo) -> datetime:
    """When the clock on the wall shows this: the first time of two; where it never does, since it
    is set forward over it, the moment at which it is set. So no order is ever turned round."""
    first = wall.replace(tzinfo=clock).astimezone(UTC)
    if _wall(first, clock) == wall:
        return first
    low = wall.replace(tzinfo=clock, fold=1).astimezone(UTC)  # before it is set; `first` is after
    before = low.astimezone(clock).utcoffset()
    high = first
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle.astimezone(clock).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def _shift(moment: datetime, clock: ZoneInfo) -> timedelta:
    """By how much the clock is set within a day of a moment."""
    day = timedelta(days=1)
    offsets = [
        (moment + away).astimezone(clock).utcoffset() or timedelta()
        for away in (-day, timedelta(), day)
    ]
    return max(offsets) - min(offsets)


def _longest_gap_ms(cron: str) -> int:
    """An upper bound: the most days between two days that match, and one day for the hours."""
    fields: list[list[Any]]
    nth: dict[int | str, set[int | str]]  # by weekday: only the first, second, last … of a month
    fields, nth = croniter.expand(cron)
    days, months, weekdays = ({_number(value) for value in field} for field in fields[2:5])
    any_weekday = "*" in weekdays and not nth

    def matches(day: date) -> bool:
        by_day = day.day in days or ("l" in days and (day + timedelta(1)).month != day.month)
        weekday = day.isoweekday() % 7
        by_weekday = weekday in weekdays
        if nth:
            places = nth.get(weekday, set()) | nth.get("*", set())
            last = (day + timedelta(7)).month != day.month
            by_weekday = (day.day + 6) // 7 in places or (last and "l" in places)
        if "*" in days or any_weekday:
            fits = ("*" in days or by_day) and (any_weekday or by_weekday)
        else:
            fits = by_day or by_weekday  # as cron does when both are given
        return fits and ("*" in months or day.month in months)

    start, last, longest = date(2024, 1, 1), None, 0
    for number in range(366 * 9):  # leap days and back
        if matches(start + timedelta(number)):
            longest = max(longest, number - last if last is not None else number)
            last = number
    if last is None:
        return 366 * 9 * DAY_MS
    return (longest + 1) * DAY_MS


def _number(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)
