"""The Batch API from both ends: a provider on loopback, requests and answers in PostgreSQL."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from llmock.routers import batch as simulated

from headrace.errors import HeadraceError
from headrace.forget import tables
from headrace.llm import estimates
from headrace.llm.asking import Answered, Deferred, Failed, Item
from headrace.llm.batches import commands
from headrace.llm.batches import courier as couriers
from headrace.llm.batches.courier import Courier
from headrace.stream import topology
from tests.llm import desk, provider

BATCH: dict[str, Any] = {"transport": {desk.STAGE: "batch"}, "batch_age_seconds": 0.001}


class Killed(BaseException):
    """As kill -9: nothing of ours runs after it."""


class Office:
    """One stage that asks by batches, and a courier that may be killed."""

    def __init__(self, dsn: str, name: str, provider: Any, **llm: Any) -> None:
        self.provider = provider
        self.desk = desk.Desk(dsn, name, provider.url, **{**BATCH, **llm})
        self.again: list[str] = []
        self._numbers = 0

    def items(self, count: int) -> list[Item]:
        """New ones, of records that are stored."""
        made = desk.many(count, self._numbers)
        self._numbers += count
        for item in made:
            self.store(int(item.record.rpartition("r")[2]))
        return made

    def store(self, number: int) -> None:
        self.desk.sql(
            "INSERT INTO records (id, kind, platform_id, topic, topic_id, partition,"
            " \"offset\", appended) VALUES (%s, 'post', 1, 't', 'i', 0, %s, 0)",
            [f"post:reddit:r{number}", number],
        )

    def ask(self, items: Sequence[Item], pack: int = 2) -> list[Any]:
        """As a worker does that was started just now."""
        asker = self.desk.asker()
        try:
            return list(asker.ask(desk.packed(pack), items))
        finally:
            asker.close()

    def wanted(self) -> bool:
        return couriers.wanted(self.desk.settings, topology.load(self.desk.settings))

    def courier(self) -> Courier:
        settings = self.desk.settings
        return Courier(settings, topology.load(settings), self._queue)

    def carry(self, looks: int = 1) -> None:
        one = self.courier()
        try:
            for _ in range(looks):
                assert one.look()
        finally:
            one.close()

    def forget(self, record: str) -> None:
        """As `headrace forget` takes a record out, whose deletion is stored."""
        self.desk.sql("UPDATE records SET deleted = true, value = NULL WHERE id = %s", [record])
        for place in ("llm_answers", "llm_claims", "llm_requests", "llm_calls"):
            self.desk.sql(tables._TAKE_OUT[place], [[record]])

    def command(self, *words: str) -> str:
        """What `headrace llm batches …` says. Raises HeadraceError."""
        found = CliRunner().invoke(commands.batches, words, obj=lambda: self.desk.settings)
        if found.exception is not None:
            raise found.exception
        return found.stdout

    def _queue(self, stage: str, records: Sequence[str], parts: Sequence[str]) -> None:
        assert not parts
        self.again += records

    def batches(self) -> list[dict[str, Any]]:
        """Those that the provider was given, oldest first."""
        return [
            call.body
            for call in self.provider.others
            if call.path == "/v1/batches" and call.body.get("input_file_id") and call.status == 200
        ]

    def states(self) -> dict[str, int]:
        rows = self.desk.sql("SELECT state, count(*) FROM llm_requests GROUP BY 1")
        return {str(state): int(count) for state, count in rows}


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    with provider.serve() as p:
        yield p


@pytest.fixture
def office(postgres: str, served: Any) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []
    served.calls.clear()
    served.others.clear()
    served.judge = served.answer = None
    served.batch_seconds = 0.0
    served._ends.clear()
    served._scripts.clear()
    simulated._files.clear()
    simulated._batches.clear()
    with desk.project(postgres) as name:

        def make(**llm: Any) -> Office:
            made.append(Office(postgres, name, served, **llm))
            return made[-1]

        yield make
        for one in made:
            one.desk.close()


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The statement of that number is the last: it is not made any more. Yields the count."""
    count = [0]
    execute = psycopg.Cursor.execute

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        count[0] += 1
        if count[0] >= number:
            raise Killed
        return execute(self, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Cursor, "execute", counted)
        yield count


