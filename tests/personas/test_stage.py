"""The stage, with a ledger in memory in place of the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from consumers.personas import making
from consumers.personas.stage import Personas
from headrace import config
from headrace.config import Settings
from headrace.llm import asking, estimates, prompts
from headrace.llm.ledger import Order
from headrace.llm.prompts import Prompt
from headrace.models.embedding import decoded
from headrace.stream import schemas, topology
from headrace.stream.stage import Record, Retry
from tests.personas.making_up import PROFILE, Kinds, persona

Answer = Callable[[asking.Task, asking.Item], dict[str, Any] | asking.Failed | asking.Deferred]


class Memory:
    """As an Asker: what was answered once is kept by part and by content."""

    model = "made-up"

    def __init__(self, answer: Answer, order: Order | None = None) -> None:
        self.answer = answer
        self.orders = order or Order()
        self.by_part: dict[tuple[int, str], dict[str, Any]] = {}
        self.by_content: dict[str, dict[str, Any]] = {}
        self.asked: list[asking.Item] = []
        self.prompted: list[str] = []
        self.stop_after: int | None = None

    def order(self, record: str) -> Order:
        return self.orders

    def kept(self, record: str, set: int, prompt: Prompt) -> dict[str, dict[str, Any]]:
        return {part: value for (number, part), value in self.by_part.items() if number == set}

    def models(self, record: str, set: int, prompt: Prompt) -> list[str]:
        return ["made-up", "older"]

    def known(self, task: asking.Task, item: asking.Item) -> bool:
        return repr((item.set, item.content)) in self.by_content

    def ask(
        self, task: asking.Task, items: Sequence[asking.Item], *, since: float | None = None
    ) -> list[asking.Outcome]:
        (item,) = items
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise Retry(1, "stopping")
        self.asked.append(item)
        self.prompted.append(task.prompt.render(**item.content)[-1]["content"])
        value = self.answer(task, item)
        if not isinstance(value, dict):
            return [value]
        assert task.validator.is_valid(value)
        self.by_part[(item.set, item.part)] = value
        self.by_content[repr((item.set, item.content))] = value
        return [asking.Answered(value, len(self.asked), True)]


class Maker:
    """Whole personas one after the other, each of a kind of its own."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, task: asking.Task, item: asking.Item) -> dict[str, Any]:
        count = item.content["count"]
        kinds = range(self.made, self.made + count)
        self.made += count
        found: dict[str, Any] = {}
        if count:
            names = [post["id"] for post in item.content["posts"]]
            found["personas"] = [persona(n, evidence=[names[n % len(names)]]) for n in kinds]
        return found if item.content["profile"] else {**found, "community": PROFILE}


def community(posts: int = 3, **more: Any) -> Record:
    value = {
        "id": "community:reddit:technology",
        "name": "technology",
        "slug": "technology",
        "posts": posts,
        "best_posts": [
            {"id": f"post:reddit:{n}", "title": f"Post {n}", "score": posts - n}
            for n in range(posts)
        ],
        **more,
    }
    return Record("community:reddit:technology", "community", "reddit", value)


def stage(asker: Any, model: Kinds | None = None, **own: Any) -> Personas:
    llm = {"base_url": "http://127.0.0.1:1/v1"}
    settings = Settings.model_validate({"personas": own, "llm": llm})
    prompt = prompts.load("consumers.personas", "personas")
    return Personas(settings, asker, prompt, model or Kinds())


def test_a_community_becomes_a_whole_set() -> None:
    asker, model = Memory(Maker()), Kinds()
    (outcome,) = stage(asker, model)([community()])
    result = outcome.result
    assert outcome.kind == "ok" and result is not None
    assert [item.part for item in asker.asked] == [f"{n}/5" for n in range(1, 6)]
    assert model.batches == [51], "one batch a community"
    assert result["model"] == "made-up, older"
    assert result["set"] == 1 and result["changed"] is False and result["kept"] == []
    ids = [one["id"] for one in result["personas"]]
    assert ids == [f"persona:reddit:technology:1-{n:02d}" for n in range(1, 51)]
    assert result["personas"][4]["evidence"] == ["post:reddit:1"]
    vector = decoded(result["personas"][0]["vector"], result["vectors"]["dimensions"])
    text = making.text_of(result["personas"][0])
    assert np.array_equal(vector, Kinds().embed([text])[0])
    envelope = {
        "id": "community:reddit:technology", "kind": "community", "platform": "reddit",
        "stage": "personas", "outcome": "ok", "version": "1", "at": "2026-03-01T12:00:05Z",
        "result": dict(result),
    }  # fmt: skip
    validator = schemas.validator(Settings(), "enriched_personas.v1")
    assert schemas.complaint(validator, envelope) is None


