"""The scheduler on real servers, with a clock of the test's own: a week in an hour a turn."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
import yaml
from confluent_kafka import Producer

from headrace.backlog import doctor
from headrace.scheduling import report, windows
from headrace.scheduling import scheduler as schedulers
from headrace.scheduling.scheduler import Scheduler
from headrace.stores import postgres
from headrace.stream import clients
from tests.stages import groups
from tests.world import World, wait_for

HOUR = timedelta(hours=1)
START = datetime(2026, 3, 26, tzinfo=UTC)  # summer time begins in Berlin on the 29th
NIGHTLY = {"when": 'cron "0 1 * * *"'}
LATER = {"reads": ["enriched.words"], "when": 'cron "0 2 * * *"'}


class Killed(BaseException):
    """As good as kill -9: nothing of the process gets to tidy up."""


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def scheduler(world: World, clock: Clock) -> Scheduler:
    return Scheduler(world.settings, world.topology, clock=clock)


def catch_up(world: World, short: str) -> None:
    """As the group's workers would."""
    group = world.topology.group(short)
    partitions = [(t.name, n) for t in group.reads for n in range(t.partitions)]
    world.admin.alter_offsets(group.name, world.admin.ends(partitions))


def rows(world: World, short: str) -> list[Any]:
    return world.sql(
        'SELECT platform, due, state FROM windows WHERE "group" = %s ORDER BY due, platform',
        [short],
    )


