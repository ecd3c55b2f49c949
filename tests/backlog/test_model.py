"""Lag, estimate and state as pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from headrace.backlog import exporter
from headrace.backlog.model import GroupLag, PartitionLag, State, measure, settle

offsets = st.integers(0, 10**9)


@st.composite
def partitions(draw: st.DrawFn, number: int = 0) -> PartitionLag:
    """Anything that a broker and a group may say, also what cannot be in good order."""
    start, end, high = sorted(draw(st.tuples(offsets, offsets, offsets)))
    redo = draw(st.booleans())
    left_out = st.sampled_from([None, None, State.SCHEDULED, State.DISABLED])
    return PartitionLag(
        topic=draw(st.sampled_from(["a", "b"])),
        partition=number,
        start=start,
        end=end,
        high=high,
        committed=draw(st.none() | offsets),
        redo=redo,
        held=None if redo else draw(left_out),
    )


@st.composite
def groups(draw: st.DrawFn) -> GroupLag:
    rows = [draw(partitions(number)) for number in range(draw(st.integers(0, 4)))]
    return GroupLag(
        draw(st.sampled_from(["one", "two", "three"])),
        "x.one",
        "stage",
        draw(st.sampled_from(["always", "cron 0 2 * * *"])),
        tuple(rows),
        members=draw(st.none() | st.integers(0, 3)),
        window=draw(st.none() | st.floats(0.1, 600)),
        at_ms=10**12,
    )


def part(end: int, committed: int | None, *, start: int = 0, **more: object) -> PartitionLag:
    return replace(PartitionLag("t", 0, start, end, end, committed), **more)  # type: ignore[arg-type]


def group(*rows: PartitionLag, members: int | None = 1, **more: object) -> GroupLag:
    rows = tuple(replace(row, partition=number) for number, row in enumerate(rows))
    return replace(GroupLag("one", "x.one", "stage", "always", rows, members), **more)  # type: ignore[arg-type]


def state(of: GroupLag) -> State:
    return settle([of], {})[0].state


@given(partitions())
def test_lag_is_never_negative_nor_more_than_the_log(p: PartitionLag) -> None:
    assert 0 <= p.lag <= p.end - p.start
    assert p.start <= p.position or p.lag == 0
    if p.committed is None:
        assert p.lag == p.end - p.start
    if p.lost:
        assert p.lag == p.end - p.start


@given(groups())
def test_backlog_is_lag_and_redo_and_what_is_held_is_apart(g: GroupLag) -> None:
    assert g.backlog == g.lag + g.redo
    assert g.backlog + g.held == sum(p.lag for p in g.partitions)
    assert not g.caught_up or g.backlog == 0


@given(groups(), st.floats(0.1, 600), st.integers(0, 10**6), st.integers(0, 10**6))
def test_rates_and_eta_are_never_negative(
    g: GroupLag, seconds: float, came: int, went: int
) -> None:
    moved = tuple(
        replace(
            p,
            end=p.end + came,
            high=p.high + came,
            committed=None if p.committed is None else p.committed + went,
        )
        for p in g.partitions
    )
    after = measure(g, replace(g, partitions=moved), seconds)
    assert all((p.rate_in or 0) >= 0 and (p.rate_out or 0) >= 0 for p in after.partitions)
    eta = after.eta()
    assert eta is None or eta >= 0
    if after.backlog == 0:
        assert eta == 0
    elif eta is not None and not any(p.rate_out for p in after.working):
        assert eta == math.inf


@given(st.lists(groups(), max_size=3, unique_by=lambda g: g.group))
def test_a_state_says_what_its_definition_says(all_groups: list[GroupLag]) -> None:
    upstream = {"two": ["one"], "three": ["two", "one"]}
    for g in settle(all_groups, upstream, 60):
        if any(p.lost for p in g.partitions):
            assert g.state is State.DATA_LOSS
            continue
        match g.state:
            case State.OK | State.DONE:
                assert g.caught_up or g.backlog == 0
                assert (g.state is State.DONE) == (g.members == 0)
            case State.STALL:
                assert g.backlog and g.members != 0 and g.window and g.window >= 60
            case State.CATCHING_UP:
                assert g.backlog and g.members != 0
            case State.STOPPED:
                assert g.members == 0 and not g.caught_up
            case State.NOT_STARTED:
                assert g.members == 0 and all(p.committed is None for p in g.working)
            case State.WAITING:
                assert g.backlog == 0
            case State.DATA_LOSS:
                raise AssertionError("nothing was lost")


def test_no_commit_means_the_whole_log() -> None:
    assert part(100, None, start=40).lag == 60
    assert part(100, 100).lag == 0


def test_a_commit_outside_the_log_is_data_loss() -> None:
    assert state(group(part(100, 30, start=40))) is State.DATA_LOSS
    assert state(group(part(100, 101))) is State.DATA_LOSS
    assert part(100, 101).lag == 100
    assert state(group(part(100, 40, start=40))) is State.CATCHING_UP


def test_a_commit_past_the_stable_end_is_no_loss() -> None:
    p = part(100, 103, high=105)
    assert (p.lag, p.lost, p.open) == (0, 0, 5)
    assert state(group(p)) is State.WAITING


def test_states_of_a_group_s_life() -> None:
    assert state(group(part(9, None), members=0)) is State.NOT_STARTED
    assert state(group(part(9, None))) is State.CATCHING_UP
    assert state(group(part(9, 4))) is State.CATCHING_UP
    assert state(group(part(9, 4), members=0)) is State.STOPPED
    assert state(group(part(9, 9))) is State.OK
    assert state(group(part(9, 9), members=0)) is State.DONE
    assert state(group(part(9, 4), members=0, when="cron 0 2 * * *")) is State.SCHEDULED
    held = part(9, 4, held=State.SCHEDULED)
    off = part(9, 4, held=State.DISABLED)
    assert state(group(held, off)) is State.SCHEDULED
    assert state(group(off, off)) is State.DISABLED
    assert state(group(off, part(9, 4))) is State.CATCHING_UP
    assert group(off, part(9, 4)).backlog == 5


def test_redo_is_exempt_from_what_is_held() -> None:
    g = group(part(9, 4, held=State.SCHEDULED), part(3, 0, redo=True))
    assert (g.lag, g.redo, g.backlog, g.held) == (0, 3, 3, 5)
    assert state(g) is State.CATCHING_UP


def test_a_stall_needs_a_window_long_enough() -> None:
    still = part(9, 4, rate_in=0.0, rate_out=0.0)
    assert state(group(still, window=10.0)) is State.CATCHING_UP
    assert state(group(still, window=60.0)) is State.STALL
    assert state(group(still, part(9, 4, rate_out=1.0), window=60.0)) is State.CATCHING_UP


def test_a_group_with_nothing_left_waits_for_those_above_it() -> None:
    stage = group(part(9, 4), members=0)
    middle = replace(group(part(9, 9)), group="two")
    store = replace(group(part(9, 9)), group="three")
    last = settle([stage, middle, store], {"two": ["one"], "three": ["two"]})[2]
    assert (last.state, last.reason) == (State.WAITING, "for one")


def test_the_eta_is_the_worst_partition_s() -> None:
    quick = part(1000, 900, rate_in=0.0, rate_out=100.0)
    slow = part(1000, 900, rate_in=10.0, rate_out=20.0)
    sinking = part(1000, 900, rate_in=20.0, rate_out=10.0)
    untouched = part(1000, 900, rate_in=0.0, rate_out=0.0)
    assert group(quick, slow, window=10.0).eta() == 10.0
    assert group(quick, sinking, window=10.0).eta() == math.inf
    assert group(quick, untouched, window=10.0).eta() == 2.0  # in turn, at the group's rate
    assert group(quick, untouched, window=60.0).eta() == math.inf
    assert group(quick).eta() is None  # not measured
    assert group(part(9, 9)).eta() == 0.0


def test_age_of_the_oldest_unread_message() -> None:
    g = group(part(9, 4, oldest_ms=4_000), part(9, 5, oldest_ms=6_000), at_ms=10_000)
    assert g.seconds_behind == 6.0
    assert group(part(9, 9, oldest_ms=1), at_ms=10_000).seconds_behind == 0.0
    assert group(part(9, 4), at_ms=10_000).seconds_behind is None
    assert group(part(9, 4, oldest_ms=99_000), at_ms=10_000).seconds_behind == 0.0


def test_a_topic_s_end_is_its_own_and_not_what_a_job_knows_of_it() -> None:
    job = GroupLag("metrics", "x.metrics", "job", "cron", (part(7, 3),), members=0)
    told = exporter.text([group(part(9, 4)), job])
    assert 'kafka_topic_partition_current_offset{partition="0",topic="t"} 9.0' in told
    assert 'kafka_consumergroup_lag_sum{consumergroup="x.metrics",topic="t"} 4.0' in told
