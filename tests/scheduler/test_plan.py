"""Which windows are opened: a simulated week with a machine that is off, a scheduler that dies
between any two steps, and groups that take their time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import schedule
from headrace.scheduling import plan
from headrace.scheduling.plan import Clock, History, Step
from headrace.scheduling.units import DISABLED, Key, Unit
from tests.scheduler.test_times import dues

BERLIN = "Europe/Berlin"
HOUR = timedelta(hours=1)
START = datetime(2026, 3, 25, tzinfo=UTC)  # summer time begins within the week


def unit(group: str, platform: str | None, when: str, **more: object) -> Unit:
    return Unit(group, platform, schedule.parse(when), **more)  # type: ignore[arg-type]


UNITS = [
    unit("embeddings", "reddit", 'cron "0 1 * * *"'),
    unit("embeddings", "facebook", 'cron "30 2 * * *"'),
    unit("sentiment_ml", "reddit", 'cron "0 2 * * *"', after=frozenset({("embeddings", "reddit")})),
    unit("topics", None, 'cron "0 1 * * 0"'),
    unit("facts", "reddit", "lag >= 30 or 3 days"),
]


@dataclass
class Table:
    """What PostgreSQL would hold, with its two unique keys."""

    rows: dict[tuple[Key, datetime], str] = field(default_factory=dict)
    history: dict[Key, History] = field(default_factory=dict)

    def do(self, step: Step, now: datetime) -> None:
        if step.do not in ("open", "skip"):
            return
        assert step.due is not None
        key, was = step.unit.key, self.history[step.unit.key]
        assert not was.open, "one window of a unit at a time"
        assert (key, step.due) not in self.rows, "a due time has one window"
        self.rows[key, step.due] = step.do
        opened = now if step.do == "open" else was.opened
        self.history[key] = replace(was, due=step.due, open=step.do == "open", opened=opened)

    def finish(self, key: Key) -> None:
        self.history[key] = replace(self.history[key], open=False)


@settings(max_examples=30, deadline=None)
@given(
    off=st.sets(st.integers(1, 24 * 8 - 25)),
    dies=st.dictionaries(st.integers(1, 24 * 8 - 25), st.integers(0, 3)),
    takes=st.lists(st.integers(0, 30), min_size=8, max_size=8),
    lag=st.lists(st.integers(0, 40), min_size=8, max_size=8),
)
def test_a_week(off: set[int], dies: dict[int, int], takes: list[int], lag: list[int]) -> None:
    table = Table()
    done_at: dict[Key, int] = {}
    opened: Counter[Key] = Counter()
    for hour in range(24 * 8):
        now = START + hour * HOUR
        for key in [key for key, at in done_at.items() if at <= hour]:
            table.finish(key)
            del done_at[key]
        if hour in off:
            continue
        for one in UNITS:
            table.history.setdefault(one.key, History(since=now))
        before = dict(table.history)
        clock = Clock(now, BERLIN)
        steps = plan.decide(UNITS, before, clock, lambda u, hour=hour: lag[hour % 8])  # type: ignore[misc]
        for number, step in enumerate(steps):
            if dies.get(hour, 99) == number:
                break
            table.do(step, now)
            if step.do == "open":
                opened[step.unit.key] += 1
                done_at[step.unit.key] = hour + takes[opened[step.unit.key] % 8]
                if done_at[step.unit.key] == hour:
                    table.finish(step.unit.key)
                    del done_at[step.unit.key]
    last = START + (24 * 8 - 1) * HOUR
    # The last day is quiet: whatever was missed has been made up, once, and by its latest time.
    for one in UNITS:
        mine = sorted(due for key, due in table.rows if key == one.key)
        assert len(set(mine)) == len(mine)
        if one.when.cron is None:
            continue
        meant = dues(one.when, table.history[one.key].since, last, BERLIN)
        assert set(mine) <= set(meant), "nothing is made up that was due before it was first seen"
        if not table.history[one.key].open and max(takes) < 3:
            assert mine[-1:] == meant[-1:]


def test_a_quiet_week_has_every_window_at_its_time() -> None:
    table = Table()
    for hour in range(24 * 7):
        now = START + hour * HOUR
        for one in UNITS:
            table.history.setdefault(one.key, History(since=now))
        for step in plan.decide(UNITS, table.history, Clock(now, BERLIN), lambda u: 5):
            table.do(step, now)
            if step.do == "open":
                assert step.due is not None and now - step.due < HOUR
                table.finish(step.unit.key)
    found = Counter(key for key, _ in table.rows)
    assert found == {
        ("embeddings", "reddit"): 7,
        ("embeddings", "facebook"): 7,
        ("sentiment_ml", "reddit"): 7,
        ("topics", None): 1,
        ("facts", "reddit"): 2,
    }


def one_step(one: Unit, was: History, now: datetime, waiting: int = 5) -> Step:
    (step,) = plan.decide([one], {one.key: was}, Clock(now), lambda u: waiting)
    return step


def test_what_was_missed_is_made_up_once() -> None:
    one = UNITS[0]
    was = History(since=START, due=START + HOUR)
    late = START + timedelta(days=5, hours=9)
    step = one_step(one, was, late)
    assert (step.do, step.due) == ("open", START + timedelta(days=5, hours=1))
    assert one_step(one, replace(was, due=step.due), late).do == "wait"
    assert one_step(one, History(since=late), late).do == "wait", "never seen before: not made up"


def test_lag_opens_by_number_or_by_time() -> None:
    one = UNITS[4]
    was = History(since=START, opened=START)
    assert one_step(one, was, START + HOUR, 30).do == "open"
    waits = one_step(one, was, START + HOUR, 12)
    assert (waits.do, waits.reason) == ("wait", "lag 12 of 30")
    assert one_step(one, was, START + 72 * HOUR, 1).reason == "1 wait for 3 days"
    assert one_step(one, was, START + 72 * HOUR, 0).do == "wait"


def test_too_little_is_passed_over_and_said() -> None:
    one = replace(UNITS[0], minimum=100)
    step = one_step(one, History(since=START), START + 2 * HOUR, 12)
    assert (step.do, step.reason, step.due) == ("skip", "12 new of min 100", START + HOUR)
    assert one_step(one, History(since=START, due=step.due), START + 3 * HOUR, 500).do == "wait"


def test_readers_wait_for_their_writers_but_not_for_ever() -> None:
    writer, reader = UNITS[0], UNITS[2]
    known = {writer.key: History(START), reader.key: History(START)}
    now = START + 9 * HOUR

    def steps(at: datetime) -> dict[str, tuple[str, str]]:
        found = plan.decide([writer, reader], known, Clock(at), lambda u: 5)
        return {step.unit.group: (step.do, step.reason) for step in found}

    assert steps(now) == {
        "embeddings": ("open", 'cron "0 1 * * *"'),
        "sentiment_ml": ("wait", "for embeddings reddit"),
    }
    known[writer.key] = History(START, due=START + HOUR, opened=now, open=True)
    assert steps(now + HOUR)["sentiment_ml"] == ("wait", "for embeddings reddit")
    assert steps(now + 7 * HOUR)["sentiment_ml"][0] == "open", "a crash of one holds nobody back"
    known[reader.key] = History(START, asked=True)
    assert steps(now + 7 * HOUR)["sentiment_ml"][0] == "wait", "asked for: it is to find all of it"
    known[writer.key] = replace(known[writer.key], open=False)
    assert steps(now + 7 * HOUR)["sentiment_ml"] == ("open", "asked for")


def test_nobody_works_for_a_platform_that_is_disabled() -> None:
    one = replace(UNITS[0], held=DISABLED)
    assert one_step(one, History(START), START + 2 * HOUR).do == "wait"
    assert one_step(one, History(START, asked=True), START + 2 * HOUR).do == "wait"
    skipped = replace(UNITS[0], held="fast mode skips it")
    assert one_step(skipped, History(START), START + 2 * HOUR).reason == "fast mode skips it"
    assert one_step(skipped, History(START, asked=True), START + 2 * HOUR).do == "open"
