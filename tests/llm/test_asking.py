"""Asking over real HTTP and a real ledger: what is bought, what is asked again, what is never."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from headrace import config
from headrace.errors import ConfigError, Onward, Pause, Retry
from headrace.llm import asking
from headrace.llm.asking import Answered, Failed
from headrace.llm.client import Client
from headrace.stream.stage import Context
from tests.llm import provider
from tests.llm.desk import STAGE, Desk, items, many, packed, project, settings_of, single
from tests.llm.provider import Call, Provider
from tests.world import wait_for

CLONE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def name(postgres: str) -> Iterator[str]:
    with project(postgres) as found:
        yield found


@pytest.fixture
def p() -> Iterator[Provider]:
    with provider.serve() as found:
        yield found


@pytest.fixture
def desks(postgres: str, name: str, p: Provider) -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(**llm: Any) -> Desk:
        made.append(Desk(postgres, name, llm.pop("url", p.url), **llm))
        made[-1].sql("TRUNCATE llm_answers, llm_claims, llm_spent, llm_sets")
        return made[-1]

    yield make
    for desk in made:
        desk.close()


@pytest.fixture
def desk(desks: Callable[..., Desk]) -> Desk:
    return desks()


def values(outcomes: list[asking.Outcome]) -> list[dict[str, Any]]:
    assert all(isinstance(one, Answered) for one in outcomes), outcomes
    return [one.value for one in outcomes if isinstance(one, Answered)]


def texts(p: Provider) -> list[str]:
    """Of the items that were answered by the provider."""
    return [item["text"] for item in p.items]


def claims(desk: Desk) -> int:
    ((count,),) = desk.sql("SELECT count(*) FROM llm_claims")
    return int(count)


# Buying


def test_an_answer_is_bought_once(desk: Desk, p: Provider) -> None:
    asker = desk.asker()
    first = asker.ask(packed(4), many(10))
    assert [one.bought for one in first if isinstance(one, Answered)] == [True] * 10
    assert sorted(len(call.items) for call in p.calls) == [2, 4, 4]
    assert sorted(desk.calls()) == [("first", "answered", 2), *[("first", "answered", 4)] * 2]
    ((cost, tokens),) = desk.sql("SELECT sum(cost), sum(input_tokens) FROM llm_calls")
    assert cost > 0
    assert tokens > 0
    assert claims(desk) == 0

    # Another worker, another packing, other neighbours, another order.
    again = desk.asker("there-1").ask(packed(3), [*many(3, start=20), *reversed(many(10))])
    assert values(again)[3:] == values(first)[::-1]
    assert [one.bought for one in again if isinstance(one, Answered)] == [True] * 3 + [False] * 10
    assert len(p.calls) == 4
    assert max(Counter(texts(p)).values()) == 1


def test_one_item_a_call_and_the_same_item_twice(desk: Desk, p: Provider) -> None:
    asker = desk.asker()
    twice = [*items("a", "b"), *items("a")]
    found = values(asker.ask(single(), twice))
    assert found[0] == found[2] != found[1]
    assert sorted(call.prompt for call in p.calls) == ["a", "b"]
    assert asker.known(single(), items("a")[0])
    assert not asker.known(single(), items("c")[0])
    assert asker.kept("post:reddit:r0", 1, single().prompt) == {"score": found[0]}
    assert asker.order("post:reddit:r0").set == 1
    assert asker.ask(single(), []) == []


def test_a_new_set_is_bought_anew(desk: Desk, p: Provider) -> None:
    asker = desk.asker()
    asker.ask(single(), items("a"))
    asker.ask(single(), items("a", set=2, reason="regenerate"))
    assert [reason for reason, _, _ in desk.calls()] == ["first", "regenerate"]


def test_several_calls_at_a_time(desks: Callable[..., Desk], p: Provider) -> None:
    free = threading.Event()
    p.script(provider.held(free), times=3)
    desk = desks(concurrency=3)
    asker = desk.asker()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asker.ask, single(), many(7))
        wait_for(lambda: len(p.calls) == 3)
        ((sent,),) = desk.sql("SELECT count(*) FROM llm_calls WHERE state = 'sent'")
        assert (sent, len(p.calls)) == (3, 3)
        free.set()
        assert len(values(asked.result(120))) == 7


def test_an_endpoint_that_does_not_count(
    desk: Desk, p: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Client.ask
    monkeypatch.setattr(
        Client, "ask", lambda *given: replace(ask(*given), input_tokens=0, output_tokens=0)
    )
    desk.asker().ask(packed(), many(4))
    ((took, gave, cost),) = desk.sql(
        "SELECT input_tokens, output_tokens, cost FROM llm_calls WHERE provider = %s",
        [desk.asker()._ledger.provider],
    )
    assert took > 20
    assert gave > 20
    assert cost > 0


def test_workers_of_other_data_folders_are_others(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = desk.asker("here-0")._ledger.owner
    assert desk.asker("here-0")._ledger.owner == here
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))
    assert desk.asker("here-0")._ledger.owner != here


# What passes


def test_a_storm_of_429(desks: Callable[..., Desk], p: Provider) -> None:
    p.script(*[provider.status(429, retry_after=0.05)] * 12, provider.status(503, retry_after=0.1))
    desk = desks(circuit_failures=2, tries=20)
    assert len(values(desk.asker().ask(packed(2), many(8)))) == 8
    states = Counter(state for _, state, _ in desk.calls())
    assert states == {"failed": 13, "answered": 4}
    assert not [f for f in p.verdict().findings if f.code == "retry_after_ignored"], p.verdict()
    ((cost,),) = desk.sql("SELECT sum(cost) FROM llm_calls WHERE state = 'failed'")
    assert cost == 0


def test_time_outs_and_dropped_connections_may_have_been_paid(
    desks: Callable[..., Desk], p: Provider
) -> None:
    free = threading.Event()
    p.script(provider.held(free), provider.lost(), provider.status(500))
    desk = desks(timeout_seconds=5.0, concurrency=1)
    assert len(values(desk.asker().ask(packed(), many(4)))) == 4
    free.set()
    rows = desk.sql(
        "SELECT state, cost > 0, cardinality(repeats), error FROM llm_calls"
        " WHERE provider = %s ORDER BY id",
        [desk.asker()._ledger.provider],
    )
    assert [row[:3] for row in rows] == [
        ("failed", True, 0),
        ("failed", True, 1),
        ("failed", False, 2),
        ("answered", True, 2),
    ]
    assert "gave no answer within" in rows[0][3]
    assert "ended the connection" in rows[1][3]
    assert "status 500" in rows[2][3]


def test_nobody_listens(desks: Callable[..., Desk]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        desk = desks(url=f"http://127.0.0.1:{free.getsockname()[1]}/v1", tries=3)
        asker = desk.asker()
        with pytest.raises(Retry, match=r"llm: .* cannot be reached: .* \(3 tries\)"):
            asker.ask(packed(), many(4))
    assert desk.calls() == [("first", "failed", 4)] * 3
    assert claims(desk) == 0


def test_the_circuit_opens_and_closes(desks: Callable[..., Desk], p: Provider) -> None:
    down = True
    p.judge = lambda call: provider.status(500) if down else None
    desk = desks(circuit_failures=3, circuit_seconds=600, tries=10)
    asker = desk.asker()
    with pytest.raises(Pause, match=r"circuit: .* did not answer \d+ calls in a row.*status 500"):
        asker.ask(single(), many(8))
    asked = len(p.calls)
    assert 3 <= asked <= 3 + desk.settings.llm.concurrency
    assert claims(desk) == 0
    with pytest.raises(Pause, match="circuit"):
        asker.ask(single(), many(8))
    assert len(p.calls) == asked

    desk.sql("UPDATE llm_providers SET open_until = clock_timestamp()")
    with pytest.raises(Pause, match="circuit"):
        asker.ask(single(), many(8))
    assert len(p.calls) == asked + 1  # half open: one is let through, and fails

    down = False
    desk.sql("UPDATE llm_providers SET open_until = clock_timestamp()")
    assert len(values(asker.ask(single(), many(8)))) == 8


# What is lacking in an answer


def test_a_broken_answer_is_mended_once(desk: Desk, p: Provider) -> None:
    p.script(provider.answer("I think that"))
    asker = desk.asker()
    assert len(values(asker.ask(single(), items("a")))) == 1
    p.script(provider.malformed(0.99))
    assert len(values(asker.ask(packed(), items("a", "b", "c", "d")))) == 4
    assert desk.calls() == [
        ("first", "answered", 1),
        ("repair", "answered", 1),
        ("first", "answered", 4),
        ("repair", "answered", 1),  # the three whole ones count
    ]
    said = p.calls[1].body["messages"]
    assert said[2] == {"role": "assistant", "content": "I think that"}
    assert "cannot be used: it is not JSON" in said[3]["content"]


def test_broken_twice_is_dead_and_only_that_item(desk: Desk, p: Provider) -> None:
    p.answer = lambda asked: {"score": 11 if "bad" in asked.item["text"] else 5, "why": "so"}
    found = desk.asker().ask(packed(), items("good", "bad", "fine"))
    assert [type(one) for one in found] == [Answered, Failed, Answered]
    assert isinstance(found[1], Failed)
    assert found[1].reason.startswith("InvalidAnswer: score: 11")
    assert json.loads(found[1].raw or "") == {"items": [{"n": 1, "score": 11, "why": "so"}]}
    assert desk.calls() == [("first", "answered", 3), ("repair", "answered", 1)]
    ((raw, error),) = desk.sql(
        "SELECT raw, error FROM llm_calls WHERE provider = %s AND reason = 'repair'",
        [desk.asker()._ledger.provider],
    )
    assert raw == found[1].raw
    assert error.startswith("InvalidAnswer")
    assert claims(desk) == 0


def test_fewer_than_asked_for(desk: Desk, p: Provider) -> None:
    p.script(
        provider.left_out(2, 4) & provider.unknown({"n": 9, "score": 1, "why": "x"}),
        provider.left_out(1),
    )
    found = values(desk.asker().ask(packed(), items("a", "b", "c", "d")))
    assert len({one["why"] for one in found}) == 4
    assert desk.calls() == [
        ("first", "answered", 4),
        ("rest", "answered", 2),
        ("rest", "answered", 1),
    ]


def test_what_is_always_left_out_is_dead(desk: Desk, p: Provider) -> None:
    p.judge = lambda call: provider.left_out(
        *(item["n"] for item in call.items if item["text"] == "b")
    )
    found = desk.asker().ask(packed(), items("a", "b", "c"))
    assert [type(one) for one in found] == [Answered, Failed, Answered]
    assert isinstance(found[1], Failed)
    assert found[1].reason.startswith("LeftOut: ")
    assert [count for _, _, count in desk.calls()] == [3, 1, 1]


def test_an_answer_cut_short(desk: Desk, p: Provider) -> None:
    # What is whole counts; the rest gets more room, then halves, then it is dead.
    p.judge = lambda call: provider.truncated(0.3) if len(call.items) > 1 else None
    asker = desk.asker()
    assert len(values(asker.ask(packed(), many(4)))) == 4
    counts = desk.calls()
    assert counts[0] == ("first", "answered", 4)
    assert {reason for reason, _, _ in counts[1:]} == {"room"}
    rooms = [call.body["max_tokens"] for call in p.calls]
    assert rooms[1] > 2 * rooms[0]

    p.judge = lambda call: provider.truncated(0.3)
    (dead,) = asker.ask(single(), items("long"))
    assert isinstance(dead, Failed)
    assert dead.reason.startswith("Truncated: ")
    assert dead.raw


def test_more_room_than_the_endpoint_gives(desk: Desk, p: Provider) -> None:
    most = 256 + 2 * 40

    def judged(call: Call) -> provider.Step:
        if call.body["max_tokens"] > most:
            return provider.status(400, message="too large", param="max_tokens")
        return provider.truncated(0.3)

    p.judge = judged
    (dead,) = desk.asker().ask(single(), items("long"))
    assert isinstance(dead, Failed) and "does not take max_tokens" in dead.reason
    p.judge = lambda call: provider.status(400, message="too large", param="max_tokens")
    with pytest.raises(Pause, match="does not take max_tokens"):
        desk.asker().ask(single(), items("short"))


def test_a_refused_call_is_split_to_find_the_guilty(desk: Desk, p: Provider) -> None:
    def judged(call: Call) -> provider.Step | None:
        return provider.status(400, message="no") if "poison" in call.text else None

    p.judge = judged
    found = desk.asker().ask(packed(8), items(*"abcde", "poison", *"gh"))
    assert [type(one) for one in found] == [Answered] * 5 + [Failed] + [Answered] * 2
    assert isinstance(found[5], Failed)
    assert found[5].reason == "Refused: status 400, bad_request: no"
    reasons = Counter((reason, state) for reason, state, _ in desk.calls())
    assert reasons == {
        ("first", "failed"): 1,
        ("split", "failed"): 3,
        ("split", "answered"): 3,
    }
    assert claims(desk) == 0


@pytest.mark.parametrize(
    ("step", "reason"),
    [(provider.refusal("I won't."), "Refusal: I won't."), (provider.filtered(), "Filtered: ")],
)
def test_a_refusal_is_of_one_item(desk: Desk, p: Provider, step: Any, reason: str) -> None:
    p.judge = lambda call: step if "nasty" in call.text else None
    found = desk.asker().ask(packed(), items("a", "nasty", "c"))
    assert [type(one) for one in found] == [Answered, Failed, Answered]
    assert isinstance(found[1], Failed)
    assert found[1].reason.startswith(reason)


# What a person has to see to


@pytest.mark.parametrize(
    ("code", "line"),
    [(401, "llm: the key for .* is missing"), (404, "or no model gpt-4.1-mini")],
)
def test_a_wrong_key_or_model_pauses(
    desks: Callable[..., Desk], p: Provider, code: int, line: str
) -> None:
    p.judge = lambda call: provider.status(code)
    desk = desks(concurrency=2)
    with pytest.raises(Pause, match=line):
        desk.asker().ask(single(), many(20))
    assert len(p.calls) <= 2
    assert {state for _, state, _ in desk.calls()} == {"failed"}
    assert claims(desk) == 0


def test_a_budget_pauses_and_keeps_what_is_bought(desks: Callable[..., Desk], p: Provider) -> None:
    desk = desks(max_cost=0.001, concurrency=1, session="s1")
    asker = desk.asker()
    with pytest.raises(Pause, match=r"budget: .* spent in this session, .*; raise --max-cost"):
        asker.ask(packed(2), many(40))
    bought = len(p.items)
    assert 0 < bought < 40
    ((spent,),) = desk.sql("SELECT spent FROM llm_spent WHERE scope = 'session s1'")
    assert Decimal(0) < spent <= Decimal("0.001")
    assert values(asker.ask(packed(2), many(bought)))
    assert len(p.items) == bought


def test_what_open_refuses(postgres: str) -> None:
    def opened(url: str | None, **llm: Any) -> None:
        asking.open(Context(settings_of(postgres, url, **llm), STAGE))

    with pytest.raises(ConfigError, match=r"llm\.local_only: 192\.0\.2\.1 is beyond"):
        opened("http://192.0.2.1/v1", local_only=True)
    with pytest.raises(ConfigError, match=r"llm\.daily_budget: no price is known for secret-7b"):
        opened("http://127.0.0.1/v1", model="secret-7b", daily_budget=1.0)
    with pytest.raises(ConfigError, match=r"llm\.timeout_seconds: 200 s is more than half"):
        opened("http://127.0.0.1/v1", timeout_seconds=200)
    with pytest.raises(ConfigError, match=r"llm\.base_url: write an address"):
        opened("nowhere")


def test_the_embedded_model_says_so(postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    asker = asking.open(Context(settings_of(postgres, None), STAGE))
    assert asker.model == "smollm2-135m"
    assert "what it says is for trying out" in caplog.text
    asker.close()


# Others, and ends


def test_two_workers_never_buy_the_same(desk: Desk, p: Provider) -> None:
    free = threading.Event()
    p.script(provider.held(free), times=2)
    one, two = desk.asker("here-0"), desk.asker("there-0")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(one.ask, packed(4), many(8))
        wait_for(lambda: len(p.calls) == 2)
        with pytest.raises(Retry, match="another worker is asking for 8 of these items"):
            two.ask(packed(4), [*many(8), *many(4, start=8)])
        free.set()
        mine = asked.result(120)
    theirs = two.ask(packed(4), [*many(8), *many(4, start=8)])
    assert values(theirs)[:8] == values(mine)
    assert not any(one.bought for one in theirs if isinstance(one, Answered))
    assert Counter(texts(p)) == Counter(f"text {number}" for number in range(12))


def test_two_workers_at_once(desk: Desk, p: Provider) -> None:
    p.seconds = 0.02

    def all_of(worker: str, start: int) -> list[dict[str, Any]]:
        asker = desk.asker(worker)
        wanted = many(40)
        wanted = wanted[start:] + wanted[:start]

        def whole() -> list[dict[str, Any]]:
            try:
                return values(asker.ask(packed(3), wanted))
            except Retry:
                return []

        return wait_for(whole, timeout=200)

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(all_of, f"w-{n}", 13 * n) for n in range(3)]
        assert all(len(one.result(200)) == 40 for one in found)
    assert max(Counter(texts(p)).values()) == 1


def test_what_failed_is_not_paid_again_when_the_batch_comes_back(desk: Desk, p: Provider) -> None:
    p.answer = lambda asked: {"score": 11 if "bad" in asked.item["text"] else 5, "why": "so"}
    free = threading.Event()
    p.script(provider.held(free))
    one, two = desk.asker("here-0"), desk.asker("there-0")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(one.ask, packed(), items("theirs"))
        wait_for(lambda: len(p.calls) == 1)
        batch = items("theirs", "bad")
        with pytest.raises(Retry, match="another worker"):
            two.ask(packed(), batch)
        free.set()
        asked.result(120)
    assert len(p.calls) == 3
    found = two.ask(packed(), batch)
    assert [type(one) for one in found] == [Answered, Failed]
    assert len(p.calls) == 3
    two.ask(packed(), batch)  # given to the stage once; asked for again, it is asked
    assert len(p.calls) == 5


def test_stopping_while_it_waits(
    desks: Callable[..., Desk], p: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headrace.llm.asking")
    stop = threading.Event()
    asker = desks(requests_per_minute=2).asker(stopping=stop.is_set)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asker.ask, single(), many(5))
        wait_for(lambda: "for the rate limit (2 of 2 a minute)" in caplog.text)
        stop.set()
        with pytest.raises(Retry, match="llm: stopping"):
            asked.result(120)
    assert len(p.calls) == 2
    lines = [r.getMessage() for r in caplog.records if "rate limit" in r.getMessage()]
    assert all(line.startswith("waiting ") for line in lines)


def test_a_call_in_flight_is_waited_for_when_stopping(desk: Desk, p: Provider) -> None:
    free, stop = threading.Event(), threading.Event()
    p.script(provider.held(free), times=4)
    asker = desk.asker(stopping=stop.is_set)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asker.ask, single(), many(9))
        wait_for(lambda: len(p.calls) == 4)
        stop.set()
        free.set()
        with pytest.raises(Retry, match="stopping"):
            asked.result(120)
    assert len(p.calls) == 4
    assert claims(desk) == 0
    stop.clear()
    assert len(values(asker.ask(single(), many(9)))) == 9
    assert len(p.calls) == 9


def test_an_ask_that_takes_too_long_goes_on_later(desk: Desk, p: Provider) -> None:
    p.seconds = 0.8
    asker = desk.asker()
    asker._seconds = 1.5
    rounds = 0

    def whole() -> bool:
        nonlocal rounds
        rounds += 1
        try:
            return len(values(asker.ask(single(), many(12)))) == 12
        except Onward:  # nothing to warn of
            return False

    wait_for(whole, timeout=240)
    assert rounds > 1
    assert len(p.calls) == 12


def test_what_an_answer_lacked_is_known_to_the_next_ask(desk: Desk, p: Provider) -> None:
    p.seconds = 0.6
    asker = desk.asker()
    asker._seconds = 0.5  # not even two calls

    def outcomes(task: asking.Task, asked: list[asking.Item]) -> list[asking.Outcome]:
        try:
            return asker.ask(task, asked)
        except Retry:
            return []

    p.answer = lambda asked: {"score": 11, "why": "so"}
    (dead,) = wait_for(lambda: outcomes(single(), items("broken")), timeout=240)
    assert isinstance(dead, Failed) and dead.reason.startswith("InvalidAnswer: ")
    assert len(p.calls) == 2

    p.judge = lambda call: provider.truncated(0.1)
    found = wait_for(lambda: outcomes(packed(), many(3)), timeout=240)
    assert all(isinstance(one, Failed) and one.reason.startswith("Truncated") for one in found)
    assert [len(call.items) for call in p.calls[2:]] == [3, 1, 1, 1]
    assert not any(vars(asker._past).values())


def test_what_takes_too_long_together_is_asked_for_alone(
    desks: Callable[..., Desk], p: Provider
) -> None:
    p.judge = lambda call: provider.slow(3.0) if len(call.items) > 1 else None
    asker = desks(timeout_seconds=2.0).asker()
    asker._seconds = 1.9

    def whole() -> bool:
        try:
            return len(values(asker.ask(packed(), many(3)))) == 3
        except Retry:
            return False

    wait_for(whole, timeout=240)


def test_why_an_ask_was_in_vain(desks: Callable[..., Desk], p: Provider) -> None:
    asker = desks(requests_per_minute=2).asker()
    asker._seconds = 2.0

    def said() -> str:
        with pytest.raises(Retry) as raised:
            asker.ask(single(), many(50))
        return str(raised.value)

    wait_for(lambda: said() == "llm: waiting for the rate limit (2 of 2 a minute)")


def test_a_mistake_of_ours_is_raised_and_nothing_stays_claimed(desk: Desk) -> None:
    with pytest.raises(ValueError, match=r"prompt post\.v1: 'text' is undefined"):
        desk.asker().ask(single(), [asking.Item("post:reddit:r0", "score", {"other": 1})])
    assert claims(desk) == 0


_CHILD = """
import sys
from headrace import config
from headrace.llm import asking
from headrace.stream.stage import Context
from tests.llm.desk import STAGE, many, packed
asker = asking.open(Context(config.load(), STAGE, worker="here-0"))
asker.ask(packed(2), many(int(sys.argv[1])))
print("done", flush=True)
"""


@pytest.mark.crash
def test_a_kill_costs_the_calls_in_flight_and_they_are_listed(desk: Desk, p: Provider) -> None:
    free = threading.Event()
    p.script(*[provider.Step()] * 5, *[provider.held(free)] * 4)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, "40"],
        env={**os.environ, **config.as_environment(desk.settings)},
        cwd=CLONE,
    )
    try:
        asker = desk.asker()

        def four_in_flight() -> bool:
            states = Counter(state for _, state, _ in desk.calls())
            return states == {"answered": 5, "sent": 4} and len(p.calls) == 9

        wait_for(four_in_flight, timeout=240)
    finally:
        child.kill()
        child.wait()
    free.set()
    flying = [item["text"] for call in p.calls[5:9] for item in call.items]
    assert len(values(asker.ask(packed(3), many(40)))) == 40
    rows = desk.sql(
        "SELECT id, state, repeats, items FROM llm_calls WHERE provider = %s ORDER BY id",
        [asker._ledger.provider],
    )
    lost = [row[0] for row in rows if row[1] == "lost"]
    assert len(lost) == 4
    assert sorted(number for row in rows for number in row[2]) == sorted(lost)
    assert all(row[3] == 2 for row in rows if row[2])
    expected = Counter(f"text {number}" for number in range(40)) + Counter(flying)
    wait_for(lambda: Counter(texts(p)) == expected)


# What leaves the machine


def test_nothing_that_names_a_person_is_sent(desks: Callable[..., Desk], p: Provider) -> None:
    secrets = ["joe.doe@example.org", "+49 170 1234567", "@joe_doe", "Anna Müller"]
    desk = desks(redact=True, redact_names=["Anna Müller"])
    asker = desk.asker()
    p.script(provider.malformed(0.2))  # its repair shows it again
    asked = items(*(f"ask {one} or {one}\nnow" for one in secrets), "joe.doe@example.org again")
    values(asker.ask(packed(5), asked))
    p.script(provider.status(429, retry_after=0.05))
    values(asker.ask(single(), items(" and ".join(secrets))))
    sent = "\n".join(json.dumps(call.body, ensure_ascii=False) for call in p.calls)
    for one in [*secrets, "example.org", "1234567", "joe", "Müller"]:
        assert one not in sent
    shown = [item["text"] for item in p.calls[0].items]
    assert shown == [
        "ask [email 1] or [email 1]\nnow",
        "ask [phone 1] or [phone 1]\nnow",
        "ask [user 1] or [user 1]\nnow",
        "ask [name 1] or [name 1]\nnow",
        "[email 1] again",
    ]


def test_nothing_is_held_of_what_was_asked(desk: Desk, p: Provider) -> None:
    p.answer = lambda asked: {"score": 11 if "bad" in asked.item["text"] else 5, "why": "so"}
    asker = desk.asker()
    for start in range(0, 200, 40):
        texts = [f"{'bad' if n == start else 'text'} {n}" for n in range(start, start + 40)]
        found = asker.ask(packed(20), items(*texts, start=start))
        assert Counter(type(one) for one in found) == {Answered: 39, Failed: 1}
    ledger = asker._ledger
    held = [*vars(asker._past).values(), ledger._items, ledger._calls, ledger._unwritten]
    assert not any(held)
    assert claims(desk) == 0
