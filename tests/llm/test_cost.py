"""What calls cost is told before and after, and a budget that is spent is seen to be."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import psycopg
import pytest

from headrace.backlog import report
from headrace.backlog.lag import Reader
from headrace.backlog.model import GroupLag, PartitionLag, State, settle
from headrace.backlog.progress import Progress
from headrace.backlog.receipts import Receipt
from headrace.errors import HeadraceError, Pause
from headrace.forget import tables
from headrace.llm import commands, cost, estimates, standing
from headrace.llm.admission import usd
from headrace.llm.ledger import Ledger
from headrace.stream.commands import in_session
from tests.llm.books import Books, admitted, buy, key_of, plan, reply
from tests.llm.conftest import Say
from tests.world import CLONE, World


def sums(books: Books, by: cost.By) -> dict[str, tuple[int, Decimal]]:
    with psycopg.Connection.connect(**_address(books)) as connection:
        return {row.name: (row.calls, row.cost) for row in cost.read(connection, by)}


def _address(books: Books) -> dict[str, Any]:
    from headrace.stores import postgres

    found: dict[str, Any] = dict(postgres.address(books.database.settings))
    return found | {"options": f"-c search_path={books.database.project}"}


@pytest.fixture
def spent(books: Books) -> Books:
    """Two runs, two stages, two models; one call that died and its repetition."""
    database = books.database
    database.write([database.raw("a", 1, run="r1"), database.raw("b", 2, run="r2")])
    scores, personas = books.ledger(), books.ledger(stage="personas")
    buy(scores, books.items("a", "b"))  # 0.08, half for each run
    killed = books.ledger("h-9")
    killed.claim(books.items("c"))
    admitted(killed.admit(plan(books.items("c"))))  # 0.10
    killed.close()
    again = books.ledger("h-9")
    buy(again, books.items("c"))  # 0.08, of a record that no run has brought here
    items = [(key_of("p"), "post:reddit:a", 1, "1/5")]
    buy(personas, items, model="other")  # 0.08
    personas.claim(books.items("d"))
    failed = admitted(personas.admit(plan(books.items("d"))))
    personas.unsent(failed, "503")
    return books


def test_sums_are_those_of_the_calls_whatever_they_are_told_by(spent: Books) -> None:
    cents = {name: (calls, round(100 * usd)) for name, (calls, usd) in sums(spent, "stage").items()}
    assert cents == {"scores": (3, 26), "personas": (2, 8)}
    assert set(sums(spent, "model")) == {"m", "other"}
    ((day,),) = spent.sql("SELECT DISTINCT day::text FROM llm_calls")
    assert sums(spent, "day") == {day: (5, Decimal("0.34"))}
    runs = {name: round(100 * usd) for name, (_, usd) in sums(spent, "run").items()}
    assert runs == {"r1": 12, "r2": 4, cost.NOBODYS: 18}
    with psycopg.Connection.connect(**_address(spent)) as connection:
        whole = cost.total(connection)
        assert cost.of_run(connection, "r1") == (2, Decimal("0.12"))
        assert cost.of_run(connection, "r9") == (0, Decimal(0))
        by_run = cost.read(connection, "run")
    assert whole is not None
    assert (whole.repeated, whole.repeated_cost) == (1, Decimal("0.08"))
    assert (whole.lost, whole.failed, whole.under_way) == (1, 1, 0)
    for field in ("cost", "input_tokens", "output_tokens", "repeated"):
        assert sum(getattr(row, field) for row in by_run) == getattr(whole, field), field


def test_how_things_stand(spent: Books) -> None:
    flags = {"llm__daily_budget": 0.4, "llm__requests_per_minute": 6, "llm__max_cost": 3}
    settings = spent.settings(**flags)
    ledger = Ledger(settings, "scores", "h-0")
    items = spent.items("x", "y")
    ledger.claim(items)
    with pytest.raises(Pause):
        ledger.admit(plan(items[:1]))
    admitted(ledger.admit(plan(items[:1], cost=Decimal("0.05"))))
    ledger.admit(plan(items[1:], cost=None))
    with pytest.raises(Pause):
        ledger.admit(plan(items[1:]))
    with psycopg.Connection.connect(**_address(spent)) as connection:
        found = standing.read(connection, settings)
        total = cost.total(connection)
    assert (found.provider, found.embedded) == ("embedded", True)
    assert found.used["scores"][0] == 4
    assert (found.direct.calls, found.direct.reserved) == (1, Decimal("0.05"))
    assert found.waits["scores"].reason.startswith("budget: $0.39 of $0.40 spent today")
    text = "\n".join(f"{name} {line}" for name, line in commands._lines(found, settings, total))
    assert "its content is\n for trying out" in text
    assert "6 of 6 requests" in text
    assert "Budget $0.39 of $0.40 today" in text
    assert json.dumps(commands._told(found, settings, total))
    ledger.close()


@pytest.mark.parametrize(
    ("value", "said"),
    [(4.98, "$4.98"), (0.0, "$0.00"), (0.0031, "$0.0031"), (1234.5, "$1,234.50"), (0.05, "$0.050")],
)
def test_money_is_told_as_people_write_it(value: float, said: str) -> None:
    assert usd(value) == said


def test_lag_says_which_group_waits_for_its_budget() -> None:
    rows = (PartitionLag("t", 0, 0, 10, 10, 4),)
    refused = standing.Refused("budget: …", True, datetime.now(UTC))
    waits = GroupLag("scores", "p.scores", "stage", "always", rows, 1, refused=refused)
    assert settle([waits], {})[0].state is State.WAITING_BUDGET
    other = replace(waits, refused=replace(refused, reason="llm: …", budget=False))
    assert (settle([other], {})[0].state, settle([other], {})[0].reason) == (State.PAUSED, "llm: …")
    done = replace(waits, partitions=(PartitionLag("t", 0, 0, 10, 10, 10),))
    assert settle([done], {})[0].state is State.OK
    assert settle([replace(waits, members=0)], {})[0].state is State.STOPPED


def test_lag_reads_refusals_from_the_ledger(world: World) -> None:
    world.apply()
    assert {group.refused for group in _lags(world)} == {None}
    world.sql("INSERT INTO llm_refusals VALUES ('scores', 'day', 4.98, 5, now() + '1 hour', now())")
    found = {group.group: group.refused for group in _lags(world)}
    assert found["scores"] is not None
    assert (found["scores"].reason, found["scores"].budget) == (
        "budget: $4.98 of $5.00 spent today; goes on tomorrow 00:00 UTC, or started again with a"
        " higher llm.daily_budget",
        True,
    )
    assert found["text"] is None
    world.sql("UPDATE llm_refusals SET until = now()")  # the day is over
    assert {group.refused for group in _lags(world)} == {None}


def _lags(world: World) -> list[GroupLag]:
    with Reader(world.settings) as reader:
        return reader.read()


def test_a_run_has_a_session_of_its_own_unless_it_is_given_one(books: Books) -> None:
    settings = books.settings()
    one, other = in_session(settings, 5.0), in_session(settings, None)
    assert one.llm.max_cost == 5.0
    assert other.llm.max_cost is None
    assert one.llm.session and one.llm.session != other.llm.session
    assert in_session(books.settings(llm__session="mine"), 1.0).llm.session == "mine"


def test_progress_tells_cost_only_where_there_was_any() -> None:
    receipt = Receipt("r1", "done", "post", "reddit", 5, 0, "", None, {}, {}, None, {})
    found = Progress(receipt, ())
    assert "cost" not in found.as_dict()
    assert "Cost" not in report.progress_text(found)
    found = replace(found, calls=15, cost=Decimal("0.58"))
    assert found.as_dict()["cost"] == 0.58
    assert "Cost: $0.58 for 15 calls of language models" in report.progress_text(found)


def test_a_forgotten_records_answers_go_and_so_does_what_it_said(books: Books) -> None:
    ledger = books.ledger()
    gone, stays = books.items("gone", "stays")
    ledger.claim([gone, stays])
    call = admitted(ledger.admit(plan([gone, stays])))
    ledger.settle(call, reply(), {stays[0]: {}}, {gone[0]: "bad: secret"}, raw="secret")
    again = books.items("gone", set=2)
    buy(ledger, again)
    ledger.claim(books.items("gone", set=3))
    ledger.raise_set("post:reddit:gone", [{"name": "secret"}], "asked for")
    connection = books.database.connection
    for name in ("llm_answers", "llm_claims", "llm_sets", "llm_calls"):
        connection.execute(tables._TAKE_OUT[name].encode(), [["post:reddit:gone"]])
    assert books.sql("SELECT record_id FROM llm_answers") == [("post:reddit:stays",)]
    for table in ("llm_calls", "llm_answers", "llm_claims", "llm_sets"):
        rows = [row for (row,) in books.sql(f"SELECT t::text FROM {table} t")]
        assert not any("gone" in row or "secret" in row for row in rows), table
    assert books.balanced()  # the money is spent all the same


def test_an_estimate_goes_by_what_would_be_sent_then_by_what_was_bought(world: World) -> None:
    world.apply()
    settings = world.settings.model_copy(
        update={"llm": world.settings.llm.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})}
    )
    assert estimates.read(settings, "scores").records == 0
    world.post("reddit", n=60)
    world.run("postgres")
    found = estimates.read(settings, "scores")
    assert (found.waiting, found.missing) == (60, 60)
    assert found.each is not None and not found.each.by_ledger
    assert found.calls == 3  # twenty in each
    assert found.tokens[0] > 3 * 100
    assert found.cost is not None and found.batch_cost == found.cost / 2
    assert found.seconds is not None and found.seconds >= 60 * 3 / 50
    ledger = Ledger(settings, "scores", "h-0")
    items = [(key_of(str(n)), f"post:reddit:{n}", 1, "all") for n in range(20)]
    ledger.claim(items)
    planned = plan(items, model=found.model, cost=Decimal("0.01"))
    answered = reply("0.008", input_tokens=2_000, output_tokens=400)
    ledger.settle(admitted(ledger.admit(planned)), answered, {item[0]: {} for item in items})
    ledger.close()
    found = estimates.read(settings, "scores")
    assert found.each is not None and found.each.by_ledger
    assert found.tokens == (6_000, 1_200)
    text = "\n".join(commands._estimated(found, settings))
    assert "60 records" in text and "3 calls, 6,000 tokens in, 1,200 out" in text
    with pytest.raises(HeadraceError, match="asks no language model"):
        estimates.read(settings, "text")


def test_commands_say_what_stands(books: Books, say: Say) -> None:
    settings = books.settings()
    assert say(settings, "llm", "cost").strip() == "no language model was asked yet"
    page = (CLONE / "docs" / "llm.md").read_text()
    assert say(books.settings(llm__requests_per_minute=50), "llm", "status") in page
    ledger = books.ledger()
    buy(ledger, books.items("a"))
    (failed,) = books.items("b")
    ledger.claim([failed])
    ledger.unsent(admitted(ledger.admit(plan([failed]))), "down")
    table = say(settings, "llm", "cost", "--by", "day").splitlines()
    assert table[0].split() == [
        "DAY", "CALLS", "FAILED", "INPUT", "OUTPUT", "COST", "REPEATED", "COST", "OF", "THOSE"
    ]  # fmt: skip
    assert table[1].split()[1:] == ["2", "1", "90", "30", "$0.080", "0", "$0.00"]
    assert "–: calls that brought no answer" in say(settings, "llm", "cost", "--by", "run")
    told = orjson.loads(say(settings, "llm", "status", "--json"))
    assert told["embedded"] is True
    assert "for trying out" in say(settings, "llm", "status")
    books.sql(
        "INSERT INTO llm_batches (name, stage, provider, model, requests, error)"
        " VALUES ('b1', 'scores', 'p', 'm', 2, 'llm: the key is refused')"
    )
    assert "scores: batch b1: llm: the key is refused" in say(settings, "llm", "status")
    books.sql("DELETE FROM llm_batches")
