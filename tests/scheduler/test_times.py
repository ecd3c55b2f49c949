"""When the clock says that something is due, also where the clock is set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import config, schedule
from headrace.errors import ConfigError
from headrace.schedule import last_due, next_due

BERLIN = "Europe/Berlin"
NIGHTLY = schedule.parse('cron "30 2 * * *"')


def dues(when: schedule.Schedule, start: datetime, end: datetime, zone: str) -> list[datetime]:
    found, at = [], start
    while (due := next_due(when, at, zone)) is not None and due <= end:
        found.append(due)
        at = due
    return found


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_time_that_the_clock_skips_comes_when_it_is_set() -> None:
    assert dues(NIGHTLY, utc("2026-03-28"), utc("2026-03-31"), BERLIN) == [
        utc("2026-03-28T01:30"),
        utc("2026-03-29T01:00"),  # 02:00 is 03:00 at once
        utc("2026-03-30T00:30"),
    ]


def test_a_time_that_the_clock_shows_twice_comes_once() -> None:
    assert dues(NIGHTLY, utc("2026-10-24"), utc("2026-10-26T12:00"), BERLIN) == [
        utc("2026-10-24T00:30"),
        utc("2026-10-25T00:30"),
        utc("2026-10-26T01:30"),
    ]
    between = utc("2026-10-25T01:45")  # it shows 02:45 for the second time
    assert last_due(NIGHTLY, between, BERLIN) == utc("2026-10-25T00:30")
    assert last_due(NIGHTLY, utc("2026-10-25T01:10"), BERLIN) == utc("2026-10-25T00:30")


def test_what_has_no_clock_is_never_due_by_it() -> None:
    for text in ("always", "lag >= 5 or 7 days"):
        assert last_due(schedule.parse(text), utc("2026-01-01")) is None
        assert next_due(schedule.parse(text), utc("2026-01-01")) is None
    never = schedule.parse('cron "0 0 30 2 *"')
    assert last_due(never, utc("2026-01-01")) is None
    assert next_due(never, utc("2026-01-01")) is None


CRONS = ["0 1 * * *", "30 2 * * *", "*/20 * * * *", "0 2,3 * * 0", "15 * * * 6,0", "0 3 29 * *"]
MOMENTS = st.integers(0, 366 * 24 * 60).map(lambda m: utc("2026-01-01") + timedelta(minutes=m))
NEAR = st.sampled_from(["2026-03-28T12:00", "2026-10-24T12:00", "2026-04-04T06:00"]).flatmap(
    lambda start: st.integers(0, 36 * 60).map(lambda m: utc(start) + timedelta(minutes=m))
)


@settings(max_examples=150, deadline=None)
@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from(["UTC", BERLIN, "Australia/Lord_Howe", "America/New_York"]),
    now=NEAR | MOMENTS,
)
def test_last_and_next_agree(cron: str, zone: str, now: datetime) -> None:
    when = schedule.parse(f'cron "{cron}"')
    last, following = last_due(when, now, zone), next_due(when, now, zone)
    assert last is not None and following is not None
    assert last <= now < following
    assert last_due(when, following, zone) == following
    assert last_due(when, following - timedelta(seconds=1), zone) == last
    assert next_due(when, last, zone) == following


@pytest.mark.parametrize(
    "cron", [*CRONS, "0 1 * * mon#1", "0 1 * * l5", "0 1 * * 2#5", "0 0 l * *"]
)
def test_a_rest_is_never_longer_than_is_said(cron: str) -> None:
    """Topics are kept as long as that at least."""
    when = schedule.parse(f'cron "{cron}"')
    longest, at = when.longest_ms, utc("2026-01-01")
    assert longest is not None
    for _ in range(60):
        following = next_due(when, at)
        assert following is not None and following - at <= timedelta(milliseconds=longest)
        at = following


def test_a_lag_of_nothing_is_no_schedule() -> None:
    with pytest.raises(ValueError, match="is no schedule"):
        schedule.parse("lag >= 0")


@pytest.mark.parametrize("zone", ["UTC", BERLIN, "Australia/Lord_Howe"])
def test_every_wall_time_comes_once(zone: str) -> None:
    """Beside what a clock on the wall shows, minute by minute, over both changes."""
    when = schedule.parse('cron "*/30 1,2,3 * * *"')
    clock = ZoneInfo(zone)
    for start in (utc("2026-03-28"), utc("2026-04-04"), utc("2026-10-03"), utc("2026-10-24")):
        seen: dict[datetime, datetime] = {}
        for minute in range(3 * 24 * 60):
            moment = start + timedelta(minutes=minute)
            wall = moment.astimezone(clock).replace(tzinfo=None)
            if wall.hour in (1, 2, 3) and wall.minute % 30 == 0:
                seen.setdefault(wall, moment)
        found = dues(
            when, start - timedelta(minutes=1), start + timedelta(days=3, minutes=-1), zone
        )
        shown = sorted(seen.values())
        assert [due for due in found if due in shown] == shown
        skipped = [due for due in found if due not in shown]
        assert all(_is_set_forward(due, clock) for due in skipped)
        assert all(a < b for a, b in pairwise(found))


def _is_set_forward(moment: datetime, clock: ZoneInfo) -> bool:
    before = (moment - timedelta(seconds=1)).astimezone(clock).utcoffset()
    after = moment.astimezone(clock).utcoffset()
    return before is not None and after is not None and after > before


def test_a_zone_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r'scheduler\.zone.*"Berlin" is no time zone'):
        config.load({"config": "/dev/null", "scheduler.zone": "Berlin"})
    with pytest.raises(ConfigError, match=r'scheduler\.margin.*"soon" is no duration'):
        config.load({"config": "/dev/null", "scheduler.margin": "soon"})
