"""What a model is asked: the content that fills the prompt, and the shape of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumers.personas.making import AGES, Body, Call, Draft, Entry
from headrace.config import Settings
from headrace.llm import endpoint

PERSONA_TOKENS = 260  # of an answer, by estimate
PROFILE_TOKENS = 200
_LEAST = 2  # characters of a text
_SLOWLY = 3  # personas that the embedded model writes in one call in time, even beside others

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


@dataclass(frozen=True)
class Limits:
    """How much an answer may hold. `exact`: as many of everything as is wanted. `brief`: the least
    of that, for a model that writes until it is stopped, and slowly."""

    exact: bool
    brief: bool = False

    def text(self, description: str, most: int) -> dict[str, Any]:
        if self.brief:
            most = max(24, most // 3)
        size = {"minLength": _LEAST, "maxLength": most} if self.exact else {}
        return {"type": "string", "description": description} | size

    def texts(self, description: str, most: int, size: tuple[int, int]) -> dict[str, Any]:
        return self.array(self.text("", most), description, size)

    def array(
        self, items: dict[str, Any], description: str, size: tuple[int, int]
    ) -> dict[str, Any]:
        least, most = size
        limits = {"minItems": least, "maxItems": least if self.brief else most}
        held = limits if self.exact else {}
        return {"type": "array", "description": description, "items": items} | held

    def object(self, properties: dict[str, Any]) -> dict[str, Any]:
        closed = {"additionalProperties": False} if self.exact else {}
        return {"type": "object", "properties": properties, "required": list(properties)} | closed


HELD = Limits(exact=False)  # what falls short is asked for again, not the whole answer


def schema(call: Call, posts: Sequence[Body], limits: Limits) -> dict[str, Any]:
    """JSON Schema of an answer, as it is sent or as an answer is held to it."""
    properties: dict[str, Any] = {}
    if call.profile:
        properties["community"] = limits.object(
            {
                "about": limits.text("Two or three sentences.", 600),
                "tone": limits.text("One sentence.", 200),
                "themes": limits.texts("Short phrases, most important first.", 60, (4, 8)),
            }
        )
    if call.count:
        properties["personas"] = limits.array(
            limits.object(
                {
                    "evidence": limits.array(
                        {"type": "string", "enum": [post["id"] for post in posts]},
                        "Ids of posts that speak for this persona.",
                        (1, min(3, len(posts))),
                    ),
                    "name": limits.text("First name and initial of the last name.", 40),
                    "age_range": {"type": "string", "enum": list(AGES)},
                    "occupation": limits.text("In particular.", 90),
                    "interests": limits.texts("As the community names them.", 60, (3, 6)),
                    "goals": limits.texts("What this person wants.", 120, (2, 4)),
                    "frustrations": limits.texts("What stands in the way.", 120, (2, 4)),
                    "tone_of_voice": limits.text("One sentence.", 200),
                    "typical_posts": limits.texts("In this person's own voice.", 300, (2, 3)),
                }
            ),
            "As many as are asked for.",
            (call.count, call.count),
        )
    return limits.object(properties)


def together(settings: Settings) -> int:
    """Personas in one call."""
    own = settings.personas.together
    return min(own, _SLOWLY) if endpoint.named(settings).embedded else own


def wanted(settings: Settings) -> Limits:
    """What is sent."""
    return Limits(exact=True, brief=endpoint.named(settings).embedded)


def tokens(call: Call) -> int:
    """Of the answer, by estimate."""
    return call.count * PERSONA_TOKENS + call.profile * PROFILE_TOKENS


def _some(entry: Entry, names: Sequence[str]) -> Body:
    return {name: entry.body[name] for name in names}