def test_a_week_hour_by_hour(worlds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two platforms, one with hours of its own; off for two days; killed between any two steps."""

    world = worlds(change=groups(words=NIGHTLY), flags={"scheduler.zone": "Europe/Berlin"})
    own = "processing: {batch_processing: {words: {schedule: 'cron \"30 2 * * *\"'}}}\n"
    (world.home / "config" / "platforms" / "youtube.yaml").write_text(own)
    world.apply()
    chance = random.Random(7)
    clock = Clock()
    made = scheduler(world, clock)
    steps_left = [99]
    real = Scheduler._do

    def step(self: Scheduler, *arguments: Any) -> None:
        if steps_left[0] == 0:
            raise Killed
        real(self, *arguments)
        steps_left[0] -= 1

    monkeypatch.setattr(Scheduler, "_do", step)
    off = range(2 * 24 - 1, 4 * 24 - 2)  # from before Saturday's windows until after Sunday's
    late = 0
    for hour in range(7 * 24):
        clock.now = START + hour * HOUR
        if hour % 6 == 0:
            world.post(ids=[f"a{hour}", f"b{hour}"])
            world.post("youtube", ids=[f"a{hour}"])
        if hour in off:
            continue
        killed = chance.random() < 0.3
        steps_left[0] = chance.choice([0, 1]) if killed else 99
        try:
            wait_for(made.turn)  # PostgreSQL may take its time to see that the other is gone
        except Killed:
            made.close()
            made = scheduler(world, clock)
            late += 1
        if chance.random() < 0.5:
            catch_up(world, "words")
    assert late > 5, "it was killed in the middle of something"
    wait_for(made.turn)
    made.close()
    zone = ZoneInfo("Europe/Berlin")
    days = [26, 27, 29, 30, 31, 32, 33]  # 28 March was missed, and 29 stands for both
    expected = []
    for day in days:
        for platform, hour, minute in (("reddit", 1, 0), ("youtube", 2, 30)):
            at = datetime(2026, 3, 1, hour, minute, tzinfo=zone) + timedelta(days=day - 1)
            due = at.astimezone(UTC)
            if (day, platform) == (29, "youtube"):
                due = datetime(2026, 3, 29, 1, tzinfo=UTC)  # 02:30 is skipped by the clock
            if START < due <= clock.now:
                expected.append((platform, due))
    found = [(platform, due) for platform, due, _ in rows(world, "words")]
    assert found == sorted(expected, key=lambda row: (row[1], row[0]))
    assert {state for _, _, state in rows(world, "words")} <= {"done", "open"}


def test_one_leads_and_another_takes_over(worlds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"scheduler.look_seconds": 0.001}
    world = worlds(change=groups(words=NIGHTLY), flags=flags).apply()
    clock = Clock()
    first, second = scheduler(world, clock), scheduler(world, clock)
    assert first.turn() and not second.turn()
    with psycopg.connect(world.settings.postgres.dsn.get_secret_value(), autocommit=True) as own:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        assert own.execute(query, [f"headrace scheduler {world.project}"]).fetchall()
    clock.now += 2 * HOUR
    with pytest.raises(psycopg.Error):
        first.turn()
    first.close()
    second.close()
    wait_for(second.turn)
    third = scheduler(world, clock)
    assert not third.turn()
    third.close()
    assert len(rows(world, "words")) == 2
    monkeypatch.setattr(schedulers, "_FROZEN_SECONDS", 0.0)
    assert not first.turn()  # it finds a leader that has said nothing for too long, and ends it
    wait_for(first.turn)
    with pytest.raises(psycopg.Error):
        second.turn()


def test_a_window_is_as_long_as_what_waited(worlds: Any) -> None:
    world = worlds(change=groups(words=NIGHTLY, shout=LATER), platforms=("reddit",))
    own = "processing: {batch_processing: {words: {min_new_records: 10}}}\n"
    (world.home / "config" / "platforms" / "reddit.yaml").write_text(own)
    world.apply()
    clock = Clock()
    made = scheduler(world, clock)
    made.turn()
    world.post(n=6)
    clock.now += timedelta(minutes=90)
    made.turn()
    assert [row[2] for row in rows(world, "words")] == ["skipped"]
    world.post(n=60)
    clock.now += 24 * HOUR
    made.turn()
    assert [row[2] for row in rows(world, "words")] == ["skipped", "open"]
    assert rows(world, "shout") == [], "what it reads comes first"
    catch_up(world, "words")
    world.post(n=100)  # belongs to the next one
    made.turn()
    assert [row[2] for row in rows(world, "words")] == ["skipped", "done"]
    assert [row[2] for row in rows(world, "shout")] == ["done"], "nothing waits: done at once"
    made.close()
    with postgres.connect(world.settings, autocommit=True) as connection:
        ids = windows.ask(connection, [("words", "reddit"), ("shout", None)], "test", clock.now)
        assert len(ids) == 2
        assert windows.ask(connection, [("words", "reddit")], "test", clock.now) == ids[:1]
    made.turn()
    assert rows(world, "words")[-1][2] == "open"
    assert rows(world, "shout")[-1][2] == "asked", "what it reads comes first"
    catch_up(world, "words")
    made.turn()
    assert rows(world, "words")[-1][2] == rows(world, "shout")[-1][2] == "done"
    off = "processing: {batch_processing: {words: {enabled: false}}}\n"
    (world.home / "config" / "platforms" / "reddit.yaml").write_text(off)
    with postgres.connect(world.settings, autocommit=True) as connection:
        windows.ask(connection, [("words", "reddit")], "test", clock.now + HOUR)
    made.turn()
    assert world.sql("SELECT state, reason FROM windows ORDER BY id DESC LIMIT 1") == [
        ("skipped", "test (disabled)")
    ]
    made.close()


def test_what_is_not_committed_yet_belongs_to_the_window(worlds: Any) -> None:
    """What a writer has just made may not count as stable yet when its reader's turn comes."""
    world = worlds(change=groups(words=NIGHTLY), platforms=("reddit",)).apply()
    clock = Clock()
    made = scheduler(world, clock)
    made.turn()
    own = {"transactional.id": f"{world.project}.test"}
    producer = Producer(clients.producer_conf(world.settings, **own))
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(world.topology.topic("raw.posts.reddit").name, b"{}", "a", partition=0)
    producer.flush()
    clock.now += 2 * HOUR
    made.turn()
    assert [row[2] for row in rows(world, "words")] == ["open"]
    catch_up(world, "words")  # as far as it can come now
    made.turn()
    assert [row[2] for row in rows(world, "words")] == ["open"]
    producer.commit_transaction()

    def passed() -> bool:
        catch_up(world, "words")
        made.turn()
        return [row[2] for row in rows(world, "words")] == ["done"]

    wait_for(passed)
    made.close()


def test_two_schedulers_that_know_different_groups(worlds: Any) -> None:
    """One leaves alone what only the other knows, be it for long; a person may close it."""
    world = worlds(change=groups(words=NIGHTLY, shout=LATER), platforms=("reddit",)).apply()
    clock = Clock()
    knows_both = scheduler(world, clock)
    knows_both.turn()
    world.post(n=5)
    world.send("enriched.words", "a", b"{}")
    clock.now += 3 * HOUR
    for _ in range(2):  # readers come after their writers
        knows_both.turn()
        catch_up(world, "words")
    assert [row[2] for row in rows(world, "shout")] == ["open"]
    noted = world.sql("SELECT * FROM schedules ORDER BY 1")
    knows_both.close()

    file = world.home / "other.yaml"
    content = yaml.safe_load((world.home / "topics.yaml").read_text())
    del content["groups"]["shout"]
    content["modes"] = {"full": "all"}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    other = world.settings.model_copy(update={"topics": file})
    knows_one = Scheduler(other, clock=clock)
    wait_for(knows_one.turn)
    knows_one.close()
    assert [row[2] for row in rows(world, "shout")] == ["open"]
    assert world.sql("SELECT * FROM schedules ORDER BY 1") == noted, "what it missed is made up"
    assert [window.group for window in report.read(other).unknown] == ["shout"]
    assert report.read(world.settings).unknown == ()
    said = [finding.what for finding in doctor.examine(other).findings]
    assert "shout has a window, and no schedule here" in said
    assert "closed: shout" in world.command("schedule", "--close", "shout").stdout
    assert [row[2] for row in rows(world, "shout")] == ["skipped"]
