"""From the answers that a model gave so far to a whole set of personas, or to what is to be asked
next. Pure: the same answers give the same set, wherever it was interrupted.

Answers are known by their parts:

    2/5              the second of five calls
    2/5 rest 1       it brought fewer than were asked for: the others
    again 1: 7 23    near-duplicates: new ones for places 7 and 23

A set has places, from 1. A persona that is kept of an earlier set keeps its place and its id; new
ones take the places that are free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

AGES = ("16-24", "25-34", "35-44", "45-54", "55-64", "65+")
TEXTS = ("name", "age_range", "occupation", "tone_of_voice")
LISTS = ("interests", "goals", "frustrations", "typical_posts", "evidence")
FIELDS = (*TEXTS[:3], *LISTS[:3], "tone_of_voice", *LISTS[3:])
MOST_FRUITLESS = 3  # calls in a row that bring nothing usable

_MAIN = re.compile(r"(\d+)/(\d+)(?: rest (\d+))?")
_AGAIN = re.compile(r"again (\d+): ([\d ]+)")
_LONGEST = 1_000  # characters of a text
_MOST = 10  # entries of a list

Body = dict[str, Any]
Held = Mapping[str, Mapping[str, Any]]  # answers by part


class Unusable(Exception):
    """The model brings nothing that a persona could be made of."""


@dataclass(frozen=True, slots=True)
class Plan:
    count: int  # personas of a set
    together: int  # in one call
    similarity: float  # more alike: the later one is asked for again
    again: int  # calls for those, at most


class Entry(NamedTuple):
    """A persona at its place. `round`: 0 kept, 1 of the calls, 2… of calls for near-duplicates."""

    place: int
    round: int
    body: Body


class Pair(NamedTuple):
    """Two of a set that say nearly the same; `later` was made after `earlier`."""

    later: Entry
    earlier: Entry
    cosine: float

    def __str__(self) -> str:
        """By their places: it stands with the call, which outlives what was made."""
        return f"{self.later.place} is like {self.earlier.place} ({self.cosine:.2f})"


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be asked next."""

    part: str
    number: int  # of the call, from 1: the prompt looks from another side each time
    count: int
    profile: bool
    reason: str = "first"
    alike: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """What a set amounts to so far. `entries` in the order they were made in."""

    plan: Plan
    profile: Body | None = None
    entries: tuple[Entry, ...] = ()
    replaced: tuple[Entry, ...] = ()
    missing: Call | None = None  # a call of the plan, or for what one fell short of
    rounds: int = 0  # calls for near-duplicates so far
    calls: int = 0  # that the plan needs
    kept: frozenset[int] = field(default_factory=frozenset)  # places

    @property
    def whole(self) -> bool:
        return self.missing is None

    @property
    def in_places(self) -> list[Entry]:
        return sorted(self.entries, key=lambda entry: entry.place)

    def again(self, pairs: Sequence[Pair]) -> Call | None:
        """What is asked for these near-duplicates, as many as a call makes; None where they stand
        now."""
        if not pairs or self.rounds >= self.plan.again:
            return None
        ordered = sorted(pairs, key=lambda pair: pair.later.place)[: self.plan.together]
        places = " ".join(str(pair.later.place) for pair in ordered)
        number = self.rounds + 1
        return Call(
            part=f"again {number}: {places}",
            number=self.calls + number,
            count=len(ordered),
            profile=False,
            reason=f"near-duplicates: {'; '.join(map(str, ordered))}",
            alike=tuple(ordered),
        )


