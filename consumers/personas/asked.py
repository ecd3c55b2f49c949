"""What a model is asked: the content that fills the prompt, and the shape of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consumers.personas.making import AGES, Body, Call, Draft, Entry

PERSONA_TOKENS = 260  # of an answer, by estimate
PROFILE_TOKENS = 200

_FACTS = ("name", "description", "posts", "authors", "comments", "first_at", "last_at")
_MADE = ("name", "age_range", "occupation", "interests")
_ALIKE = ("name", "occupation", "goals")


def content(
    value: Mapping[str, Any], platform: str, posts: Sequence[Body], draft: Draft, call: Call
) -> Body:
    """All that a call depends on, by the names that the prompt uses."""
    given_up = {pair.later.place for pair in call.alike}
    there = [entry for entry in draft.entries if entry.place not in given_up]
    return {
        "community": {"platform": platform} | {name: value.get(name) for name in _FACTS},
        "posts": [{"id": post["id"], "text": post["text"]} for post in posts],
        "profile": draft.profile,
        "made": [_some(entry, _MADE) for entry in there],
        "alike": [
            {"later": _some(pair.later, _ALIKE), "earlier": _some(pair.earlier, _ALIKE)}
            for pair in call.alike
        ],
        "count": call.count,
        "total": max(draft.plan.count, len(draft.kept)),
        "number": call.number,
    }


def schema(call: Call, posts: Sequence[Body], *, exact: bool) -> dict[str, Any]:
    """JSON Schema of an answer. `exact`: as it is sent, with as many of everything as is wanted;
    else as an answer is held to it: what falls short is asked for again, not the whole answer."""
    properties: dict[str, Any] = {}
    if call.profile:
        properties["community"] = _object(
            {
                "about": _text("Two or three sentences.", 600, exact),
                "tone": _text("One sentence.", 200, exact),
                "themes": _list("Short phrases, most important first.", 60, (4, 8), exact),
            },
            exact,
        )
    if call.count:
        properties["personas"] = _array(
            _object(
                {
                    "evidence": _array(
                        {"type": "string", "enum": [post["id"] for post in posts]},
                        "Ids of posts that speak for this persona.",
                        (1, min(3, len(posts))),
                        exact,
                    ),
                    "name": _text("First name and initial of the last name.", 40, exact),
                    "age_range": {"type": "string", "enum": list(AGES)},
                    "occupation": _text("In particular.", 90, exact),
                    "interests": _list("As the community names them.", 60, (3, 6), exact),
                    "goals": _list("What this person wants.", 120, (2, 4), exact),
                    "frustrations": _list("What stands in the way.", 120, (2, 4), exact),
                    "tone_of_voice": _text("One sentence.", 200, exact),
                    "typical_posts": _list("In this person's own voice.", 300, (2, 3), exact),
                },
                exact,
            ),
            "As many as are asked for.",
            (call.count, call.count),
            exact,
        )
    return _object(properties, exact)


def tokens(call: Call) -> int:
    """Of the answer, by estimate."""
    return call.count * PERSONA_TOKENS + call.profile * PROFILE_TOKENS


def _some(entry: Entry, names: Sequence[str]) -> Body:
    return {name: entry.body[name] for name in names}


def _object(properties: dict[str, Any], exact: bool) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
    } | ({"additionalProperties": False} if exact else {})


def _text(description: str, most: int, exact: bool) -> dict[str, Any]:
    return {"type": "string", "description": description} | ({"maxLength": most} if exact else {})


def _list(description: str, most: int, size: tuple[int, int], exact: bool) -> dict[str, Any]:
    return _array(_text("", most, exact), description, size, exact)


def _array(
    items: dict[str, Any], description: str, size: tuple[int, int], exact: bool
) -> dict[str, Any]:
    limits = {"minItems": size[0], "maxItems": size[1]} if exact else {}
    return {"type": "array", "description": description, "items": items} | limits
