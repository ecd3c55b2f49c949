"""What lag says of a group with a schedule."""

from __future__ import annotations

from dataclasses import replace

from headrace.backlog.model import GroupLag, PartitionLag, State, settle
from headrace.scheduling.report import Rest

ROW = PartitionLag("t.enriched.words", 0, start=0, end=120, high=120, committed=20)
GROUP = GroupLag("shout", "t.shout", "stage", 'cron "0 1 * * *"', (ROW,), members=0)


def told(group: GroupLag) -> tuple[State, str]:
    (found,) = settle([group], {})
    return found.state, found.reason


def test_outside_and_inside_its_windows() -> None:
    rests = replace(GROUP, rest=Rest(False, "next 2026-11-22 01:00 UTC"))
    assert told(rests) == (State.SCHEDULED, "next 2026-11-22 01:00 UTC")
    assert told(GROUP) == (State.SCHEDULED, 'cron "0 1 * * *"'), "PostgreSQL cannot be asked"
    assert told(replace(rests, members=1))[0] is State.CATCHING_UP, "somebody runs it by name"
    opened = replace(GROUP, rest=Rest(True, "next 2026-11-22 01:00 UTC"))
    assert told(replace(opened, members=1))[0] is State.RUNNING
    assert told(opened)[0] is State.STOPPED
    stands = replace(ROW, rate_in=0.0, rate_out=0.0)
    stalls = replace(opened, members=1, partitions=(stands,), window=60.0)
    assert told(stalls)[0] is State.STALL


def test_who_rests_keeps_nobody_waiting() -> None:
    read = replace(ROW, topic="t.enriched.shout", committed=120)
    store = GroupLag("postgres", "t.postgres", "store", "always", (read,), members=1)
    above = {"postgres": ["shout"]}

    def of_the_store(shout: GroupLag) -> State:
        return settle([shout, store], above)[1].state

    assert of_the_store(GROUP) is State.OK
    assert of_the_store(replace(GROUP, members=1)) is State.WAITING, "somebody runs it by name"
    assert of_the_store(replace(GROUP, rest=Rest(True, ""))) is State.WAITING, "a window is open"


def test_redo_does_not_wait_for_a_window() -> None:
    again = PartitionLag("t.shout.redo", 0, start=0, end=5, high=5, committed=2, redo=True)
    assert told(replace(GROUP, partitions=(ROW, again)))[0] is State.STOPPED
