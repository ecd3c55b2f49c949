"""Status events folded into rates and history. Pure.

An event counts once, in whatever order and however often it comes: its minute keeps it by its id
until, `OPEN_MS` after it, the minute is closed; then its sum stands and no event changes it. Sums
are always written whole, never added to, so writing one again changes nothing.

What the fold knows it gives out as entries of a table (key to bytes, None to take one out), and
`restore` makes the same fold of such a table. A crash between any two entries loses nothing as long
as the events that are not in the table yet come again:

    event/<id>               an event of a minute that is open, or was until the last `close`
    minute/<group>/<number>  the sum of a closed minute
    hour/<group>/<number>    the sum of the closed minutes of an hour

For that the order of entries matters, and the table has to keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from sys import intern  # few names, in many events
from typing import Any, NamedTuple

import orjson

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
OPEN_MS = HOUR_MS + 5 * MINUTE_MS  # the longest window of rates, and clocks that differ

Entries = dict[str, bytes | None]


class Counts(NamedTuple):
    """Records answered, by outcome; the batches that they came in, and microseconds of work."""

    records: int = 0
    ok: int = 0
    dropped: int = 0
    dead: int = 0
    deleted: int = 0
    deferred: int = 0
    batches: int = 0
    micros: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = Counts()
OUTCOMES = ("ok", "dropped", "dead", "deleted", "deferred")


class Event(NamedTuple):
    """What became of one batch. `at` is in milliseconds."""

    id: str
    group: str
    worker: str
    at: int
    counts: Counts
    platforms: tuple[tuple[str, Counts], ...] = ()

    @property
    def minute(self) -> int:
        return self.at // MINUTE_MS

    def pack(self) -> bytes:
        own = [(name, tuple(counts)) for name, counts in self.platforms]
        return orjson.dumps([self.group, self.worker, self.at, tuple(self.counts), own])

    @classmethod
    def unpack(cls, id: str, content: bytes) -> Event:
        group, worker, at, counts, platforms = orjson.loads(content)
        own = tuple((intern(name), Counts(*numbers)) for name, numbers in platforms)
        return cls(id, intern(group), intern(worker), at, Counts(*counts), own)


def parse(value: bytes | None) -> Event:
    """The event of a message on topic `status`; ValueError where it is none."""
    try:
        event = orjson.loads(value or b"")
        platforms = tuple(
            (intern(name), Counts(sum(some.values()), **_outcomes(some)))
            for name, some in sorted(event.get("platforms", {}).items())
        )
        counts = Counts(
            records=int(event["records"]),
            **_outcomes(event),
            batches=1,
            micros=round(event["seconds"] * 1e6),
        )
        at = int(datetime.fromisoformat(event["at"]).timestamp() * 1000)
        group, worker = intern(event["group"]), intern(event["worker"])
        return Event(str(event["event_id"]), group, worker, at, counts, platforms)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no status event: {error}") from None


def _outcomes(numbers: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(numbers.get(name, 0)) for name in OUTCOMES}


class Tally:
    """Sums of events, altogether and by worker and platform."""

    def __init__(self) -> None:
        self.groups: dict[str, Counts] = {}
        self.workers: dict[tuple[str, str], Counts] = {}
        self.platforms: dict[tuple[str, str], Counts] = {}

    def add(self, event: Event) -> None:
        _plus(self.groups, event.group, event.counts)
        _plus(self.workers, (event.group, event.worker), event.counts)
        for name, counts in event.platforms:
            _plus(self.platforms, (event.group, name), counts)

    def merge(self, other: Tally) -> None:
        for group, counts in other.groups.items():
            _plus(self.groups, group, counts)
        for key, counts in other.workers.items():
            _plus(self.workers, key, counts)
        for key, counts in other.platforms.items():
            _plus(self.platforms, key, counts)


class _Minute:
    """A minute that is open."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self.tally = Tally()