def test_requests_come_back_as_answers_at_half_the_price(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(5)
    assert here.ask(items) == [Deferred("batch")] * 5
    assert here.ask(items) == [Deferred("batch")] * 5  # under way already: not asked twice
    direct = office(transport={})
    assert direct.wanted()  # whatever the settings say by now
    here.carry(2)
    assert sorted(here.again) == sorted(item.record for item in items)
    answers = here.ask(items)
    assert all(isinstance(one, Answered) and not one.bought for one in answers)
    assert len(here.batches()) == 1 and not here.provider.calls
    assert here.states() == {}

    (batch,) = here.desk.sql("SELECT sum(cost), sum(tokens) FROM llm_calls")
    assert here.wanted() and not direct.wanted()
    other = desk.items(*(str(item.content["text"]) for item in items), start=1000)
    assert all(one.bought for one in direct.ask(other))
    (now,) = here.desk.sql(
        "SELECT sum(cost), sum(tokens) FROM llm_calls WHERE transport = 'direct'"
    )
    assert batch[1] == now[1] and batch[0] == now[0] / 2 > Decimal(0)


def test_what_expires_goes_round_again(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(8)
    here.provider.batch(provider.expired(0.5))
    here.ask(items)
    here.carry()
    assert len(here.again) == 4
    assert sum(isinstance(one, Answered) for one in here.ask(items)) == 4
    here.carry()
    assert all(isinstance(one, Answered) for one in here.ask(items))
    assert len(here.batches()) == 2
    rows = here.desk.sql("SELECT reason, state, cost > 0 FROM llm_calls ORDER BY id")
    assert [row for row in rows if row[1] == "failed"] == [("first", "failed", False)] * 2
    assert [row for row in rows if row[0] == "round 2"] == [("round 2", "answered", True)] * 2


def test_after_so_many_rounds_it_is_asked_directly(office: Callable[..., Office]) -> None:
    here = office(batch_rounds=2)
    items = here.items(3)
    here.provider.batch(provider.failed(), provider.cancelled())
    here.ask(items)
    here.carry(4)
    assert sorted(here.again) == sorted(item.record for item in items)
    assert here.states() == {"queued": 2}
    answers = here.ask(items)
    assert all(one.bought for one in answers)
    assert here.states() == {} and len(here.batches()) == 2


def test_a_request_that_is_refused_is_asked_directly_and_its_item_found(
    office: Callable[..., Office],
) -> None:
    here = office()
    items = [*here.items(2), *desk.items("poison", start=900)]
    here.store(900)
    here.provider.judge = lambda call: provider.status(400) if "poison" in call.text else None
    here.ask(items, pack=3)
    here.carry(2)
    outcomes = here.ask(items, pack=3)
    assert [type(one) for one in outcomes] == [Answered, Answered, Failed]
    assert here.states() == {}


def test_a_spent_budget_lets_the_rest_wait(office: Callable[..., Office]) -> None:
    here = office(daily_budget=0.0006)
    items = here.items(8)
    here.ask(items)
    one = here.courier()
    one.look()
    one.look()
    one.close()
    told = here.states()
    assert told["waiting"] > 0
    assert 0 < sum(isinstance(a, Answered) for a in here.ask(items)) < 8
    (spent,) = here.desk.sql("SELECT sum(cost) FROM llm_calls")[0]
    assert spent <= Decimal("0.0006")


def test_a_kill_at_any_step_submits_nothing_twice_and_loses_nothing(
    office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = office()
    monkeypatch.setattr(couriers.migrate, "upgrade", lambda *_: None)  # they are there
    number = 0
    while True:
        number += 1
        items = here.items(4)
        before = len(here.batches())
        here.again.clear()
        assert here.ask(items) == [Deferred("batch")] * 4
        with killed_at(number, monkeypatch) as count:
            one = here.courier()
            with suppress(Killed):
                one.look()
                one.look()
        one.close()
        here.carry(2)
        assert len(here.batches()) == before + 1, f"killed before statement {number}"
        assert set(here.again) == {item.record for item in items}
        assert all(isinstance(a, Answered) for a in here.ask(items))
        assert here.states() == {}
        if count[0] < number:
            break
    assert number > 20
    # Each request was paid once, and the sums that budgets go by say so.
    assert here.desk.sql("SELECT DISTINCT state FROM llm_calls") == [("answered",)]
    (paid,) = here.desk.sql("SELECT sum(cost) FROM llm_calls")
    assert here.desk.sql("SELECT spent FROM llm_spent WHERE starts_with(scope, 'day ')") == [paid]


def test_an_answer_that_is_lost_on_its_way_is_found_again(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(2)
    here.ask(items)
    here.provider.script(provider.lost(), path="files")
    here.provider.script(provider.lost(), path="batches")
    one = here.courier()
    for _ in range(6):
        one.look()
    one.close()
    assert all(isinstance(a, Answered) for a in here.ask(items))
    done = here.desk.sql("SELECT count(*) FROM llm_batches WHERE state = 'done'")
    assert done == [(1,)]


def test_resubmitted_requests_begin_at_the_first_round(office: Callable[..., Office]) -> None:
    here = office(batch_rounds=1)
    items = here.items(4)
    here.provider.batch(provider.failed())
    here.ask(items)
    here.carry(2)
    assert here.states() == {"queued": 2}
    (batch,) = here.desk.sql("SELECT id FROM llm_batches")
    assert couriers.resubmit(here.desk.settings, batch[0], desk.STAGE) == 2
    assert here.ask(items) == [Deferred("batch")] * 4
    here.carry(2)
    assert all(isinstance(a, Answered) for a in here.ask(items))


def test_what_a_batch_answers_in_part_is_asked_for_and_over(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(4)
    here.provider.judge = lambda call: provider.left_out(1) if "text 0" in call.text else None
    here.ask(items)
    here.carry(2)
    assert here.states() == {"queued": 1} and len(here.again) == 4
    here.provider.judge = None
    outcomes = here.ask(items)
    assert [one.bought for one in outcomes] == [True, False, False, False]
    # The answer to the second item is the second's, though it came first.
    alone = office(transport={}).ask(desk.items("text 1", start=500))
    assert outcomes[1].value == alone[0].value
    assert here.states() == {} and here.desk.sql("SELECT FROM llm_request_items") == []


@pytest.mark.parametrize("when", ["waiting", "uploaded", "answered", "failed"])
def test_a_forgotten_record_leaves_the_others_of_its_request_alone(
    office: Callable[..., Office], when: str
) -> None:
    here = office()
    items = here.items(3)
    gone = items[1].record
    done: list[str] = []
    here.provider.judge = lambda call: done.append(call.text)
    here.provider.batch_seconds = 0.0 if when in ("waiting", "uploaded") else 3600.0
    here.ask(items, pack=3)
    if when == "uploaded":  # then the courier is killed
        here.provider.script(provider.Step(), provider.status(500), path="batches")
    if when != "waiting":
        here.carry()
    here.forget(gone)
    here.provider.batch_seconds = 0.0
    if when == "failed":
        here.provider.batch(provider.failed())
    here.carry(3)
    rest = [items[0], items[2]]
    assert {one.record for one in rest} <= set(here.again)
    if when != "answered":  # asked for once more without it, by the next batch
        assert here.ask(rest, pack=3) == [Deferred("batch")] * 2
        here.carry(2)
    assert all(isinstance(a, Answered) and not a.bought for a in here.ask(rest, pack=3))
    assert not here.provider.calls
    assert here.states() == {} and here.desk.sql("SELECT FROM llm_claims") == []
    assert here.desk.sql("SELECT FROM llm_answers WHERE record_id = %s", [gone]) == []
    assert any("text 1" in text for text in done) == (when == "answered")


def test_a_record_that_is_queued_still_is_queued_once_more(office: Callable[..., Office]) -> None:
    """Its message may have been read before there was an answer."""
    here = office()
    items = [*here.items(2), *desk.items("not stored yet", start=800)]
    here.ask(items, pack=3)
    here.desk.sql(
        "INSERT INTO redo (\"group\", record_id, reason, state) VALUES (%s, %s, 'asked', 'queued')",
        [desk.STAGE, items[0].record],
    )
    here.carry(2)
    assert here.again == [items[1].record]
    here.desk.sql("DELETE FROM redo")
    here.carry()
    assert here.again == [items[1].record, items[0].record]
    here.store(800)
    here.carry()
    assert here.again == [items[1].record, items[0].record, items[2].record]
    assert here.states() == {}


def test_an_estimate_goes_by_the_way_that_is_asked(office: Callable[..., Office]) -> None:
    def lines(**llm: Any) -> list[str]:
        settings = office(**llm).desk.settings
        group = topology.load(settings).group("scores")
        each = estimates.Each(0.05, 100.0, 20.0, 1.0, 40, by_ledger=False)
        batches = estimates._batches(settings, group, 60)
        found = estimates.Estimate("scores", "m", 0, 60, each, 0.004, 0.002, 9.0, batches)
        return estimates.told(found, settings)

    assert lines()[1:3] == [
        "$0.0020 with m by batches; $0.0040 directly",
        "answered within 1 day of being sent",
    ]
    for direct in ({"transport": {}}, {"transport": {"scores": "auto"}}):
        said = lines(**direct)
        assert said[1:3] == ["$0.0040 with m; $0.0020 by batches", "9 s at the least"]
    assert lines(transport={"scores": "auto"}, auto_from=50) == lines()


def test_what_nobody_asks_for_any_more_is_not_sent(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(2)
    here.ask(items)
    other = office(model="gpt-4o-mini")
    other.carry()
    assert sorted(other.again) == sorted(item.record for item in items)
    assert other.ask(items) == [Deferred("batch")] * 2
    other.carry(2)
    assert all(isinstance(a, Answered) for a in other.ask(items))
    assert other.desk.sql("SELECT DISTINCT model FROM llm_calls") == [("gpt-4o-mini",)]


def test_what_a_worker_has_taken_over_is_left_to_it(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(4)
    here.ask(items)
    here.desk.sql(
        "UPDATE llm_claims SET owner = 'scores/else' WHERE record_id = %s", [items[0].record]
    )
    # Nor does a provider that was down for others hold it back.
    here.desk.sql("UPDATE llm_providers SET failures = 5000, probe_until = now() + '1 hour'")
    here.carry(2)
    assert len(here.again) == 4
    assert all(isinstance(a, Answered) for a in here.ask(items[2:]))
    assert here.states() == {}
    assert here.desk.sql("SELECT count(*) FROM llm_claims") == [(1,)]


def test_a_provider_without_room_is_no_round(office: Callable[..., Office]) -> None:
    here = office(batch_rounds=1)
    items = here.items(2)
    here.provider.batch(*[provider.failed("token_limit_exceeded")] * 2)
    here.ask(items)
    here.carry(4)
    assert all(isinstance(a, Answered) and not a.bought for a in here.ask(items))
    assert not here.provider.calls


def test_answers_are_read_whole(office: Callable[..., Office]) -> None:
    here = office()
    items = here.items(3)
    said = {"score": 5, "why": "one\u2028two\x85three"}  # what else may end a line
    here.provider.answer = lambda asked: said
    here.provider.script(provider.Step(), provider.Step(), provider.dropped(), path="files")
    here.ask(items)
    here.carry(2)
    here.provider.answer = None
    assert [one.value for one in here.ask(items)] == [said] * 3
    assert len(here.batches()) == 1 and not here.provider.calls


def test_one_courier_at_a_time(office: Callable[..., Office]) -> None:
    here = office()
    one, other = here.courier(), here.courier()
    try:
        assert one.look() and not other.look()
        one.close()
        assert other.look()
    finally:
        one.close()
        other.close()


def test_a_batch_that_the_provider_does_not_know_is_given_up_by_a_person(
    office: Callable[..., Office],
) -> None:
    here = office()
    items = here.items(2)
    here.provider.batch_seconds = 3600.0
    here.ask(items)
    here.carry()
    here.provider.batch_seconds = 0.0
    simulated._batches.clear()
    here.carry()
    (error,) = here.desk.sql("SELECT error FROM llm_batches")[0]
    assert "knows no batch" in error and "headrace llm batches cancel" in error
    here.command("cancel", "1")
    here.carry(3)
    assert all(isinstance(a, Answered) for a in here.ask(items))
    states = here.desk.sql("SELECT status, state FROM llm_batches ORDER BY id")
    assert states == [("given up", "done"), ("completed", "done")]
    # It may have been answered, and billed.
    assert here.desk.sql("SELECT DISTINCT cost > 0 FROM llm_calls") == [(True,)]


def test_what_the_commands_say(office: Callable[..., Office]) -> None:
    here = office(batch_rounds=1)
    assert here.command("list") == "no batch yet: a group asks by batches with llm.transport\n"
    items = here.items(2)
    here.ask(items)
    assert here.command("list").startswith("scores: 1 request in batches, the oldest for")
    here.provider.batch_seconds = 3600.0
    here.carry()
    (name, number) = here.desk.sql("SELECT name, batch FROM llm_batches")[0]
    told = json.loads(here.command("list", "--json"))
    assert told["requests"][0]["sent"] == 1 and told["batches"][0]["name"] == name
    for named in ("1", name, number):
        said = here.command("show", named)
        assert name in said and "reserved: $" in said and items[0].record in said
    with pytest.raises(HeadraceError, match="under way"):
        here.command("resubmit", "1")
    assert "at the next look" in here.command("cancel", "1")
    assert "to be cancelled" in here.command("list")
    here.carry(2)
    assert here.command("list").split()[-5:] == ["1", "0", "1", "$0.00", "cancelled"]
    here.provider.batch_seconds = 0.0
    with pytest.raises(HeadraceError, match="done already"):
        here.command("cancel", "1")
    assert here.command("resubmit", "1") == "1 request goes with the next batch\n"
    here.carry(2)
    assert re.search(r"gpt-4.1-mini +1 +1 +0 +\$0.0000\d+  completed$", here.command("list"), re.M)
    for wrong in ("77", "nonsense", "1.5", "\0"):
        with pytest.raises(HeadraceError, match="there is no batch"):
            here.command("show", wrong)
