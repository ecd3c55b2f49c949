"""What is wrong with a group, and when somebody is told. Pure.

A *condition* is one thing that was looked at: wrong, well, or not to be said yet. An *alert* is
what became of it: it fires when the condition is wrong and clears when it is well. Each change is a
*notice*, told once on every channel; a firing that follows the last one within the cool-down is
held back until that is over, and with it its all-clear if it is well again by then.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import orjson

from headrace.backlog.report import span
from headrace.config import Status
from headrace.schedule import duration_text
from headrace.status.fold import NOTHING, Counts

Kind = Literal["overdue", "stalled", "dead_letters", "retention", "lost"]
State = Literal["firing", "clear"]

MINUTE_MS = 60_000
_NAMESPACE = uuid.UUID("4c1f1c0a-9d0c-5a3e-8a55-7f3f0f6a9d21")


@dataclass(frozen=True, slots=True)
class Unread:
    """The oldest unread message of a topic: its age and how long it is kept, in milliseconds."""

    topic: str
    age_ms: int
    kept_ms: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One group as a look at Kafka found it.

    backlog   messages to read, redo included
    overdue   of them those that should have been begun
    runs      it should be at work now, or is
    position  the sum of its commits: whoever works moves it
    lost      what expired unread, in words; empty if nothing did
    paused    why it asks no language model now, if it should
    """

    group: str
    backlog: int
    overdue: int
    runs: bool
    position: int
    members: int | None = None
    unread: tuple[Unread, ...] = ()
    lost: str = ""
    paused: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """`wrong` is None where it cannot be said yet."""

    kind: Kind
    group: str
    wrong: bool | None
    value: float
    limit: float
    text: str
    do: str

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.group}"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell, as it stands on topic `alerts`, and the channels that have not got it."""

    message: dict[str, Any]
    channels: tuple[str, ...]
    tries: int = 0
    next_ms: int = 0

    @property
    def event(self) -> str:
        return str(self.message["event_id"])


@dataclass(frozen=True, slots=True)
class Alert:
    """`told`: the firing went out, so the all-clear has to. `sent_ms`: when a firing last did."""

    id: str
    kind: Kind
    group: str
    state: State
    since_ms: int
    sent_ms: int | None
    told: bool
    value: float
    limit: float
    text: str
    do: str
    notices: tuple[Notice, ...] = field(default=())

    @property
    def open(self) -> bool:
        return self.state == "firing"

    def message(self) -> dict[str, Any]:
        """As schemas/alert.v1.json has it."""
        name = f"{self.id} {self.state} {self.since_ms}"
        return {
            "event_id": str(uuid.uuid5(_NAMESPACE, name)),
            "alert": self.id,
            "kind": self.kind,
            "group": self.group,
            "state": self.state,
            "since": clock(self.since_ms),
            "value": self.value,
            "limit": self.limit,
            "text": self.text,
            "do": self.do,
        }

    def pack(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def unpack(cls, content: bytes) -> Alert:
        values = orjson.loads(content)
        values["notices"] = tuple(
            Notice(n["message"], tuple(n["channels"]), n["tries"], n["next_ms"])
            for n in values["notices"]
        )
        return cls(**values)


def clock(milliseconds: int) -> str:
    """RFC 3339 in UTC."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Quiet(NamedTuple):
    """For how long a group has not moved; `whole`: it was seen moving, or idle, before that. If
    not, it may have been still for longer."""

    ms: int
    whole: bool


class Movement:
    """Since when each group stands still with work before it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, bool]] = {}  # position, since when (ms), whole

    def look(self, reading: Reading, now: int) -> Quiet:
        position, since, whole = self._seen.get(reading.group, (reading.position, now, False))
        if position != reading.position or not reading.backlog or not reading.runs:
            since, whole = now, True
        self._seen[reading.group] = (reading.position, since, whole)
        return Quiet(now - since, whole)


