"""From the stage by a real ledger into a real store, and what the commands show of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from python_calamine import CalamineWorkbook

from consumers.personas import changing, commands, watching
from consumers.personas.reading import Found, find
from consumers.personas.stage import Personas
from headrace import config, decisions
from headrace.config import Settings
from headrace.decisions import Decision
from headrace.errors import HeadraceError, Retry
from headrace.graph import persona_id
from headrace.llm import asking, prompts
from headrace.stores import postgres
from headrace.stream.stage import Context, Record
from tests.llm import provider
from tests.llm.provider import Provider
from tests.personas.answering import answer
from tests.personas.making_up import Kinds
from tests.stores.conftest import Database, databases
from tests.stores.test_graph import decision, outcome

__all__ = ["databases"]  # a fixture of tests/stores

COUNT, TOGETHER, CALLS = 20, 4, 5


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider.serve() as p:
        p.answer = answer
        yield p


class Made:
    """A schema with communities, the stage on it, and the store."""

    def __init__(self, database: Database, served: Provider) -> None:
        self.database = database
        self.served = served
        before = database.settings
        assert before.postgres.dsn is not None
        self.settings: Settings = config.load(
            {
                "project": before.project,
                "topics": before.path("topics"),
                "postgres.dsn": before.postgres.dsn.get_secret_value(),
                "llm.base_url": served.url,
                "llm.api_key": "nobody's",
                "llm.requests_per_minute": None,
                "personas.count": COUNT,
                "personas.together": TOGETHER,
            }
        )
        self.offset = 0
        self.offsets: dict[str, int] = {}  # of each community's newest revision
        self.stops = False
        self.newer = 0  # versions that the prompt is newer by

    def community(self, slug: str, posts: int = 3) -> Record:
        best = [
            {"id": f"post:reddit:{slug}{n}", "title": f"On {slug}, part {n}", "score": 9 - n}
            for n in range(posts)
        ]
        id = f"community:reddit:{slug}"
        value = {"id": id, "kind": "community", "platform": "reddit", "name": slug, "slug": slug,
                 "posts": posts, "best_posts": best}  # fmt: skip
        self.offset += 1
        self.offsets[id] = self.offset
        self.database.write([
            self.database.message("raw.communities", id, value, (), self.offset, self.offset),
            *(self.database.raw(f"{slug}{n}", 1000 * self.offset + n) for n in range(3)),
        ])  # fmt: skip
        return Record(id, "community", "reddit", value)

    def stage(self, worker: str = "w-0") -> Personas:
        context = Context(self.settings, "personas", {}, worker, lambda: self.stops, lambda: 1)
        prompt = prompts.load("consumers.personas", "personas")
        prompt = replace(prompt, version=prompt.version + self.newer)
        watch = watching.Watch(context)
        return Personas(self.settings, asking.open(context), prompt, Kinds(), watch)

    def make(self, record: Record) -> dict[str, Any]:
        stage = self.stage()
        while True:
            try:
                (made,) = stage([record])
                break
            except Retry:  # on a machine that is very busy
                continue
        assert made.kind == "ok" and made.result is not None, made.reason
        self.store(record, dict(made.result))
        return dict(made.result)

    def store(self, record: Record, result: dict[str, Any]) -> None:
        root = self.offsets[record.id]
        self.database.write([outcome(self.database, root, result, community=record.id)])

    def say(self, *words: str, exit_code: int = 0) -> str:
        done = CliRunner().invoke(commands.personas, words, obj=lambda: self.settings,
                                  standalone_mode=False)  # fmt: skip
        if done.exception is not None:
            raise done.exception
        assert (done.return_value or 0) == exit_code, done.output
        return done.output


@pytest.fixture
def made(databases: Callable[..., Database], served: Provider) -> Made:
    database = databases()
    database.upgrade()
    served.calls.clear()
    return Made(database, served)


def test_what_the_stage_makes_is_shown(made: Made, tmp_path: Path) -> None:
    records = [made.community(slug) for slug in ("apple", "cooking")]
    made.make(records[0])
    assert len(made.served.calls) == CALLS
    told = made.say("progress")
    assert told.startswith(f"Progress: {COUNT}/{2 * COUNT} personas · 5 of 10 calls · $0.0")
    made.make(records[1])
    told = made.say("progress")
    assert told.startswith(f"Progress: {2 * COUNT}/{2 * COUNT} personas · 10 of 10 calls · $0.0")
    assert json.loads(made.say("progress", "--json"))["complete"] is True
    assert made.database.sql("SELECT personas FROM communities WHERE id IS NOT NULL") == [
        (COUNT,),
        (COUNT,),
    ]

    listed = made.say("list").splitlines()
    assert listed[0] == f"r/apple  (community:reddit:apple)  {COUNT} personas, set 1"
    assert made.say("list", "apple").count("\n") == COUNT
    shown = made.say("show", "r/apple")
    assert "Tone:   Quick, dry" in shown
    assert "  reddit:apple:1-01  Person 0 A., 16-24, Bicycle courier" in shown
    assert "post:reddit:apple1: some text" in made.say("show", "reddit:apple:1-02")
    check = made.say("check")
    assert f"r/apple: {COUNT} personas, evidence from 3 posts, 6 of 6 age ranges" in check
    assert "!" not in check

    rows = [json.loads(line) for line in made.say("export").splitlines()]
    assert len(rows) == 2 * COUNT
    table = list(csv.DictReader(io.StringIO(made.say("export", "cooking", "--format", "csv"))))
    assert [row["id"] for row in table] == [row["id"] for row in rows[COUNT:]]
    assert table[0]["interests"].split("; ") == rows[COUNT]["interests"]
    path = tmp_path / "all.xlsx"
    made.say("export", "--format", "xlsx", "--output", str(path))
    sheet = CalamineWorkbook.from_path(str(path)).get_sheet_by_index(0).to_python()
    assert len(sheet) == 1 + 2 * COUNT and sheet[1][0] == rows[0]["id"]
    with pytest.raises(HeadraceError, match="there is no community"):
        made.say("show", "nobody")
    with pytest.raises(HeadraceError, match="say --output"):
        made.say("export", "--format", "xlsx")


def test_a_grown_community_is_kept_and_a_stop_goes_on(made: Made) -> None:
    record = made.community("apple")

    def stops(asked: provider.Asked) -> dict[str, Any]:
        made.stops = len(made.served.calls) == 2
        return answer(asked)

    made.served.answer = stops
    with pytest.raises(Retry):
        made.stage()([record])
    made.stops = False
    made.served.answer = answer
    first = made.make(record)
    assert len(made.served.calls) == CALLS
    grown = made.community("apple", posts=9)
    again = made.make(grown)
    assert again == {**first, "changed": True}
    assert len(made.served.calls) == CALLS
    assert "changed since" in made.say("list")
    states = made.database.sql("SELECT state, reason, count(*) FROM llm_calls GROUP BY 1, 2")
    assert states == [("answered", "first", CALLS)]


def test_whoever_follows_is_told_the_same(made: Made) -> None:
    records = [made.community(slug) for slug in ("apple", "cooking")]
    with postgres.connect(made.settings, readonly=True, autocommit=True) as connection:
        follower = watching.Follower(connection, made.settings)
        assert list(follower.news()) == []
        made.make(records[0])
        told = list(follower.news())
        assert told[:6] == ["[Community 1/2] r/apple"] + [
            f"Batch {n}/5: 4 personas ({4 * n}/{COUNT})" for n in range(1, 6)
        ]
        assert told[6] == f"✓ committed {COUNT} personas, {COUNT} relationships"
        assert told[7].startswith(f"Progress: {COUNT}/{2 * COUNT} personas · 5 of 10 calls · $")
        assert len(told) == 8
        made.make(records[1])
        assert "[Community 2/2] r/cooking" in list(follower.news())
        assert list(follower.news()) == []
        # Each line stands under its community, whatever came between and whoever came late.
        late = watching.Follower(connection, made.settings)
        grown = [made.community(slug, posts=9) for slug in ("apple", "cooking")]
        for record in grown:
            made.make(record)
        for one in (follower, late):
            heads = [line for line in one.news() if line[0] in "[✓"]
            assert heads == [
                "[Community 1/2] r/apple", f"✓ kept {COUNT} personas, {COUNT} relationships",
                "[Community 2/2] r/cooking", f"✓ kept {COUNT} personas, {COUNT} relationships",
            ]  # fmt: skip
        assert watching.standing(connection, made.settings)[1] is True


def test_a_newer_prompt_leaves_a_set_to_whom_it_was_made_of(made: Made) -> None:
    record = made.community("apple")
    first = made.make(record)
    made.newer = 1
    made.community("apple")
    assert made.make(record) == {**first, "changed": True}
    assert len(made.served.calls) == CALLS
    assert made.say("progress").startswith(f"Progress: {COUNT}/{COUNT} personas · 5 of 5 calls")


def test_what_people_decide_survives_a_new_set(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kafka is left out: what is decided is given to the store, what is queued is made at once."""
    record = made.community("apple")
    made.make(record)
    decided: dict[tuple[str, str], Decision] = {}

    def decide(settings: Any, said: str | list[str], action: str, value: Any, by: Any = 0) -> None:
        for subject in [said] if isinstance(said, str) else said:
            decided[(subject, action)] = Decision(value, "now", "me")
            made.database.write([decision(made.database, subject, action, value)])

    monkeypatch.setattr(decisions, "standing", lambda settings: decided)
    monkeypatch.setattr(decisions, "decide", decide)
    monkeypatch.setattr(changing, "_queue", lambda *said: None)
    ids = [persona_id(record.id, 1, place) for place in range(1, COUNT + 1)]
    made.say("edit", ids[0], "name=Zoe Z.", "interests=gears; old bikes")
    made.say("edit", ids[0], "occupation=Owner of a bike shop")
    made.say("lock", ids[1])
    made.say("hide", ids[2], ids[3])
    query = "SELECT name, occupation, interests FROM personas WHERE id = %s"
    assert made.database.sql(query, ids[0]) == [
        ("Zoe Z.", "Owner of a bike shop", ["gears", "old bikes"])
    ]
    assert f"{COUNT - 2} personas, 2 hidden" in made.say("list")
    with pytest.raises(HeadraceError, match="is hidden"):
        made.say("show", ids[2])

    told = made.say("regenerate", "r/apple")
    assert f"set 2 is ordered; it has {COUNT - 2} personas made anew and keeps 2" in told
    with pytest.raises(HeadraceError, match="was ordered and is not made yet"):
        made.say("regenerate", "r/apple")
    made.make(record)
    now = {row[0] for row in made.database.sql("SELECT id FROM personas")}
    assert now == {ids[0], ids[1]} | {persona_id(record.id, 2, n) for n in range(3, COUNT + 1)}
    assert made.database.sql(query, ids[0])[0][0] == "Zoe Z."
    assert len(made.served.calls) == 2 * CALLS

    with pytest.raises(HeadraceError, match="is locked"):
        made.say("regenerate", ids[1])
    made.say("regenerate", "reddit:apple:2-07")
    made.make(record)
    later = {row[0] for row in made.database.sql("SELECT id FROM personas")}
    assert later == now - {persona_id(record.id, 2, 7)} | {persona_id(record.id, 3, 7)}
    assert len(made.served.calls) == 2 * CALLS + 1
    made.say("unlock", ids[1])
    made.say("edit", ids[0], "name=", "interests=", "occupation=")
    assert made.database.sql("SELECT bool_or(locked), bool_or(edited) FROM personas") == [
        (False, False)
    ]


