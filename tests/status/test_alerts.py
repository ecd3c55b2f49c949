"""What is wrong, when somebody is told, and that nobody is told twice."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.status import telling
from headrace import config
from headrace.backlog.model import PartitionLag
from headrace.config import Status
from headrace.schedule import parse
from headrace.status import view
from headrace.status.alerts import (
    MINUTE_MS,
    Alert,
    Condition,
    Movement,
    Reading,
    Unread,
    conditions,
    decide,
    delivered,
    failed,
)
from headrace.status.fold import Counts
from headrace.status.reading import due_before, unread_before
from headrace.stream import schemas

SETTINGS = config.load({"config": "/dev/null"})
VALIDATOR = schemas.validator(SETTINGS, "alert.v1")
COOLDOWN = 60 * MINUTE_MS
HOUR = 3_600_000
NOON = 1_800_014_400_000 // (24 * HOUR) * 24 * HOUR + 12 * HOUR


def wrong(
    reading: Reading, looks: int = 1, lately: Counts | None = None, **over: Any
) -> dict[str, bool | None]:
    """What is said of a group that stands so, by the last of looks a minute apart."""
    movement, own = Movement(), Status(**over)
    found: list[Condition] = []
    for look in range(looks):
        quiet = movement.look(reading, NOON + look * MINUTE_MS)
        found = conditions(own, reading, quiet, lately or Counts())
    return {condition.kind: condition.wrong for condition in found}


QUIET = Reading("text", backlog=0, overdue=0, runs=True, position=10)
BUSY = replace(QUIET, backlog=50_000)


def test_each_kind_of_trouble_is_seen_and_no_other():
    well = dict.fromkeys(("overdue", "stalled", "dead_letters", "retention", "lost"), False)
    assert wrong(QUIET) == well
    assert wrong(replace(BUSY, overdue=10_000), 3) == well | {"stalled": None}
    assert wrong(replace(BUSY, overdue=10_001)) == well | {"stalled": None, "overdue": True}
    assert wrong(BUSY, looks=11)["stalled"] is True
    assert wrong(replace(BUSY, runs=False), looks=11)["stalled"] is False
    assert wrong(QUIET, lately=Counts(records=199, dead=199)) == well
    assert wrong(QUIET, lately=Counts(records=200, dead=11)) == well | {"dead_letters": True}
    assert wrong(QUIET, lately=Counts(records=200, dead=10)) == well
    day = 24 * HOUR
    near = replace(QUIET, unread=(Unread("a", day, 0 + 30 * day), Unread("b", 25 * day, 30 * day)))
    assert wrong(near) == well | {"retention": True}
    assert wrong(replace(QUIET, lost="7 offsets expired unread")) == well | {"lost": True}


def test_a_group_that_moved_is_not_stalled_and_one_just_met_may_be():
    movement, own = Movement(), Status()

    def look(minute: int, position: int) -> bool | None:
        reading = replace(BUSY, position=position)
        quiet = movement.look(reading, NOON + minute * MINUTE_MS)
        found = {c.kind: c.wrong for c in conditions(own, reading, quiet)}
        return found["stalled"]

    assert [look(0, 5), look(9, 5)] == [None, None]  # it may have stood still before
    assert look(10, 5) is True
    assert [look(11, 6), look(20, 6)] == [False, False]
    assert look(21, 6) is True


@pytest.mark.parametrize(
    ("when", "due"),
    [
        ("always", NOON),
        ('cron "0 2 * * *"', NOON - 10 * HOUR),
        ('cron "0 12 * * *"', NOON),
        ("lag >= 1000 or 7 days", NOON),
    ],
)
def test_work_is_due_by_its_schedule(when, due):
    assert due_before(parse(when), NOON, "UTC") == due


def test_overdue_is_what_was_there_then_and_is_unread():
    rows = [
        PartitionLag("a", 0, start=0, end=100, high=100, committed=40),
        PartitionLag("a", 1, start=0, end=100, high=100, committed=90),
        PartitionLag("a", 2, start=0, end=100, high=100, committed=40),
        PartitionLag("a", 3, start=30, end=100, high=100, committed=None),
    ]
    there = {("a", 0): 70, ("a", 1): 70, ("a", 2): -1, ("a", 3): 50}
    assert unread_before(rows, NOON, lambda places, ms: there) == 30 + 0 + 60 + 20


def condition(is_wrong: bool | None, group: str = "text") -> Condition:
    return Condition("overdue", group, is_wrong, 5, 1, f"{group}: late", "run it")


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([True, False, None]),
            st.integers(1, 40),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_each_change_is_told_once_with_a_cool_down_and_an_all_clear(looks):
    """Any sequence of looks, with restarts between them that know what the table knows."""
    known: dict[str, Alert] = {}
    now, sent = NOON, []
    last: bool | None = None
    for is_wrong, minutes, restart in looks:
        now += minutes * MINUTE_MS
        last = last if is_wrong is None else is_wrong
        for alert in decide(known, [condition(is_wrong)], ["text"], ["topic"], now, COOLDOWN):
            known[alert.id] = alert
            for notice in alert.notices:
                assert schemas.complaint(VALIDATOR, notice.message) is None
                sent.append((notice.message["state"], now, notice.message["event_id"]))
                known[alert.id] = delivered(known[alert.id], notice.event, "topic")
            assert known[alert.id].notices == ()
        if restart:
            known = {id: Alert.unpack(alert.pack()) for id, alert in known.items()}
    states = [state for state, _, _ in sent]
    assert states == ["firing", "clear"] * (len(states) // 2) + ["firing"] * (len(states) % 2)
    fired = [at for state, at, _ in sent if state == "firing"]
    assert all(b - a >= COOLDOWN for a, b in pairwise(fired))
    assert len({id for _, _, id in sent}) == len(sent)
    if last is not None:
        assert bool(known and known["overdue:text"].open) == last
    if last is False and states:
        assert states[-1] == "clear"
    if last is True:  # nobody waits for more than the cool-down to be told
        rest = decide(known, [condition(True)], ["text"], ["topic"], now + COOLDOWN, COOLDOWN)
        assert known["overdue:text"].told or [a.told for a in rest] == [True]


def test_a_group_that_is_gone_is_well():
    (fired,) = decide({}, [condition(True, "old")], ["old"], ["topic"], NOON, COOLDOWN)
    (clear,) = decide({fired.id: fired}, [], ["text"], ["topic"], NOON + 1, COOLDOWN)
    assert [n.message["state"] for n in clear.notices] == ["firing", "clear"]
    assert view.newest([n.message for n in fired.notices]) != []
    assert view.newest([n.message for n in clear.notices]) == []


def test_what_cannot_be_told_is_tried_again_and_given_up():
    channels = ["topic", "log", "mail"]
    (alert,) = decide({}, [condition(True)], ["text"], channels, NOON, COOLDOWN)
    event = alert.notices[0].event
    for channel in ("log", "topic"):
        alert = delivered(alert, event, channel)
    waits = []
    for _ in range(3):
        assert alert.notices[0].channels == ("mail",)
        alert = failed(alert, event, NOON, 1000, most=4)
        waits.append(alert.notices[0].next_ms - NOON)
    assert waits == [1000, 2000, 4000]
    assert failed(alert, event, NOON, 1000, most=4).notices == ()
    assert delivered(alert, event, "mail").notices == ()


class _Mailbox(socketserver.StreamRequestHandler):
    """As much of SMTP as one message takes."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        content = False
        for line in self.rfile:
            word = line.strip().upper()
            if content:
                content = word != b"."
                self.server.lines.append(line.decode())  # type: ignore[attr-defined]
                if not content:
                    self.wfile.write(b"250 taken\r\n")
            elif word == b"DATA":
                content = True
                self.wfile.write(b"354 go on\r\n")
            elif word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 yes\r\n")


@pytest.fixture
def mailbox() -> Iterator[Any]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mailbox) as server:
        server.lines = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_mail_is_sent(mailbox):
    flags = {
        "status.mail_to": ["ops@example.org"],
        "status.smtp_port": mailbox.server_address[1],
    }
    own = config.load({"config": "/dev/null", **flags})
    assert telling.channels(own) == ("topic", "log", "mail")
    (alert,) = decide({}, [condition(True)], ["text"], [], NOON, COOLDOWN)
    telling.tell(own, "mail", alert.message())
    text = "".join(mailbox.lines)
    assert "Subject: [headrace] overdue:text firing" in text and "text: late" in text
    nobody = config.load({"config": "/dev/null", **flags, "status.smtp_port": 9})
    with pytest.raises(OSError):
        telling.tell(nobody, "mail", alert.message())
