"""What is shown of a fold, of lag and of alerts: for programs, and as cells and lines. Pure.

overview  every group: state, lag, rates now, over 5 minutes and an hour; the open alerts
group     one group, with its workers and platforms
history   records by minute or hour
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headrace.backlog import report
from headrace.backlog.model import GroupLag
from headrace.llm.standing import InFlight
from headrace.status.alerts import clock
from headrace.status.fold import HOUR_MS, MINUTE_MS, NOTHING, Counts, Fold, Tally, rates

WINDOWS = {"1m": MINUTE_MS, "5m": 5 * MINUTE_MS, "1h": HOUR_MS}
COLUMNS = ("GROUP", "NOW/S", "5 MIN/S", "1 H/S", "DEAD 1 H", "LAG", "REDO", "BEHIND", "STATE")

Tallies = dict[str, Tally]


def tallies(fold: Fold, now: int) -> Tallies:
    """The sums of each window up to now (ms)."""
    return {name: fold.window(now - length, now + 1) for name, length in WINDOWS.items()}


def overview(
    project: str,
    fold: Fold,
    lags: Iterable[GroupLag],
    alerts: Iterable[Mapping[str, Any]],
    now: int,
) -> dict[str, Any]:
    """`alerts` are the open ones, as they stand on topic `alerts`."""
    sums = tallies(fold, now)
    known = {lag.group: lag for lag in lags}
    names = [*known, *sorted(fold.groups() - known.keys())]
    return {
        "project": project,
        "at": clock(now),
        "groups": [_group(name, sums, known.get(name)) for name in names],
        "alerts": list(alerts),
    }


def group(name: str, fold: Fold, lag: GroupLag | None, now: int) -> dict[str, Any]:
    """One group; empty where nothing is known of it."""
    if lag is None and name not in fold.groups():
        return {}
    sums = tallies(fold, now)
    workers = sorted({w for t in sums.values() for g, w in t.workers if g == name})
    platforms = sorted({p for t in sums.values() for g, p in t.platforms if g == name})
    return {
        **_group(name, sums, lag),
        "workers": {
            worker: _rates({w: t.workers.get((name, worker), NOTHING) for w, t in sums.items()})
            for worker in workers
        },
        "platforms": {
            platform: _rates(
                {w: t.platforms.get((name, platform), NOTHING) for w, t in sums.items()}
            )
            for platform in platforms
        },
    }


def history(name: str, fold: Fold, by: str, now: int, kept_ms: int) -> list[dict[str, Any]]:
    """Oldest first; an hour or minute without records is left out."""
    length = MINUTE_MS if by == "minute" else HOUR_MS
    return [
        {"at": clock(at), **_counts(counts), "records_per_second": _per(counts.records, length)}
        for at, counts in fold.history(name, by, now - kept_ms)
    ]


def rows(overview: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells by COLUMNS."""
    found = []
    for one in overview["groups"]:
        # Only stages say what they do in events.
        told = one["kind"] in ("stage", None)
        per = [report.rate(one["rates"][name]["records"] if told else None) for name in WINDOWS]
        dead = f"{one['counts']['1h']['dead']:,}" if told else "–"
        flying = one.get("requests")  # one that an older program tells has none
        requests = InFlight(*flying.values()) if flying else None
        state = report.told(one["state"] or "–", one["reason"], requests)
        lag, redo = (f"{one[k]:,}" if one[k] is not None else "–" for k in ("lag", "redo"))
        behind = report.span(one["seconds_behind"])
        found.append((one["group"], *per, dead, lag, redo, behind, state))
    return found


def alert_lines(overview: Mapping[str, Any]) -> list[str]:
    if not overview["alerts"]:
        return ["no alert is open"]
    lines: list[str] = []
    for alert in overview["alerts"]:
        lines += [
            f"! {alert['kind']}: {alert['text']} (since {alert['since']})",
            f"    → {alert['do']}",
        ]
    return lines


def _group(name: str, sums: Tallies, lag: GroupLag | None) -> dict[str, Any]:
    own = {window: tally.groups.get(name, NOTHING) for window, tally in sums.items()}
    return {
        "group": name,
        "kind": lag.kind if lag else None,
        "state": str(lag.state) if lag else None,
        "reason": lag.reason or None if lag else None,
        "lag": lag.lag if lag else None,
        "redo": lag.redo if lag else None,
        "held": lag.held if lag else None,
        "members": lag.members if lag else None,
        "requests": lag.requests.as_dict() if lag and lag.requests else None,
        "seconds_behind": lag.seconds_behind if lag else None,
        "rates": _rates(own),
        "counts": {window: _counts(counts) for window, counts in own.items()},
    }


def _rates(own: Mapping[str, Counts]) -> dict[str, dict[str, float]]:
    return {window: rates(counts, WINDOWS[window] / 1000) for window, counts in own.items()}


def _counts(counts: Counts) -> dict[str, float]:
    whole: dict[str, float] = dict(counts._asdict())
    whole["seconds"] = whole.pop("micros") / 1e6
    return whole


def _per(count: int, milliseconds: int) -> float:
    return round(count * 1000 / milliseconds, 3)


def newest(alerts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The open ones of messages of topic `alerts`, in the order that they were written."""
    last = {alert["alert"]: alert for alert in alerts}
    return [alert for alert in last.values() if alert["state"] == "firing"]
