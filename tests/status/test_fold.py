"""Events to figures: each counts once, whatever comes again, in whatever order, across crashes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace import config
from headrace.status.fold import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    OPEN_MS,
    Counts,
    Fold,
    parse,
    rates,
)
from headrace.stream import schemas
from tests.status.events import event, sums

BEGIN = 1_800_000_000_000 // HOUR_MS * HOUR_MS
FIELDS = ("records", "ok", "dropped", "dead", "batches")

small = st.integers(0, 50)


def packed(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def told(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in FIELDS}


def plain(events: list[dict[str, Any]], group: str) -> dict[str, int]:
    found = sums(events).get(group, Counter())
    return {name: found[name] for name in FIELDS}


@st.composite
def within_an_hour(draw: st.DrawFn) -> list[dict[str, Any]]:
    made = draw(
        st.lists(
            st.builds(
                event,
                group=st.sampled_from(["text", "entities"]),
                at=st.integers(BEGIN, BEGIN + HOUR_MS),
                ok=small,
                dropped=small,
                dead=small,
                worker=st.sampled_from(["a-0", "b-0"]),
                platform=st.sampled_from(["reddit", "youtube"]),
            ),
            min_size=1,
            max_size=30,
        )
    )
    again = draw(st.lists(st.sampled_from(made), max_size=20))
    return draw(st.permutations([*made, *again]))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(within_an_hour(), st.integers(0, HOUR_MS), st.integers(1, HOUR_MS))
def test_any_order_and_any_repetition_give_the_same_figures(events, since, length):
    fold = Fold()
    for one in events:
        fold.add(parse(packed(one)))
    once = {one["event_id"]: one for one in events}
    assert fold.ignored == len(events) - len(once)
    since += BEGIN
    tally = fold.window(since, since + length)
    inside = [one for one in events if since <= parse(packed(one)).at < since + length]
    for group in ("text", "entities"):
        own = tally.groups.get(group, Counts())
        assert told(own) == plain(inside, group)
        for kind, key in ((tally.workers, "worker"), (tally.platforms, "platform")):
            parts = Counter()
            for (name, _), counts in kind.items():
                if name == group:
                    parts.update({f: getattr(counts, f) for f in ("records", "ok", "dead")})
            assert parts == +Counter({f: getattr(own, f) for f in ("records", "ok", "dead")}), key
        for by in ("minute", "hour"):
            history = fold.history(group, by)
            assert sum(counts.records for _, counts in history) == plain(events, group)["records"]
            assert history == sorted(history)


def days(chance: Random) -> list[dict[str, Any]]:
    """Events as a topic holds them: time goes on in small steps and in long ones, clocks differ by
    a minute, and some come twice."""
    now, found = BEGIN, []
    for number in range(chance.randint(1, 80)):
        if chance.random() < 0.3:
            now += chance.choice([MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS, DAY_MS])
        else:
            now += chance.randint(0, 20_000)
        at = now - chance.choice([0, 0, 1000, MINUTE_MS])
        group = chance.choice(["text", "entities"])
        found.append(event(group, at, ok=chance.randint(0, 50), dead=1, id=f"event-{number}"))
        if chance.random() < 0.2:
            found.append(chance.choice(found))
    return found


class Broker:
    """The changelog: what is written, in order, and up to where it is safe."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes | None]] = []
        self.safe = 0

    def table(self) -> list[tuple[str, bytes]]:
        found: dict[str, bytes] = {}
        for key, content in self.log:
            if content is None:
                found.pop(key, None)
            else:
                found[key] = content
        return list(found.items())


def test_crashes_lose_and_double_nothing():
    """As the app does it: an event is committed when its entries are safe, and a `close` ends when
    its entries are. A crash leaves any part of what is not safe yet."""
    kept = {"minutes_ms": 3 * HOUR_MS, "hours_ms": 40 * HOUR_MS}
    for seed in range(400):
        chance = Random(seed)
        events = days(chance)
        parsed = [parse(packed(one)) for one in events]
        fold, broker, committed, position, crashes = Fold(**kept), Broker(), 0, 0, 0
        while position < len(events):
            broker.log += fold.add(parsed[position]).items()
            position += 1
            what = chance.choice(["on", "on", "commit", "close", "dies in close", "dies"])
            if what == "commit":
                broker.safe, committed = len(broker.log), chance.randint(committed, position)
            if "close" in what:
                broker.log += fold.close().items()
            if what.startswith("dies") and crashes < 8:
                crashes += 1
                broker.log = broker.log[: chance.randint(broker.safe, len(broker.log))]
                position, fold = committed, Fold(**kept)
                fold.restore(broker.table())
            elif "close" in what:
                broker.safe = len(broker.log)
        for _ in range(2):
            broker.log += fold.close().items()
        again = Fold(**kept)
        again.restore(broker.table())
        newest = max(one.at for one in parsed)
        for one, group, (by, length, span) in product(
            (fold, again),
            ("text", "entities"),
            (("minute", MINUTE_MS, 3 * HOUR_MS), ("hour", HOUR_MS, 40 * HOUR_MS)),
        ):
            since = -(-(newest - span) // length) * length
            expected: dict[int, list[dict[str, Any]]] = {}
            for value, its in zip(events, parsed, strict=True):
                if its.group == group and its.at >= since:
                    expected.setdefault(its.at // length * length, []).append(value)
            found = {at: told(c) for at, c in one.history(group, by, since) if at >= since}
            wanted = {at: plain(some, group) for at, some in expected.items()}
            assert found == wanted, f"seed {seed}, {by} of {group}"
        # Memory does not grow with what has been counted.
        oldest = newest - OPEN_MS - MINUTE_MS
        ids = {f"event/{its.id}" for its in parsed if its.at < oldest}
        keys = [key for key, _ in broker.table()]
        assert not ids & set(keys), f"seed {seed}"
        minutes = [int(key.rpartition("/")[2]) for key in keys if key.startswith("minute/")]
        assert all(m * MINUTE_MS >= newest - 4 * HOUR_MS for m in minutes), f"seed {seed}"


def test_an_event_of_a_worker_whose_clock_is_ahead_closes_nobodys_minute():
    fold = Fold(now=lambda: BEGIN)
    fold.add(parse(packed(event(at=BEGIN + 30 * DAY_MS, ok=1))))
    fold.close()
    assert fold.add(parse(packed(event(at=BEGIN, ok=1)))) != {}


@pytest.mark.parametrize(
    "value", [b"", b"no", b"[]", b"{}", packed(event() | {"at": "now"}), packed({"records": 1})]
)
def test_what_is_no_event_is_said(value):
    with pytest.raises(ValueError, match="no status event"):
        parse(value)


def test_events_without_platforms_count_as_well():
    """Those of workers before there were any."""
    value = event(ok=3)
    del value["platforms"]
    assert parse(packed(value)).counts.ok == 3
    validator = schemas.validator(config.load({"config": "/dev/null"}), "status.v1")
    assert schemas.complaint(validator, value) is None
    assert schemas.complaint(validator, event(ok=3)) is None


def test_rates_are_a_second():
    assert rates(Counts(records=120, ok=60, dead=60), 60.0) == {
        "records": 2.0, "ok": 1.0, "dropped": 0.0, "dead": 1.0, "deleted": 0.0, "deferred": 0.0
    }  # fmt: skip