def draft(plan: Plan, keep: Sequence[Mapping[str, Any]], held: Held) -> Draft:
    """What the answers amount to. Raises Unusable where it makes no sense to ask on."""
    kept = [body for body in keep if body.get("kind") == "persona"]
    profile = next((as_profile(body) for body in keep if body.get("kind") == "community"), None)
    entries = [Entry(place_of(body["id"]), 0, {**persona(body), "id": body["id"]}) for body in kept]
    taken = {entry.place for entry in entries}
    wanted = max(plan.count - len(entries), 0)
    calls = max(-(-wanted // plan.together), int(profile is None))

    made: list[Body] = []
    fruitless = last = rests = 0
    for number, rest, answer in _mains(held):
        before = len(made), profile is None
        profile = profile or as_profile(answer.get("community"))
        made += personas(answer)
        fruitless = 0 if (len(made), profile is None) != before else fruitless + 1
        last, rests = number, rest
    if fruitless >= MOST_FRUITLESS:
        raise Unusable(f"{fruitless} answers in a row held no whole persona")

    due = min(wanted, last * plan.together)  # by the calls so far
    missing: Call | None = None
    if last and (len(made) < due or (len(made) >= wanted and profile is None)):
        part = f"{last}/{max(calls, last)} rest {rests + 1}"
        missing = Call(part, last, max(due - len(made), 0), profile is None, "rest")
    elif len(made) < wanted or profile is None:
        number = max(last + 1, len(made) // plan.together + 1)
        count = min(wanted, number * plan.together) - len(made)
        part = f"{number}/{max(calls, number)}"
        missing = Call(part, number, count, profile is None)

    free = _free(taken, wanted)
    by_place = {
        place: Entry(place, 1, body) for place, body in zip(free, made[:wanted], strict=False)
    }
    replaced: list[Entry] = []
    rounds = 0
    for round, places, answer in _agains(held):
        rounds = max(rounds, round)
        for place, body in zip(places, personas(answer), strict=False):
            if place in by_place:  # it may not be, under other settings
                replaced.append(by_place[place])
                by_place[place] = Entry(place, round + 1, body)
    entries += sorted(by_place.values(), key=lambda entry: (entry.round, entry.place))
    entries.sort(key=lambda entry: entry.round)
    return Draft(
        plan,
        profile,
        tuple(entries),
        tuple(replaced),
        missing,
        rounds,
        calls,
        frozenset(taken),
    )


def near(entries: Sequence[Entry], vectors: NDArray[np.float32], similarity: float) -> list[Pair]:
    """Those that are more alike to one before them than `similarity` allows, each with the one that
    it is nearest to. `vectors` has a row of length 1 for each entry, in their order. One that is to
    go makes no other one go. What was kept of an earlier set stays."""
    cosines = vectors @ vectors.T
    standing: list[int] = []
    pairs: list[Pair] = []
    for number, entry in enumerate(entries):
        row = cosines[number, standing]
        if entry.round and len(row) and float(row.max()) > similarity:
            nearest = standing[int(row.argmax())]
            pairs.append(Pair(entry, entries[nearest], float(row.max())))
        else:
            standing.append(number)
    return pairs


# What answers hold.


def personas(answer: Mapping[str, Any]) -> list[Body]:
    """The whole personas of an answer, tidied; one with an empty field is as good as not there."""
    found = answer.get("personas")
    tidied = [persona(body) for body in found or () if isinstance(body, Mapping)]
    return [body for body in tidied if all(body.values())]


def persona(body: Mapping[str, Any]) -> Body:
    return {
        name: _text(body.get(name)) if name in TEXTS else _texts(body.get(name)) for name in FIELDS
    }


def as_profile(body: object) -> Body | None:
    """What a community is about, its tone and its themes; None where something of it is missing."""
    if not isinstance(body, Mapping):
        return None
    profile: Body = {
        "about": _text(body.get("about")),
        "tone": _text(body.get("tone")),
        "themes": _texts(body.get("themes")),
    }
    return profile if all(profile.values()) else None


def place_of(id: str) -> int:
    """The place in "persona:reddit:technology:1-07"."""
    return int(id.rpartition("-")[2])


def text_of(body: Mapping[str, Any]) -> str:
    """What a persona's vector stands for. Not its name: twins with two names are twins."""
    return ". ".join(
        [
            f"{body['occupation']}, {body['age_range']}",
            *(", ".join(body[name]) for name in ("interests", "goals", "frustrations")),
            body["tone_of_voice"],
            *body["typical_posts"],
        ]
    )


def text_of_community(name: str, profile: Mapping[str, Any]) -> str:
    return ". ".join([name, profile["about"], ", ".join(profile["themes"]), profile["tone"]])


# Evidence. A post is shown to the model under a short name, and the name alone leads back to its
# id: a set that is kept has to be resolved when the community shows other posts.


def short(id: str, platform: str) -> str:
    """ "post:reddit:abc" as "abc"; any other id as it is."""
    native = id.removeprefix(f"post:{platform}:")
    return id if ":" in native else native


def full(name: str, platform: str) -> str:
    return name if ":" in name else f"post:{platform}:{name}"


def shown(value: Mapping[str, Any], platform: str, most: int) -> list[Body]:
    """The posts of a community that a model is shown: those of its best that say something."""
    posts = [
        {
            "id": short(post["id"], platform),
            "text": _text(post.get("title") or post.get("text")),
            "score": post.get("score", 0),
        }
        for post in value.get("best_posts") or ()
    ]
    return [post for post in posts if post["text"]][:most]


def _mains(held: Held) -> list[tuple[int, int, Mapping[str, Any]]]:
    """(number of the call, of its rest, answer) in the order that they were asked in."""
    found = [(match, answer) for part, answer in held.items() if (match := _MAIN.fullmatch(part))]
    numbered = [
        (int(match[1]), int(match[3] or 0), int(match[2]), answer) for match, answer in found
    ]
    numbered.sort(key=lambda one: one[:3])
    return [(number, rest, answer) for number, rest, _, answer in numbered]


def _agains(held: Held) -> list[tuple[int, list[int], Mapping[str, Any]]]:
    found = [(match, answer) for part, answer in held.items() if (match := _AGAIN.fullmatch(part))]
    rounds = [(int(match[1]), [int(place) for place in match[2].split()], answer)
              for match, answer in found]  # fmt: skip
    return sorted(rounds, key=lambda one: one[:2])


def _free(taken: Iterable[int], count: int) -> list[int]:
    occupied = set(taken)
    return [place for place in range(1, count + len(occupied) + 1) if place not in occupied][:count]


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    flat = " ".join("".join(c for c in value if c.isprintable() or c.isspace()).split())
    return flat[:_LONGEST] if any(map(str.isalnum, flat)) else ""  # "," says nothing


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return list(dict.fromkeys(filter(None, map(_text, value))))[:_MOST]
