"""From answers to a set, without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.personas import making
from consumers.personas.making import Call, Draft, Plan
from tests.personas.making_up import PROFILE, Kinds, persona

PLAN = Plan(50, 10, 0.9, 3)


def answer(call: Call, kinds: list[int]) -> dict[str, Any]:
    own: dict[str, Any] = {"personas": [persona(kind) for kind in kinds]}
    return own | {"community": PROFILE} if call.profile else own


def next_call(draft: Draft, model: Kinds, plan: Plan) -> Call | None:
    if draft.missing is not None:
        return draft.missing
    if not draft.entries:
        return None
    vectors = model.embed([making.text_of(entry.body) for entry in draft.entries])
    return draft.again(making.near(draft.entries, vectors, plan.similarity))


class Model:
    """Answers by chance, but the same part always the same: too few, blank ones, twins."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, call: Call) -> dict[str, Any]:
        draw = np.random.default_rng([self.seed, *call.part.encode()])
        count = int(draw.integers(0, call.count + 1)) if draw.random() < 0.4 else call.count
        kinds = [int(draw.integers(0, 90)) for _ in range(count)]
        found = answer(call, kinds)
        for body in found["personas"]:
            if draw.random() < 0.1:
                body[str(draw.choice(["name", "goals", "evidence"]))] = []
        if call.profile and draw.random() < 0.2:
            found["community"] = {**PROFILE, "about": "  "}
        return found


def run(
    plan: Plan, keep: list[dict[str, Any]], held: dict[str, Any], model: Model, most: int = 200
) -> tuple[Draft | None, list[str]]:
    """The set (None: it stopped after `most` calls, or nothing usable came), and what was asked."""
    asked: list[str] = []
    vectors = Kinds()
    while len(asked) < most:
        try:
            draft = making.draft(plan, keep, held)
        except making.Unusable:
            return None, asked
        call = next_call(draft, vectors, plan)
        if call is None:
            return draft, asked
        assert call.part not in held, "a part is asked for once"
        asked.append(call.part)
        held[call.part] = model(call)
    return None, asked


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 30),
    together=st.integers(1, 12),
    again=st.integers(0, 3),
    kept=st.sets(st.integers(1, 30), max_size=5),
    stops=st.lists(st.integers(1, 4), max_size=6),
)
def test_restarts_end_in_the_same_set(
    seed: int, count: int, together: int, again: int, kept: set[int], stops: list[int]
) -> None:
    plan = Plan(count, together, 0.9, again)
    keep = [
        {**persona(1000 + place), "kind": "persona", "id": f"persona:reddit:c:1-{place:02d}"}
        for place in sorted(kept)
    ]
    model = Model(seed)
    whole, asked = run(plan, keep, {}, model)
    held: dict[str, Any] = {}
    parts: list[str] = []
    for most in stops:
        parts += run(plan, keep, held, model, most)[1]
    again_whole, rest = run(plan, keep, dict(held), model)
    assert parts + rest == asked
    assert again_whole == whole
    if whole is None:
        return
    places = [entry.place for entry in whole.in_places]
    assert len(places) == len(set(places)) == max(count, len(kept))
    assert kept <= set(places)
    assert all(all(entry.body.values()) for entry in whole.entries)
    assert whole.rounds <= again
    # Whole is whole: nothing is asked again, whatever order the parts come in.
    shuffled = dict(reversed(list(held.items()))) if parts else {}
    assert run(plan, keep, shuffled, model)[1] == rest


def test_a_set_without_trouble_takes_five_calls() -> None:
    held: dict[str, Any] = {}
    asked = []
    while (call := making.draft(PLAN, [], held).missing) is not None:
        asked.append((call.part, call.count, call.profile, call.reason))
        start = len(held) * 10
        held[call.part] = answer(call, list(range(start, start + 10)))
    assert asked == [
        ("1/5", 10, True, "first"),
        *((f"{number}/5", 10, False, "first") for number in (2, 3, 4, 5)),
    ]
    draft = making.draft(PLAN, [], held)
    assert draft.profile == PROFILE
    assert [entry.place for entry in draft.in_places] == list(range(1, 51))


def test_fewer_than_asked_for_are_asked_for_again() -> None:
    plan = Plan(20, 10, 0.9, 3)
    held = {"1/2": {"community": PROFILE, "personas": [persona(n) for n in range(7)]}}
    call = making.draft(plan, [], held).missing
    assert call is not None
    assert (call.part, call.count, call.reason) == ("1/2 rest 1", 3, "rest")
    held["1/2 rest 1"] = answer(call, [7, 8])
    call = making.draft(plan, [], held).missing
    assert call is not None
    assert (call.part, call.count) == ("1/2 rest 2", 1)
    held["1/2 rest 2"] = answer(call, [9])
    call = making.draft(plan, [], held).missing
    assert call is not None
    assert (call.part, call.count, call.profile) == ("2/2", 10, False)


