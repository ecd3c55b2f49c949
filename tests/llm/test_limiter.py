"""One limit for all workers: never more than it allows in any window, and hardly less."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from headrace.config import Settings
from headrace.llm.ledger import Admitted, Ledger, Wait
from headrace.stores import postgres
from tests.llm.books import Books, admitted, key_of, plan, reply

WINDOW = 3.0
MARGIN = 0.02
NEVER = -1.0
TOGETHER = 4  # threads of a worker would take turns the same way


def work(settings: Settings, number: int, rounds: int, stage: str, begin: Barrier) -> None:
    """One process: as many calls at once as a worker has threads, each waits as it is told. Each
    call notes how much later than it was told it got through (that is the machine's, not the
    limit's), or that it never had to wait: nobody wanted that slot sooner."""
    ledger = Ledger(settings, stage, f"h-{number}", window=WINDOW, margin=MARGIN)
    due = [(0.0, key_of(f"{stage} {number} {turn}")) for turn in range(TOGETHER)]
    late: dict[bytes, float] = {}
    made = 0
    ledger.answers([b"nobody"])  # connected
    begin.wait(300)
    while made < rounds:
        due.sort()
        at, key = due.pop(0)
        time.sleep(max(at - time.monotonic(), 0))
        item = (key, "post:reddit:a", 1, "all")
        if key not in ledger._items:
            ledger.claim([item])
        answer = ledger.admit(plan([item], input_tokens=60, output_tokens=40, cost=None))
        if at:
            late[key] = late.get(key, 0.0) + time.monotonic() - at
        if isinstance(answer, Wait):
            due.append((time.monotonic() + answer.seconds, key))
            continue
        made += 1
        answered = reply(None, input_tokens=55, output_tokens=5, seconds=late.get(key, NEVER))
        ledger.settle(answer.call, answered, {key: {}})
        due.append((0.0, key_of(f"{stage} {number} {made} more")))
    ledger.close()


def run(books: Books, *counts: tuple[str, int], **flags: Any) -> None:
    """Processes of (stage, calls)."""
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(len(counts))
    processes = [
        context.Process(target=work, args=(books.settings(**flags), n, rounds, stage, begin))
        for n, (stage, rounds) in enumerate(counts)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(300)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def times(books: Books, stage: str = "%") -> list[float]:
    rows = books.sql(
        "SELECT extract(epoch FROM sent_at)::float8 FROM llm_calls WHERE stage LIKE %s"
        " ORDER BY sent_at",
        stage,
    )
    return [at for (at,) in rows]


def spans(sent: Sequence[float], limit: int) -> list[float]:
    """Seconds from each call to the one that is the first too many for one window with it."""
    return [later - first for first, later in zip(sent, sent[limit:], strict=False)]


def test_four_processes_keep_the_limit_and_use_it(books: Books) -> None:
    limit = 60
    run(books, *[("scores", 60)] * 4, llm__requests_per_minute=limit)
    sent = times(books)
    assert len(sent) == 240
    found = spans(sent, limit)
    # A window is a little longer than the provider's own: calls take their time to it.
    assert min(found) >= WINDOW * (1 + MARGIN) - 0.001
    # So often a slot of the window comes round: what is left of 100 % nobody used.
    late = [seconds for (seconds,) in books.sql("SELECT seconds FROM llm_calls ORDER BY sent_at")]
    rounds = [span - own for span, own in zip(found, late[limit:], strict=True) if own != NEVER]
    assert rounds
    assert WINDOW / (sum(rounds) / len(rounds)) > 0.95


def test_tokens_are_reserved_by_estimate_and_settled_by_what_was_used(books: Books) -> None:
    run(books, ("scores", 20), ("scores", 20), llm__tokens_per_minute=1_000)
    rows = books.sql(
        "SELECT extract(epoch FROM sent_at)::float8, tokens FROM llm_calls ORDER BY sent_at"
    )
    assert len(rows) == 40
    assert {tokens for _, tokens in rows} == {60}
    inside = [
        sum(tokens for later, tokens in rows if at <= later < at + WINDOW) for at, _ in rows[:-1]
    ]
    assert max(inside) <= 1_000
    # Estimates (100 each) would have let ten go in a window: what calls really took leaves room.
    assert max(inside) > 10 * 60


def test_a_share_caps_its_own_group_alone(books: Books) -> None:
    flags: dict[str, Any] = {"llm__requests_per_minute": 8, "llm__shares": {"scores": 0.25}}
    scores = [books.ledger(f"h-{n}", "scores", **flags) for n in range(3)]
    personas = books.ledger("h-0", "personas", **flags)
    answers = []
    for ledger in scores:
        items = books.some(2)
        ledger.claim(items)
        answers += [ledger.admit(plan([item])) for item in items]
    waits = [answer for answer in answers if isinstance(answer, Wait)]
    assert len(waits) == 4
    assert {wait.why for wait in waits} == {"for the rate limit (2 of 2 a minute for scores)"}
    # The other has all that is left, and is not held up by whoever waits for his share.
    items = books.some(7)
    personas.claim(items)
    others = [personas.admit(plan([item])) for item in items]
    assert [isinstance(answer, Admitted) for answer in others] == [True] * 6 + [False]
    assert isinstance(others[-1], Wait)
    assert others[-1].why == "for the rate limit (8 of 8 a minute)"


def test_each_who_waits_is_given_a_time_of_his_own(books: Books) -> None:
    flags: dict[str, Any] = {"llm__requests_per_minute": 5}
    ledgers = [books.ledger(f"h-{n}", **flags) for n in range(4)]
    waits: list[float] = []
    for n, ledger in enumerate(ledgers):
        items = books.items(*(f"{n}{m}" for m in range(5)))
        ledger.claim(items)
        for item in items:
            answer = ledger.admit(plan([item]))
            if isinstance(answer, Wait):
                assert answer.why == "for the rate limit (5 of 5 a minute)"
                waits.append(answer.seconds)
    assert len(waits) == 15
    at = [at for (at,) in books.sql("SELECT at FROM llm_turns ORDER BY at")]
    assert len(set(at)) == 15
    # Five a window: the sixth comes a whole one after the first.
    for first, later in zip(at, at[5:], strict=False):
        assert timedelta(seconds=61) < later - first < timedelta(seconds=62)
    # Long waits are cut, so that leases are renewed; whoever comes back keeps his place.
    assert max(waits) == 20
    assert isinstance(ledgers[3].admit(plan(books.items("30"))), Wait)
    assert [at for (at,) in books.sql("SELECT at FROM llm_turns ORDER BY at")] == at


def test_a_call_that_needs_much_is_not_passed_by_small_ones_for_ever(books: Books) -> None:
    flags: dict[str, Any] = {"llm__tokens_per_minute": 1_000}
    small, big = books.ledger("h-0", **flags), books.ledger("h-1", **flags)
    items = books.some(12)
    much = books.items("much")
    small.claim(items)
    big.claim(much)
    for item in items[:9]:
        admitted(small.admit(plan([item], input_tokens=50, output_tokens=50)))
    assert isinstance(big.admit(plan(much, input_tokens=500, output_tokens=300)), Wait)
    # There is room for one small call, but not for it and the big one that waits for its time.
    assert isinstance(small.admit(plan([items[9]], input_tokens=50, output_tokens=50)), Wait)
    # More than a minute holds altogether waits for a whole one, instead of for ever.
    books.sql("TRUNCATE llm_turns, llm_calls")
    admitted(big.admit(plan(much, input_tokens=5_000, output_tokens=5_000)))


def test_a_waiter_that_died_holds_up_nobody(books: Books) -> None:
    ledger = books.ledger(llm__requests_per_minute=1)
    dead, alive = books.items("dead"), books.items("alive")
    ledger.claim([*dead, *alive])
    admitted(ledger.admit(plan(dead)))
    assert isinstance(ledger.admit(plan(dead)), Wait)
    books.sql("UPDATE llm_turns SET at = now() - interval '2 seconds'")
    books.sql("UPDATE llm_calls SET sent_at = now() - interval '2 minutes'")
    admitted(ledger.admit(plan(alive)))


def test_batches_have_limits_of_their_own(books: Books) -> None:
    ledger = books.ledger(llm__requests_per_minute=1, llm__tokens_per_minute=10)
    items = books.some(3)
    ledger.claim(items)
    for item in items:
        admitted(ledger.admit(plan([item], transport="batch")))
    assert isinstance(ledger.admit(plan(items[:1])), Admitted)


@pytest.mark.parametrize("calls", [0, 20_000])
def test_an_admission_reads_what_a_window_holds_however_long_the_ledger(
    books: Books, calls: int
) -> None:
    """Held against the rows that the database reads, not against a clock."""
    ledger = books.ledger(llm__requests_per_minute=50, llm__daily_budget=1e6)
    books.sql(
        "INSERT INTO llm_calls (stage, provider, model, prompt, version, transport, reason,"
        " session, worker, state, items, tokens, cost, priced, day, sent_at)"
        " SELECT 'scores', 'embedded', 'm', 'p', 1, 'direct', 'first', '', 'w', 'answered', 1, 10,"
        " 0, true, current_date, now() - interval '2 minutes' - n * interval '1 second'"
        " FROM generate_series(1, %s) AS n",
        calls,
    )
    books.sql("ANALYZE llm_calls")
    items = books.some(30)
    ledger.claim(items)
    connection = ledger._open()
    connection.execute("SET enable_seqscan = off")  # as a planner chooses for a table that is long
    before = _rows_read(books)
    for item in items:
        admitted(ledger.admit(plan([item])))
    ledger.close()  # it tells its counts as it goes
    read = _rows_read(books) - before
    assert read < 30 * 31 + 200


def _rows_read(books: Books) -> int:
    books.sql("SELECT pg_stat_force_next_flush()")
    with postgres.connect(books.database.settings, autocommit=True) as connection:
        row = connection.execute(
            "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables"
            " WHERE schemaname = %s AND relname = 'llm_calls'",
            [books.database.project],
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_sums_of_a_day_are_the_days_own(books: Books) -> None:
    ledger = books.ledger(scheduler__zone="Pacific/Kiritimati", llm__daily_budget=0.1)
    items = books.items("a")
    ledger.claim(items)
    call = admitted(ledger.admit(plan(items)))
    ((day, now),) = books.sql("SELECT day, now() FROM llm_calls WHERE id = %s", call)
    assert day == (now + timedelta(hours=14)).date()
    ((scope,),) = books.sql("SELECT scope FROM llm_spent WHERE spent > 0 AND scope LIKE 'day%%'")
    assert scope == f"day {day}"
