"""What is bought once is never bought again, whoever dies when, and the sums are the calls'."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace import servers
from headrace.errors import Pause, Retry
from headrace.llm.ledger import Admitted, Ledger, Limits, Order, Wait
from headrace.stores import migrate
from tests.llm.books import Books, admitted, buy, key_of, plan, reply
from tests.stores.conftest import Database
from tests.world import wait_for


@dataclass(frozen=True)
class Named:
    name: str
    version: int


def test_an_answer_is_kept_by_item_and_its_call_tells_what_it_cost(books: Books) -> None:
    ledger = books.ledger()
    items = books.items("a", "b", "c", "d")
    call = buy(ledger, items)
    assert ledger.answers([item[0] for item in items]) == {
        item[0]: {"of": item[1]} for item in items
    }
    row = books.sql(
        "SELECT stage, provider, model, prompt, version, state, items, input_tokens, output_tokens,"
        " tokens, cost, worker, seconds FROM llm_calls WHERE id = %s",
        call,
    )
    assert row == [
        ("scores", "embedded", "m", "scores", 3, "answered", 4, 90, 30, 120, Decimal("0.08"),
         "scores/h-0", 1.5)
    ]  # fmt: skip
    shares = books.sql("SELECT cost, tokens, call FROM llm_answers")
    assert shares == [(Decimal("0.02"), 30, call)] * 4
    assert books.sql("SELECT * FROM llm_claims") == []
    assert books.balanced()
    assert books.sql("SELECT spent FROM llm_spent ORDER BY scope") == [(Decimal("0.08"),)] * 2


def test_what_was_answered_meanwhile_is_handed_over_instead_of_claimed(books: Books) -> None:
    one, other = books.ledger("h-0"), books.ledger("h-1")
    items = books.items("a", "b")
    buy(one, items[:1])
    claimed = other.claim(items)
    assert claimed.answered == {items[0][0]: {"of": "post:reddit:a"}}
    assert claimed.mine == {items[1][0]: None}
    assert not claimed.theirs


def test_what_one_is_buying_no_other_may(books: Books) -> None:
    one, other = books.ledger("h-0"), books.ledger("h-1")
    items = books.items("a", "b")
    one.claim(items[:1])
    claimed = other.claim(items)
    assert (claimed.theirs, set(claimed.mine)) == ({items[0][0]}, {items[1][0]})
    one.release([items[0][0]])
    assert set(other.claim(items).mine) == {items[0][0], items[1][0]}


def test_a_killed_workers_successor_goes_on_at_once_and_names_what_it_repeats(books: Books) -> None:
    items = books.items("a", "b")
    first = books.ledger("h-0")
    first.claim(items)
    call = admitted(first.admit(plan(items)))
    assert books.states() == ["sent"]
    first.close()  # as kill -9 leaves it

    successor = books.ledger("h-0")
    assert successor.claim(items).mine == {items[0][0]: call, items[1][0]: call}
    assert books.states() == ["lost"]
    successor.close()  # killed again, before it sent anything: it is still to be repeated
    third = books.ledger("h-0")
    assert third.claim(items).mine == {items[0][0]: call, items[1][0]: call}
    again = buy(third, items)
    assert books.sql("SELECT id, repeats, state FROM llm_calls ORDER BY id") == [
        (call, [], "lost"),
        (again, [call], "answered"),
    ]
    # The lost call may have been billed: it counts what was reserved for it.
    assert books.sql("SELECT sum(cost) FROM llm_calls") == [(Decimal("0.18"),)]
    assert books.balanced()


def test_whoever_starts_in_a_dead_workers_place_frees_what_it_held_for_all(books: Books) -> None:
    dead, other = books.ledger("h-0"), books.ledger("h-1")
    items = books.items("a", "b")
    keys = [item[0] for item in items]
    dead.claim(items)
    call = admitted(dead.admit(plan(items)))
    assert other.claim(items).theirs == set(keys)
    books.ledger("h-2").succeed()
    assert other.claim(items).theirs == set(keys)
    books.ledger("h-0").succeed()
    assert other.claim(items).mine == dict.fromkeys(keys, call)
    assert books.states() == ["lost"]


def test_another_worker_takes_over_when_the_lease_has_run_out(books: Books) -> None:
    slow, quick = books.ledger("h-0"), books.ledger("h-1")
    items = books.items("a")
    slow.claim(items)
    call = admitted(slow.admit(plan(items)))
    assert quick.claim(items).theirs == {items[0][0]}
    books.lapse()
    assert quick.claim(items).mine == {items[0][0]: call}
    # The slow one is told so before it buys anything more …
    with pytest.raises(Retry, match="taken over"):
        slow.admit(plan(items))
    again = admitted(quick.admit(plan(items, repeats={call})))
    # … and what it has bought counts: the first answer stands.
    slow.settle(call, reply("0.05"), {items[0][0]: {"by": "slow"}})
    quick.settle(again, reply("0.05"), {items[0][0]: {"by": "quick"}})
    assert slow.answers([items[0][0]]) == {items[0][0]: {"by": "slow"}}
    assert books.states() == ["answered", "answered"]
    assert books.balanced()


def test_leases_of_a_long_ask_are_renewed(books: Books) -> None:
    ledger = books.ledger()
    first, later = books.items("a"), books.items("b")
    ledger.claim([*first, *later])
    books.lapse()
    ledger._renewed -= 1_000  # it was long ago
    ledger.admit(plan(first))
    assert books.ledger("h-1").claim([*first, *later]).theirs == {first[0][0], later[0][0]}


def test_a_claim_outlives_the_longest_call(books: Books) -> None:
    ledger = books.ledger(llm__timeout_seconds=120)
    items = books.items("a")
    ledger.claim(items)
    books.sql("UPDATE llm_claims SET until = now() + interval '121 seconds'")
    admitted(ledger.admit(plan(items)))
    assert books.sql("SELECT until > now() + interval '140 seconds' FROM llm_claims") == [(True,)]


def test_calls_of_a_clock_that_was_set_back_hold_nobody_up(books: Books) -> None:
    ledger = books.ledger(llm__requests_per_minute=1)
    items = books.items("a")
    ledger.claim(items)
    admitted(ledger.admit(plan(items)))
    assert isinstance(ledger.admit(plan(items)), Wait)
    books.sql("UPDATE llm_calls SET sent_at = now() + interval '1 hour'")
    admitted(ledger.admit(plan(items)))


def test_a_call_that_brought_nothing_gives_back_what_was_reserved(books: Books) -> None:
    ledger = books.ledger()
    items = books.items("a")
    ledger.claim(items)
    ledger.unsent(admitted(ledger.admit(plan(items))), "503 from the provider")
    assert books.sql("SELECT state, cost, tokens, error FROM llm_calls") == [
        ("failed", 0, 0, "503 from the provider")
    ]
    # A time-out may have been billed.
    ledger.unsent(admitted(ledger.admit(plan(items))), "timed out", billed=True)
    assert books.sql("SELECT state, cost FROM llm_calls ORDER BY id DESC LIMIT 1") == [
        ("failed", Decimal("0.10"))
    ]
    assert ledger.claim(items).mine == {items[0][0]: None}
    assert books.balanced()


def test_what_cannot_be_used_is_kept_as_it_came(books: Books) -> None:
    ledger = books.ledger()
    good, bad = books.items("a", "b")
    ledger.claim([good, bad])
    call = admitted(ledger.admit(plan([good, bad])))
    ledger.settle(call, reply(), {good[0]: {"x": 1}}, {bad[0]: "no JSON"}, raw="so \0 what\ud83d")
    assert books.sql("SELECT state, error, raw, records FROM llm_calls") == [
        ("answered", "no JSON", "so  what?", ["post:reddit:a", "post:reddit:b"])
    ]
    assert set(ledger.answers([good[0], bad[0]])) == {good[0]}
    assert books.sql("SELECT * FROM llm_claims") == []


def test_text_that_postgresql_cannot_hold_is_no_reason_to_lose_an_answer(books: Books) -> None:
    ledger = books.ledger()
    items = books.items("a")
    ledger.claim(items)
    call = admitted(ledger.admit(plan(items)))
    value = {"te\0xt": ["a\0b", {"c": r"\u0000"}], "n": 1}
    ledger.settle(call, reply(), {items[0][0]: value})
    assert ledger.answers([items[0][0]]) == {
        items[0][0]: {"text": ["ab", {"c": r"\u0000"}], "n": 1}
    }


def test_answers_of_a_deleted_record_are_not_kept(books: Books) -> None:
    ledger = books.ledger()
    items = books.items("a", "b")
    ledger.claim(items)
    call = admitted(ledger.admit(plan(items)))
    books.database.write([books.database.raw("a", 1, deleted=True)])
    ledger.settle(call, reply(), {item[0]: {"x": 1} for item in items})
    assert set(ledger.answers([item[0] for item in items])) == {items[1][0]}

    # Nor is what it says of them.
    ledger.claim(items[:1])
    for end in ("settle", "unsent"):
        call = admitted(ledger.admit(plan(items[:1])))
        if end == "settle":
            ledger.settle(call, reply(), {}, {items[0][0]: "no JSON: its text"}, raw="its text")
            ledger.claim(items[:1])
        else:
            ledger.unsent(call, "status 400: its text")
        assert books.sql("SELECT error, raw, records FROM llm_calls WHERE id = %s", call) == [
            (None, None, None)
        ]


def test_a_set_goes_on_with_whichever_version_of_its_prompt(books: Books) -> None:
    ledger = books.ledger()
    for name, version, part in (("p", 1, "x"), ("p", 2, "y"), ("p", 1, "y"), ("q", 2, "x")):
        item = (key_of(f"{name}{version}{part}"), "community:reddit:a", 1, part)
        ledger.claim([item])
        call = admitted(ledger.admit(plan([item], prompt=name, version=version)))
        ledger.settle(call, reply(), {item[0]: {"said": f"{name}{version}{part}"}})
    assert ledger.kept("community:reddit:a", 1, Named("p", 2)) == {
        "x": {"said": "p1x"},
        "y": {"said": "p1y"},
    }
    assert ledger.kept("community:reddit:a", 2, Named("p", 2)) == {}
    assert ledger.kept("community:reddit:b", 1, Named("p", 2)) == {}


def test_a_set_is_raised_once_for_each_who_asks(books: Books) -> None:
    record = "community:reddit:a"
    ledgers = [books.ledger(f"h-{n}") for n in range(4)]
    assert ledgers[0].order(record) == Order(1, [], "")
    numbers: list[int] = []
    begin = threading.Barrier(4)

    def raise_it(ledger: Ledger) -> None:
        begin.wait(30)
        numbers.append(ledger.raise_set(record, [{"id": ledger.owner}], "asked for"))

    threads = [threading.Thread(target=raise_it, args=[ledger]) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == [2, 3, 4, 5]
    order = ledgers[0].order(record)
    assert (order.set, order.reason, len(order.keep)) == (5, "asked for", 1)


@pytest.mark.parametrize("flag", ["llm__daily_budget", "llm__max_cost"])
def test_a_budget_is_kept_to_the_cent_however_many_reserve_at_once(books: Books, flag: str) -> None:
    told: list[str] = []
    begin = threading.Barrier(6)

    def spend(ledger: Ledger) -> None:
        begin.wait(30)
        while True:
            items = [(key_of(f"{ledger.owner} {len(told)}"), "post:reddit:a", 1, "all")]
            ledger.claim(items)
            try:
                admitted(ledger.admit(plan(items)))
            except Pause as pause:
                told.append(pause.reason)
                return

    threads = [
        threading.Thread(target=spend, args=[books.ledger(f"h-{n}", f"stage{n}", **{flag: 1.05})])
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert books.sql("SELECT count(*), sum(cost) FROM llm_calls") == [(10, Decimal("1.00"))]
    assert books.balanced()
    if flag == "llm__daily_budget":
        wanted = (
            "budget: $1.00 of $1.05 spent today, and the next call may cost $0.10; goes on"
            " tomorrow 00:00 UTC, or started again with a higher llm.daily_budget"
        )
    else:
        wanted = (
            "budget: $1.00 of $1.05 spent in this session, and the next call may cost $0.10; raise"
            " --max-cost"
        )
    assert set(told) == {wanted}
    assert books.sql("SELECT count(*), max(spent) FROM llm_refusals") == [(6, Decimal("1.00"))]


def test_a_budget_is_refilled_by_what_calls_did_not_cost(books: Books) -> None:
    ledger = books.ledger(llm__daily_budget=0.15)
    one, two = books.items("a"), books.items("b")
    ledger.claim([*one, *two])
    call = admitted(ledger.admit(plan(one)))
    with pytest.raises(Pause, match="budget"):
        ledger.admit(plan(two))
    ledger.settle(call, reply("0.02"), {one[0][0]: {}})
    admitted(ledger.admit(plan(two)))
    assert books.sql("SELECT * FROM llm_refusals") == []
    # What costs nothing, or nobody knows what, goes on.
    admitted(ledger.admit(plan(two, cost=None)))
    admitted(ledger.admit(plan(two, cost=Decimal(0))))
    # Yesterday's calls are yesterday's.
    with pytest.raises(Pause, match="budget"):
        ledger.admit(plan(two))
    books.sql("UPDATE llm_spent SET scope = 'day 2020-01-01' WHERE scope LIKE 'day%%'")
    admitted(ledger.admit(plan(two)))


def test_a_provider_that_is_down_is_left_alone_and_then_tried_by_one(books: Books) -> None:
    flags = {"llm__circuit_failures": 3, "llm__circuit_seconds": 1_000}
    one, other = books.ledger("h-0", **flags), books.ledger("h-1", **flags)
    mine, theirs = books.items("a"), books.items("b")
    one.claim(mine)
    other.claim(theirs)
    for down in (True, True, False, True):  # 429 and the like say nothing of it
        one.unsent(admitted(one.admit(plan(mine))), "cannot be reached", down=down)
    with pytest.raises(Pause, match="circuit: embedded did not answer 3 calls in a row, the last"):
        other.admit(plan(theirs))
    books.sql("UPDATE llm_providers SET open_until = now()")
    probe = admitted(one.admit(plan(mine)))
    answer = other.admit(plan(theirs))
    assert isinstance(answer, Wait) and "one call tries whether embedded is back" in answer.why
    one.unsent(probe, "cannot be reached")  # open again, at once
    with pytest.raises(Pause, match="circuit"):
        other.admit(plan(theirs))
    books.sql("UPDATE llm_providers SET open_until = now()")
    probe = admitted(other.admit(plan(theirs)))
    other.settle(probe, reply(), {theirs[0][0]: {}})
    admitted(one.admit(plan(mine)))


def test_a_hold_is_everybodys(books: Books) -> None:
    one, other = books.ledger("h-0", "scores"), books.ledger("h-0", "personas")
    mine, theirs = books.items("a"), books.items("b")
    one.claim(mine)
    other.claim(theirs)
    one.unsent(admitted(one.admit(plan(mine))), "429", 7.5, down=False)
    answer = other.admit(plan(theirs))
    assert isinstance(answer, Wait) and answer.why == "since embedded asks to"
    assert 6.5 < answer.seconds < 8
    books.sql("UPDATE llm_providers SET hold_until = now() + interval '90 minutes'")
    with pytest.raises(Pause, match=r"llm: embedded asks to wait until \d\d:\d\d UTC"):
        other.admit(plan(theirs))
    books.sql("UPDATE llm_providers SET hold_until = NULL")
    books.sql("TRUNCATE llm_turns")
    spent = Limits(remaining_requests=0, reset_requests=9.0, remaining_tokens=10)
    other.settle(admitted(other.admit(plan(theirs))), reply(limits=spent), {theirs[0][0]: {}})
    answer = one.admit(plan(mine))
    assert isinstance(answer, Wait) and 8 < answer.seconds < 9.5


def test_a_lost_connection_is_made_anew(books: Books) -> None:
    ledger = books.ledger()
    items = books.items("a")
    ledger.claim(items)
    call = admitted(ledger.admit(plan(items)))
    assert ledger._connection is not None
    books.sql("SELECT pg_terminate_backend(%s)", ledger._connection.info.backend_pid)
    ledger.settle(call, reply(), {items[0][0]: {"x": 1}})
    assert ledger.answers([items[0][0]]) == {items[0][0]: {"x": 1}}
    assert books.balanced()


def test_an_answer_survives_an_outage_of_postgresql(
    local_server: Callable[..., servers.LocalServer], databases: Callable[..., Database]
) -> None:
    server = local_server("postgres")
    from headrace import config

    flags = {"project": "outage", "postgres.dsn": str(server.address)}
    own = config.load(flags)
    migrate.upgrade(own)
    ledger = Ledger(own, "scores", "h-0", patience=0.3)
    items = [(key_of("a"), "post:reddit:a", 1, "all")]
    ledger.claim(items)
    call = admitted(ledger.admit(plan(items)))
    server.kill()
    with pytest.raises(Retry):
        ledger.settle(call, reply(), {items[0][0]: {"x": 1}})
    with pytest.raises(Retry):
        ledger.claim(items)
    server.start()

    def answers() -> dict[bytes, dict[str, object]]:
        try:
            return ledger.answers([items[0][0]])
        except Retry:
            return {}

    assert wait_for(answers) == {items[0][0]: {"x": 1}}
    with psycopg.connect(str(server.address)) as connection:
        states = connection.execute("SELECT state, cost FROM outage.llm_calls").fetchall()
    assert states == [("answered", Decimal("0.08"))]
    ledger.close()


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10**6), workers=st.integers(2, 4))
def test_in_any_order_nothing_is_bought_twice(database: Database, seed: int, workers: int) -> None:
    """Workers claim, ask, settle, die and come back in any order, leases run out meanwhile."""
    chance = random.Random(seed)
    books = Books(database)
    items = books.items(*(f"i{n}" for n in range(12)))
    by_key = {item[0]: item for item in items}
    ledgers = [books.ledger(f"h-{n}") for n in range(workers)]
    mine: list[dict[bytes, int | None]] = [{} for _ in ledgers]
    flying: list[dict[int, list[bytes]]] = [{} for _ in ledgers]

    def answered() -> set[bytes]:
        return {bytes(key) for (key,) in books.sql("SELECT key FROM llm_answers")}

    def step(n: int, what: str) -> None:
        ledger = ledgers[n]
        busy = {key for keys in flying[n].values() for key in keys}
        if what == "claim":
            some = [item for item in chance.sample(items, 5) if item[0] not in busy]
            mine[n].update(ledger.claim(some).mine)
        elif what == "ask" and (free := sorted(set(mine[n]) - busy)):
            keys = chance.sample(free, min(len(free), 3))
            repeats = {call for key in keys if (call := mine[n][key]) is not None}
            before = answered()
            try:
                call = ledger.admit(plan([by_key[key] for key in keys], repeats=repeats))
            except Retry:  # taken over
                mine[n] = {}
                return
            assert isinstance(call, Admitted)
            assert not before & set(keys), "an answer would have been bought again"
            flying[n][call.call] = keys
        elif what == "settle" and flying[n]:
            call, keys = flying[n].popitem()
            ledger.settle(call, reply(), {key: {"call": call} for key in keys})
            for key in keys:
                mine[n].pop(key, None)
        elif what == "unsent" and flying[n]:
            ledger.unsent(flying[n].popitem()[0], "503", billed=chance.random() < 0.3, down=False)
        elif what == "release" and (free := sorted(set(mine[n]) - busy)):
            ledger.release(free)
            mine[n] = {key: call for key, call in mine[n].items() if key in busy}
        elif what == "kill":
            ledger.close()
            ledgers[n] = books.ledger(f"h-{n}")
            mine[n], flying[n] = {}, {}
        elif what == "lapse":
            books.lapse()

    words = ["claim", "ask", "settle", "unsent", "release", "kill", "lapse"]
    for _ in range(60):
        what = chance.choices(words, [6, 8, 5, 1, 1, 1, 2])[0]
        step(chance.randrange(workers), what)
    assert books.balanced()
    for n in range(workers):  # what is under way comes to its end
        while flying[n]:
            step(n, "settle")
    books.lapse()
    left = ledgers[0].claim(items)
    if left.mine:
        buy_left = [by_key[key] for key in left.mine]
        repeats = {call for call in left.mine.values() if call is not None}
        call = admitted(ledgers[0].admit(plan(buy_left, repeats=repeats)))
        ledgers[0].settle(call, reply(), {item[0]: {"call": call} for item in buy_left})
    assert answered() == set(by_key)
    assert books.balanced()
    assert books.sql("SELECT * FROM llm_claims") == []
    # Every call that may have been paid for in vain is told: lost, or answered twice after a lease
    # ran out under a worker that lived on.
    ((sent,),) = books.sql("SELECT count(*) FROM llm_calls WHERE state = 'sent'")
    assert sent == 0
    books.close()