def test_more_than_asked_for_are_one_call_s_worth_less_later() -> None:
    plan = Plan(20, 10, 0.9, 3)
    held = {"1/2": {"community": PROFILE, "personas": [persona(n) for n in range(12)]}}
    call = making.draft(plan, [], held).missing
    assert call is not None
    assert (call.part, call.count) == ("2/2", 8)


def test_another_count_uses_what_there_is() -> None:
    held = {"1/2": {"community": PROFILE, "personas": [persona(n) for n in range(10)]}}
    held["2/2"] = {"personas": [persona(n) for n in range(10, 20)]}
    more = making.draft(Plan(30, 10, 0.9, 3), [], held)
    assert more.missing is not None
    assert (more.missing.part, more.missing.count) == ("3/3", 10)
    fewer = making.draft(Plan(15, 5, 0.9, 3), [], held)
    assert fewer.missing is None
    assert [entry.place for entry in fewer.in_places] == list(range(1, 16))


def test_a_model_that_brings_nothing_is_not_asked_for_ever() -> None:
    plan = Plan(10, 10, 0.9, 3)
    held: dict[str, Any] = {}
    with pytest.raises(making.Unusable):
        for _ in range(10):
            call = making.draft(plan, [], held).missing
            assert call is not None
            held[call.part] = {"personas": [{"name": "x"}]}
    assert list(held) == ["1/1", "1/1 rest 1", "1/1 rest 2"]


def test_a_missing_profile_comes_with_the_next_call() -> None:
    plan = Plan(10, 10, 0.9, 3)
    held = {"1/1": {"personas": [persona(n) for n in range(10)]}}
    call = making.draft(plan, [], held).missing
    assert call is not None
    assert (call.part, call.count, call.profile) == ("1/1 rest 1", 0, True)


def test_near_duplicates_are_replaced_and_named() -> None:
    plan = Plan(10, 10, 0.9, 2)
    held = {"1/1": {"community": PROFILE, "personas": [persona(n) for n in range(8)]}}
    held["1/1"]["personas"] += [persona(3, "Twin A."), persona(5, "Twin B.")]
    model = Kinds()
    call = next_call(making.draft(plan, [], held), model, plan)
    assert call is not None
    assert call.part == "again 1: 9 10"
    assert call.reason == "near-duplicates: 9 is like 4 (1.00); 10 is like 6 (1.00)"
    held[call.part] = answer(call, [20, 3])  # one of them is no better
    call = next_call(making.draft(plan, [], held), model, plan)
    assert call is not None
    assert call.part == "again 2: 10"
    held[call.part] = answer(call, [20])
    draft = making.draft(plan, [], held)
    assert next_call(draft, model, plan) is None, "so much for that: it stands, and check tells it"
    assert [entry.body["occupation"] for entry in draft.in_places][8:] == ["kind20.", "kind20."]


def test_what_is_kept_is_never_given_up() -> None:
    plan = Plan(3, 10, 0.9, 2)
    twins = [{**persona(1), "kind": "persona", "id": f"persona:reddit:c:1-{n:02d}"} for n in (1, 2)]
    held = {"1/1": {"community": PROFILE, "personas": [persona(1)]}}
    call = next_call(making.draft(plan, twins, held), Kinds(), plan)
    assert call is not None
    assert call.part == "again 1: 3"


def test_who_lacks_a_word_is_not_there() -> None:
    bodies = [persona(1), {**persona(2), "name": ","}, {**persona(3), "goals": ["", "…"]}]
    assert [one["name"] for one in making.personas({"personas": bodies})] == ["Name1 N."]


def test_evidence_leads_back_without_the_record() -> None:
    for id in ("post:reddit:abc", "comment:reddit:abc", "post:reddit:a:b", "post:other:abc"):
        assert making.full(making.short(id, "reddit"), "reddit") == id
    assert making.short("post:reddit:abc", "reddit") == "abc"


def test_posts_without_words_are_not_shown() -> None:
    value = {
        "best_posts": [
            {"id": "post:reddit:a", "title": " ", "score": 3},
            {"id": "post:reddit:b", "text": "Two\nlines", "score": 2},
            {"id": "post:reddit:c", "title": "Third", "score": 1},
        ]
    }
    shown = making.shown(value, "reddit", 1)
    assert shown == [{"id": "b", "text": "Two lines", "score": 2}]