def test_later_prompts_name_those_that_are_there() -> None:
    asker = Memory(Maker())
    stage(asker)([community()])
    assert "Name0 N." not in asker.prompted[0]
    assert "Describe the community, then make 10 personas" in asker.prompted[0]
    for number in range(40):
        assert f"\n- Name{number} N., " in asker.prompted[4]
    assert "What it is about: Devices." in asker.prompted[4]
    assert "\n<posts>\n[0] Post 0\n[1] Post 1\n[2] Post 2\n</posts>\n" in asker.prompted[4]


@pytest.mark.parametrize("stops", [(1,), (0, 1, 1), (2, 1, 1), (4,)])
def test_a_stop_goes_on_with_the_next_call(stops: tuple[int, ...]) -> None:
    whole = Memory(Maker())
    (expected,) = stage(whole)([community()])
    asker = Memory(Maker())
    for calls in stops:
        asker.stop_after = len(asker.asked) + calls
        with pytest.raises(Retry):
            stage(asker)([community()])
    asker.stop_after = None
    (outcome,) = stage(asker)([community()])
    assert outcome == expected
    assert [item.part for item in asker.asked] == [item.part for item in whole.asked]
    assert [dict(item.content) for item in asker.asked] == [
        dict(item.content) for item in whole.asked
    ]


def test_a_community_that_grew_keeps_its_set_without_a_call() -> None:
    asker = Memory(Maker())
    (first,) = stage(asker)([community()])
    moved = [{"id": "post:reddit:new", "title": "Another", "score": 99}]
    (again,) = stage(asker)([community(posts=4000, best_posts=moved)])
    assert len(asker.asked) == 5
    assert first.result is not None and again.result is not None
    assert again.result["changed"] is True
    assert {**again.result, "changed": False} == first.result, "evidence too"


def test_near_duplicates_are_asked_for_again_and_embedded_by_themselves() -> None:
    def twins(task: asking.Task, item: asking.Item) -> dict[str, Any]:
        found = maker(task, item)
        if item.part == "2/5":
            found["personas"][3] = persona(0, "Twin T.", ["0"])
        return found

    maker = Maker()
    asker, model = Memory(twins), Kinds()
    (outcome,) = stage(asker, model)([community()])
    assert outcome.result is not None
    last = asker.asked[-1]
    assert last.part == "again 1: 14"
    assert last.reason == "near-duplicates: 14 is like 1 (1.00)"
    assert (
        "Twin T. (kind0.; wants: a phone that lasts), which is too much like Name0 N."
        in (asker.prompted[-1])
    )
    assert model.batches == [50, 1], "the twins have one text"
    assert outcome.result["personas"][13]["name"] == "Name50 N."
    (again,) = stage(asker, Kinds())([community()])
    assert again == outcome and len(asker.asked) == 6


def test_what_still_repeats_itself_stands_after_so_many_calls() -> None:
    def same(task: asking.Task, item: asking.Item) -> dict[str, Any]:
        found = maker(task, item)
        if "personas" in found:
            found["personas"] = [persona(1, f"N{n}", ["0"]) for n in range(item.content["count"])]
        return found

    maker = Maker()
    asker = Memory(same)
    (outcome,) = stage(asker, count=4, together=4, again=2)([community()])
    assert [item.part for item in asker.asked] == ["1/1", "again 1: 2 3 4", "again 2: 2 3 4"]
    assert outcome.result is not None and len(outcome.result["personas"]) == 4


