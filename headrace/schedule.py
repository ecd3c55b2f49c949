"""When a group runs: `always`, `cron "0 2 * * *"`, `lag >= 1000 or 7 days`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from croniter import croniter

DAY_MS = 86_400_000
_UNITS = {"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": DAY_MS, "week": 7 * DAY_MS}
_CRON = re.compile(r"""^cron\s+(["']?)(\S+(?:\s+\S+){4})\1$|^(\S+(?:\s+\S+){4})$""")
_LAG = re.compile(r"^lag\s*>=\s*([\d_]+)(?:\s+or\s+(.+))?$")
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


def _longest_gap_ms(cron: str) -> int:
    """An upper bound: the most days between two days that match, and one day for the hours."""
    fields: list[list[Any]] = croniter.expand(cron)[0]
    days, months, weekdays = ({_number(value) for value in field} for field in fields[2:5])

    def matches(day: date) -> bool:
        by_day = day.day in days or ("l" in days and (day + timedelta(1)).month != day.month)
        by_weekday = (day.isoweekday() % 7) in weekdays
        if "*" in days or "*" in weekdays:
            fits = ("*" in days or by_day) and ("*" in weekdays or by_weekday)
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