class Fold:
    """`minutes_ms` and `hours_ms` are how long sums of either are kept, counted from the newest
    event; so a fold that reads old events first forgets nothing too early. `now` (ms) keeps a
    worker whose clock is ahead from closing the others' minutes."""

    def __init__(
        self,
        *,
        minutes_ms: int = DAY_MS,
        hours_ms: int = 30 * DAY_MS,
        now: Callable[[], int] = lambda: 2**62,
    ) -> None:
        self._now = now
        self._minutes_ms = max(minutes_ms, 3 * HOUR_MS)  # an hour is summed from its minutes
        self._hours_ms = max(hours_ms, self._minutes_ms)
        self.restore(())

    def restore(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """Become what the entries say."""
        self.newest = 0
        self.ignored = 0  # events that came again, or after their minute was closed
        self._open: dict[int, _Minute] = {}
        self._minutes: dict[tuple[str, int], Counts] = {}
        self._hours: dict[tuple[str, int], Counts] = {}
        self._spent: list[str] = []  # events of closed minutes, still in the table
        events = []
        for key, content in entries:
            kind, _, rest = key.partition("/")
            if kind == "event":
                events.append(Event.unpack(rest, content))
            elif kind in ("minute", "hour"):
                group, _, number = rest.rpartition("/")
                sums = self._minutes if kind == "minute" else self._hours
                sums[group, int(number)] = Counts(*orjson.loads(content))
        for _, minute in self._minutes:
            self.newest = max(self.newest, minute * MINUTE_MS)
        for event in events:
            self.newest = max(self.newest, event.at)
        for event in events:
            # One that is here and in no sum was never summed, however old it is.
            if not self._take(event):
                self._spent.append(event.id)

    def add(self, event: Event) -> Entries:
        """Count an event. Nothing is to be written where it was counted already."""
        if event.at < self._horizon() or not self._take(event):
            self.ignored += 1
            return {}
        return {f"event/{event.id}": event.pack()}

    def close(self) -> Entries:
        """Close the minutes whose time is over, and forget what is kept no longer.

        A sum of an hour comes before the sums of minutes that are in it. Events leave one `close`
        after their sum came, and sums of minutes after their events.
        """
        changes: Entries = {f"event/{id}": None for id in self._spent}
        horizon, oldest = self._horizon(), self._latest() - self._hours_ms
        old = [key for key in self._minutes if key[1] * MINUTE_MS < horizon]
        closed: dict[tuple[str, int], Counts] = {}
        self._spent = []
        for number in sorted(n for n in self._open if n < self._through()):
            minute = self._open.pop(number)
            closed |= {(group, number): sums for group, sums in minute.tally.groups.items()}
            self._spent += minute.events
        self._minutes |= closed
        for group, hour in sorted({(group, number // 60) for group, number in closed}):
            self._hours[group, hour] = self._hour(group, hour)
            changes[f"hour/{group}/{hour}"] = _packed(self._hours[group, hour])
        for (group, number), counts in closed.items():
            changes[f"minute/{group}/{number}"] = _packed(counts)
        for group, number in old:
            del self._minutes[group, number]
            changes[f"minute/{group}/{number}"] = None
        for group, hour in [key for key in self._hours if key[1] * HOUR_MS < oldest]:
            del self._hours[group, hour]
            changes[f"hour/{group}/{hour}"] = None
        return changes

    def window(self, since: int, until: int) -> Tally:
        """The sums of since ≤ at < until, which may lie `OPEN_MS` back at most."""
        found = Tally()
        for number, minute in self._open.items():
            begins = number * MINUTE_MS
            if since <= begins and begins + MINUTE_MS <= until:
                found.merge(minute.tally)
            elif begins < until and begins + MINUTE_MS > since:
                for event in minute.events.values():
                    if since <= event.at < until:
                        found.add(event)
        return found

    def history(self, group: str, by: str, since: int = 0) -> list[tuple[int, Counts]]:
        """Sums by minute or hour, oldest first: when it begins (ms), and its counts. What is empty
        is left out."""
        length, sums = (MINUTE_MS, self._minutes) if by == "minute" else (HOUR_MS, self._hours)
        found = {number: counts for (name, number), counts in sums.items() if name == group}
        for number, minute in self._open.items():
            if group in minute.tally.groups:
                _plus(found, number * MINUTE_MS // length, minute.tally.groups[group])
        return [
            (number * length, counts)
            for number, counts in sorted(found.items())
            if (number + 1) * length > since
        ]

    def groups(self) -> set[str]:
        """Every group of which anything is known."""
        known = {group for sums in (self._minutes, self._hours) for group, _ in sums}
        return known.union(*(minute.tally.groups for minute in self._open.values()))

    def _take(self, event: Event) -> bool:
        if (event.group, event.minute) in self._minutes:
            return False
        minute = self._open.setdefault(event.minute, _Minute())
        if event.id in minute.events:
            return False
        minute.events[event.id] = event
        minute.tally.add(event)
        self.newest = max(self.newest, event.at)
        return True

    def _through(self) -> int:
        """The first minute that stays open."""
        return (self._latest() - OPEN_MS) // MINUTE_MS

    def _horizon(self) -> int:
        """Minutes before this (ms) are not kept; whole hours."""
        return (self._latest() - self._minutes_ms) // HOUR_MS * HOUR_MS

    def _latest(self) -> int:
        return min(self.newest, self._now())

    def _hour(self, group: str, hour: int) -> Counts:
        total = NOTHING
        for number in range(hour * 60, hour * 60 + 60):
            total = total.plus(self._minutes.get((group, number), NOTHING))
        return total


def rates(counts: Counts, seconds: float) -> dict[str, float]:
    """Records a second, altogether and by outcome, for programs."""
    names = ("records", *OUTCOMES)
    return {name: round(getattr(counts, name) / seconds, 3) for name in names}


def _packed(counts: Counts) -> bytes:
    return orjson.dumps(tuple(counts))


def _plus(sums: dict[Any, Counts], key: Any, counts: Counts) -> None:
    sums[key] = sums[key].plus(counts) if key in sums else counts
