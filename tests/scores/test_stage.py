"""The stage alone, over a real ledger and provider: what it asks for, what it makes of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from consumers.scores import stage as scores
from headrace.llm import asking
from headrace.llm.batches.courier import Courier
from headrace.stores import postgres as database
from headrace.stream import topology
from headrace.stream.stage import Context, Outcome, Record
from tests.llm import provider
from tests.llm.desk import project, settings_of
from tests.llm.provider import Asked, Provider
from tests.scores.world import DIMENSIONS
from tests.world import wait_for


class Stage:
    """The stage as a worker has it. `p`: the provider."""

    def __init__(self, dsn: str, name: str, p: Provider, **llm: Any) -> None:
        made = settings_of(dsn, p.url, name, **llm)
        own = made.scores.model_validate({"dimensions": DIMENSIONS, "together": 4})
        self.p = p
        self.settings = made.model_copy(update={"scores": own})
        self._asker = asking.open(Context(self.settings, "scores", worker="here-0"))
        self._stage = scores.ScoresStage(own, self._asker)

    def __call__(self, *texts: str, parts: tuple[str, ...] = ()) -> list[Outcome]:
        return self._stage([_post(number, text, parts) for number, text in enumerate(texts)])

    def mixed(self, *asked: tuple[str, tuple[str, ...]]) -> list[Outcome]:
        return self._stage([_post(n, text, parts) for n, (text, parts) in enumerate(asked)])

    def close(self) -> None:
        self._asker.close()


def _post(number: int, text: str, parts: tuple[str, ...]) -> Record:
    value = {"platform": "reddit", "community": "birds", "author": "zelda", "text": text}
    return Record(f"post:reddit:{text}", "post", "reddit", value, parts)


@pytest.fixture(scope="module")
def p() -> Iterator[Provider]:
    with provider.serve() as served:
        yield served


@pytest.fixture
def stages(postgres: str, p: Provider) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []
    p.calls.clear()
    p.answer = p.judge = None
    with project(postgres) as name:

        def make(**llm: Any) -> Stage:
            made.append(Stage(postgres, name, p, **llm))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.fixture
def stage(stages: Callable[..., Stage]) -> Stage:
    return stages()


def shown(p: Provider) -> list[list[str]]:
    """The texts in each call."""
    return [[item["text"] for item in call.items] for call in p.calls]


def test_many_posts_a_call_and_each_bought_once(stage: Stage) -> None:
    stage.p.answer = lambda one: {"relevance": len(one.item["text"]), "urgency": 2.345}
    found = stage("a", "bb", "ccc", "dddd", "eeeee")
    assert [one.result for one in found][1:3] == [
        {"relevance": 2, "urgency": 2.35},
        {"relevance": 3, "urgency": 2.35},
    ]
    assert sorted(map(len, shown(stage.p))) == [1, 4]
    assert "Does it press?" in stage.p.calls[0].text and "zelda" not in stage.p.calls[0].text
    # Beside others, and again: what is answered is known.
    assert stage("eeeee", "new", "a")[0].result == {"relevance": 5, "urgency": 2.35}
    assert shown(stage.p)[2:] == [["new"]]


def test_an_answer_off_the_scale_or_short_of_a_dimension_is_asked_for_again(stage: Stage) -> None:
    wrong = {"high": {"relevance": 11, "urgency": 1}, "short": {"relevance": 1}}
    again = set[str]()

    def answer(one: Asked) -> dict[str, Any]:
        text = one.item["text"]
        if text in wrong and (text == "high" or text not in again):
            again.add(text)
            return wrong[text]
        return {"relevance": 1, "urgency": 1}

    stage.p.answer = answer
    fine, high, short = stage("fine", "high", "short")
    # Only those, with what is wrong; nothing is guessed, cut to the scale or counted as 5.
    assert shown(stage.p) == [["fine", "high", "short"], ["high", "short"]]
    assert "11" in stage.p.calls[1].text and "urgency" in stage.p.calls[1].text
    assert (fine.kind, short.kind, short.result) == ("ok", "ok", {"relevance": 1, "urgency": 1})
    assert high.kind == "dead" and "11 is greater than the maximum of 10" in (high.reason or "")


def test_parts_are_asked_for_alone(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.p.answer = lambda one: dict.fromkeys(
        (name for name in one.schema["properties"] if name != "n"), 3
    )
    whole, part, both, gone, empty = stage.mixed(
        ("whole", ()),
        ("part", ("urgency",)),
        ("both", ("urgency", "beauty")),
        ("gone", ("beauty",)),
        ("  ", ()),
    )
    assert (whole.result, whole.parts) == ({"relevance": 3, "urgency": 3}, ())
    assert (part.result, part.parts) == (both.result, both.parts) == ({"urgency": 3}, ("urgency",))
    assert (gone.kind, gone.reason) == ("drop", "no such dimension")
    assert (empty.kind, empty.reason) == ("drop", "empty")
    assert sorted(shown(stage.p)) == [["part", "both"], ["whole"]]
    told = [line for line in caplog.messages if "scores.dimensions does not name it" in line]
    assert len(told) == 1 and "beauty" in told[0]


def test_parts_that_went_by_batch_come_back_as_parts(stages: Callable[..., Stage]) -> None:
    stage = stages(transport={"scores": "batch"}, batch_age_seconds=0.001)
    stage.p.answer = lambda one: dict.fromkeys(one.schema["properties"].keys() - {"n"}, 4)
    asked = [("whole", ()), ("part", ("urgency",)), ("other", ("urgency",))]
    assert {one.kind for one in stage.mixed(*asked)} == {"deferred"}
    with database.connect(stage.settings, autocommit=True) as connection:
        for number, (text, _) in enumerate(asked):  # nothing comes back before it is stored
            connection.execute(
                "INSERT INTO records (id, kind, platform_id, topic, topic_id, partition,"
                " \"offset\", appended) VALUES (%s, 'post', 1, 't', 'i', 0, %s, 0)",
                [f"post:reddit:{text}", number],
            )
    back: list[tuple[str, Sequence[str], Sequence[str]]] = []
    courier = Courier(
        stage.settings, topology.load(stage.settings), lambda *came: back.append(came)
    )
    try:
        wait_for(lambda: courier.look() and len(back) == 2)
    finally:
        courier.close()
    assert [(list(records), list(parts)) for _, records, parts in back] == [
        (["post:reddit:whole"], []),
        (["post:reddit:other", "post:reddit:part"], ["urgency"]),
    ]
    found = stage.mixed(*asked)
    alone = {"urgency": 4}
    assert [one.result for one in found] == [{"relevance": 4, "urgency": 4}, alone, alone]
    assert stage.p.calls == []  # none directly