def test_a_new_set_keeps_what_it_is_told_to() -> None:
    asker = Memory(Maker())
    (first,) = stage(asker, count=6, together=3)([community()])
    assert first.result is not None
    keep = [
        {**{k: v for k, v in one.items() if k != "vector"}, "kind": "persona"}
        for one in first.result["personas"]
        if one["id"][-2:] in ("02", "05")
    ]
    asker.orders = Order(2, keep, "regenerate")
    (second,) = stage(asker, count=6, together=3)([community()])
    assert second.result is not None
    ids = [one["id"] for one in second.result["personas"]]
    base = "persona:reddit:technology"
    assert ids == [f"{base}:{n}" for n in ("2-01", "1-02", "2-03", "2-04", "1-05", "2-06")]
    assert second.result["kept"] == [f"{base}:1-02", f"{base}:1-05"]
    assert [item.part for item in asker.asked[-2:]] == ["1/2", "2/2"]
    assert second.result["personas"][1] == first.result["personas"][1]
    assert "Personas of this community that are there already (2 of 6)" in asker.prompted[-2]


def test_one_persona_anew_takes_one_call_and_leaves_the_profile() -> None:
    asker = Memory(Maker())
    (first,) = stage(asker)([community()])
    assert first.result is not None
    keep: list[dict[str, Any]] = [
        {**{k: v for k, v in one.items() if k != "vector"}, "kind": "persona"}
        for one in first.result["personas"][1:]
    ]
    keep.append({"kind": "community", **PROFILE})
    asker.orders = Order(2, keep, "regenerate")
    (second,) = stage(asker)([community()])
    assert second.result is not None
    assert [item.part for item in asker.asked[5:]] == ["1/1"]
    assert second.result["personas"][0]["id"] == "persona:reddit:technology:2-01"
    assert second.result["personas"][1:] == first.result["personas"][1:]
    assert second.result["community"] == first.result["community"]


def test_without_posts_there_is_nothing_to_say() -> None:
    asker = Memory(Maker())
    (outcome,) = stage(asker)([community(best_posts=[])])
    assert (outcome.kind, outcome.reason) == ("drop", "no posts")
    blank = [{"id": "post:reddit:a", "text": " ", "score": 1}]
    (outcome,) = stage(asker)([community(best_posts=blank)])
    assert (outcome.kind, outcome.reason) == ("drop", "no posts")
    assert asker.asked == []


def test_a_call_that_fails_or_is_put_off_decides() -> None:
    (outcome,) = stage(Memory(lambda task, item: asking.Failed("a refusal")))([community()])
    assert (outcome.kind, outcome.reason) == ("dead", "1/5: a refusal")
    (outcome,) = stage(Memory(lambda task, item: asking.Deferred("batch 7")))([community()])
    assert (outcome.kind, outcome.reason) == ("deferred", "batch 7")
    (outcome,) = stage(Memory(lambda task, item: {"personas": [], "community": PROFILE}))(
        [community()]
    )
    assert (outcome.kind, outcome.reason) == (
        "dead",
        "3 answers in a row held no whole persona",
    )


def test_the_embedded_model_is_asked_for_less() -> None:
    from consumers.personas import asked
    from consumers.personas.stage import calls

    embedded = Settings()
    other = Settings.model_validate({"llm": {"api_key": "nobody's"}})
    assert (calls(other), calls(embedded)) == (5, 17)
    assert not asked.wanted(other).brief and asked.wanted(embedded).brief


def test_an_answer_may_name_no_other_post() -> None:
    from consumers.personas import asked

    draft = making.draft(making.Plan(2, 2, 0.9, 0), [], {})
    assert draft.missing is not None
    posts = making.shown(community().value, "reddit", 10)
    for limits in (asked.HELD, asked.Limits(exact=True), asked.Limits(exact=True, brief=True)):
        validator = schemas.compiled(asked.schema(draft.missing, posts, limits))
        full = {"personas": [persona(n, evidence=["1"]) for n in range(2)], "community": PROFILE}
        full["personas"][0]["interests"] = full["personas"][1]["interests"] = ["aa", "bb", "cc"]
        for one in full["personas"]:
            one["goals"] = one["frustrations"] = one["typical_posts"] = ["aa", "bb"]
        full["community"] = {**PROFILE, "themes": ["aa", "bb", "cc", "dd"]}
        assert validator.is_valid(full)
        full["personas"][1]["evidence"] = ["7"]
        assert not validator.is_valid(full)


def test_before_an_upgrade_it_is_said_that_sets_stay() -> None:
    settings = config.load()
    groups = topology.load(settings)
    said = estimates.kept(settings, groups.group("personas"))
    assert said is not None and "`headrace personas regenerate`" in said
    assert estimates.kept(settings, groups.group("scores")) is None