def test_check_tells_what_is_wrong(made: Made) -> None:
    record = made.community("apple")
    result = made.make(record)
    first, second, *rest = result["personas"]
    first |= {"evidence": ["post:reddit:gone"], "age_range": "old"}
    second |= {"name": rest[0]["name"], "vector": rest[0]["vector"]}
    result["personas"] = [first, second, *rest[:-1]]
    made.store(record, result)
    told = made.say("check", "apple", exit_code=1)
    for part in (
        f"too few: {COUNT - 1} of {COUNT} are there",
        "1 whose evidence is not there: persona:reddit:apple:1-01 (post:reddit:gone)",
        "1 of no age range that there is: persona:reddit:apple:1-01 (old)",
        "1 names that several have",
        "1 pairs more alike than 0.9: persona:reddit:apple:1-02 and persona:reddit:apple:1-03",
    ):
        assert part in told


def test_names_lead_to_what_was_meant(made: Made) -> None:
    record = made.community("apple")
    made.make(record)
    id = persona_id(record.id, 1, 3)
    with postgres.connect(made.settings) as connection:
        for said in ("apple", "r/Apple", "community:reddit:apple", "reddit:apple", "APPLE"):
            assert find(connection, said) == Found(record.id, None)
        for said in (id, "reddit:apple:1-03"):
            assert find(connection, said) == Found(record.id, id)
        for said in ("persona:reddit:apple:9-99", "reddit:apple:9-99"):
            with pytest.raises(HeadraceError, match="no persona"):
                find(connection, said)


@pytest.mark.parametrize("said", ["name", "nothing=1", "age_range=30", 'goals=["a", 1]', "goals=;"])
def test_an_edit_that_makes_no_sense_is_refused(said: str) -> None:
    with pytest.raises(HeadraceError):
        changing.edited([said], {})