def conditions(
    settings: Status,
    reading: Reading,
    quiet: Quiet,
    lately: Counts = NOTHING,
) -> list[Condition]:
    """Everything that is looked at for one group. `lately` are its counts over the last
    `dead_minutes`."""
    group = reading.group
    stalled_ms = round(settings.stalled_minutes * MINUTE_MS)
    share = lately.dead / lately.records if lately.records else 0.0
    nearest = max(reading.unread, key=lambda u: u.age_ms / u.kept_ms, default=Unread("", 0, 1))
    age = nearest.age_ms / nearest.kept_ms
    stalled = quiet.ms >= stalled_ms
    who = "nobody is in the group" if reading.members == 0 else "nothing was committed"
    why = f": {reading.paused}" if reading.paused else ""
    return [
        Condition(
            "overdue",
            group,
            reading.overdue > settings.overdue_limit,
            reading.overdue,
            settings.overdue_limit,
            f"{group}: {reading.overdue:,} messages should have been done by now",
            f"`headrace lag {group} --rates` tells how fast it is; start it, or more workers",
        ),
        Condition(
            "stalled",
            group,
            stalled if stalled or quiet.whole else None,
            round(quiet.ms / MINUTE_MS, 1),
            settings.stalled_minutes,
            f"{group}: {reading.backlog:,} messages wait and {who} in {_span(quiet.ms)}{why}",
            f"look at the log of its worker, or start one: `headrace run {group}`",
        ),
        Condition(
            "dead_letters",
            group,
            lately.records >= settings.dead_of_at_least and share > settings.dead_share,
            round(share, 4),
            settings.dead_share,
            f"{group}: {lately.dead:,} of {lately.records:,} records in"
            f" {_span(round(settings.dead_minutes * MINUTE_MS))} are dead letters",
            f"`headrace dead list` says why; stage {group} or its input has changed",
        ),
        Condition(
            "retention",
            group,
            age > settings.retention_share,
            round(age, 4),
            settings.retention_share,
            f"{group}: the oldest message it has not read on {nearest.topic} is"
            f" {_span(nearest.age_ms)} old; there it is kept {duration_text(nearest.kept_ms)}",
            f"`headrace run {group}` before it expires, or a longer retention in topics.yaml",
        ),
        Condition(
            "lost",
            group,
            bool(reading.lost),
            1 if reading.lost else 0,
            0,
            f"{group}: {reading.lost or 'nothing is lost'}",
            "`headrace doctor` tells more; publish again what was lost",
        ),
    ]


def decide(
    known: Mapping[str, Alert],
    found: Iterable[Condition],
    groups: Collection[str],
    channels: Sequence[str],
    now: int,
    cooldown_ms: int,
) -> list[Alert]:
    """The alerts that change, with the notices to tell. `groups` are all there are: what fires for
    another one clears."""
    changed = []
    seen = {condition.id: condition for condition in found}
    for id, condition in seen.items():
        alert = known.get(id)
        if condition.wrong is None:
            continue
        if condition.wrong and (alert is None or not alert.open):
            held = alert is not None and _cooling(alert, now, cooldown_ms)
            sent = alert.sent_ms if alert else None
            fresh = Alert(
                id,
                condition.kind,
                condition.group,
                "firing",
                now,
                sent if held else now,
                not held,
                condition.value,
                condition.limit,
                condition.text,
                condition.do,
                alert.notices if alert else (),
            )
            changed.append(fresh if held else _telling(fresh, channels))
        elif condition.wrong and alert and not alert.told:
            if not _cooling(alert, now, cooldown_ms):
                changed.append(_telling(_worded(alert, condition, sent_ms=now), channels))
        elif not condition.wrong and alert and alert.open:
            changed.append(_cleared(alert, condition, channels, now))
    for id, alert in known.items():
        if alert.open and id not in seen and alert.group not in groups:
            changed.append(_cleared(alert, None, channels, now))
    return changed


def delivered(alert: Alert, event: str, channel: str) -> Alert:
    """The alert with a notice (by its event id) told on a channel; one that has gone everywhere is
    forgotten."""

    def told(notice: Notice) -> Notice | None:
        rest = tuple(name for name in notice.channels if name != channel)
        return replace(notice, channels=rest) if rest else None

    return _with(alert, event, told)


def failed(alert: Alert, event: str, now: int, wait_ms: int, most: int) -> Alert:
    """The alert with a notice put off, twice as long each time; given up after `most` tries."""

    def later(notice: Notice) -> Notice | None:
        tries = notice.tries + 1
        at = now + wait_ms * 2 ** min(notice.tries, 6)
        return replace(notice, tries=tries, next_ms=at) if tries < most else None

    return _with(alert, event, later)


def _with(alert: Alert, event: str, change: Callable[[Notice], Notice | None]) -> Alert:
    notices = [change(n) if n.event == event else n for n in alert.notices]
    return replace(alert, notices=tuple(n for n in notices if n is not None))


def _cooling(alert: Alert, now: int, cooldown_ms: int) -> bool:
    return alert.sent_ms is not None and now - alert.sent_ms < cooldown_ms


def _worded(alert: Alert, condition: Condition, **over: Any) -> Alert:
    return replace(
        alert,
        told=True,
        value=condition.value,
        limit=condition.limit,
        text=condition.text,
        do=condition.do,
        **over,
    )


def _telling(alert: Alert, channels: Sequence[str]) -> Alert:
    return replace(alert, notices=(*alert.notices, Notice(alert.message(), tuple(channels))))


def _cleared(alert: Alert, condition: Condition | None, channels: Sequence[str], now: int) -> Alert:
    value = condition.value if condition else 0
    text = f"{alert.group}: well again ({alert.text.removeprefix(f'{alert.group}: ')})"
    clear = replace(alert, state="clear", since_ms=now, told=False, value=value, text=text, do="")
    return _telling(clear, channels) if alert.told else clear


def _span(milliseconds: int) -> str:
    return span(milliseconds / 1000)
