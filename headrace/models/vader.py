"""VADER's rules in one pass over the words of a text.

vaderSentiment goes through all words again for each word that it scores, so its time grows with
the square of a text's length. Here the same lexicon, lists and numbers are applied by looking at a
word's neighbours alone; a test holds the two against each other.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from vaderSentiment.vaderSentiment import (
    BOOSTER_DICT,
    C_INCR,
    N_SCALAR,
    NEGATE,
    SPECIAL_CASES,
    SentimentIntensityAnalyzer,
)

_NEGATIONS = frozenset(NEGATE)
_FADING = (1.0, 0.95, 0.9)  # what a booster is worth one, two and three words before
_CONFIRMING = ("so", "this")  # as in "never so good"
_CHANGING = _NEGATIONS | BOOSTER_DICT.keys() | {"no", "least", *_CONFIRMING}
_PHRASES = tuple(phrase for phrase in (*SPECIAL_CASES, *BOOSTER_DICT) if " " in phrase)
_SOFTNESS = 15  # how slowly the compound figure nears one


class Verdict(NamedTuple):
    compound: float
    positive: float
    negative: float
    neutral: float


@lru_cache(maxsize=1)
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=1)
def lexicon() -> dict[str, float]:
    """Words in lower case, and emoticons, with −4…4."""
    found: dict[str, float] = _analyzer().lexicon
    return found


@lru_cache(maxsize=1)
def _emoji() -> tuple[re.Pattern[str], dict[str, str]]:
    names = {sign: name for sign, name in _analyzer().emojis.items() if len(sign) == 1}
    return re.compile(f"[{re.escape(''.join(names))}]"), names


def _spell_out(text: str) -> str:
    """``text`` with the names of its emoji in their places; itself where it has none."""
    if text.isascii():
        return text
    signs, names = _emoji()

    def name(match: re.Match[str]) -> str:
        start = match.start()
        return ("" if start == 0 or text[start - 1] == " " else " ") + names[match[0]]

    return signs.sub(name, text)


def bare(words: Sequence[str]) -> list[str]:
    """Words without the signs around them; what is left of a short one may be an emoticon, so it
    stays as it is."""
    return [word if len(inner := word.strip(string.punctuation)) <= 2 else inner for word in words]


def verdict(written: list[str], words: list[str]) -> Verdict:
    """VADER's four figures for a text, of whose words those without signs around them, in lower
    case, are given too."""
    text = " ".join(written)
    spelt = _spell_out(text)
    if spelt != text:
        text, written, words = spelt, spelt.split(), bare(spelt.lower().split())
    counting = _counting()
    places = [at for at, word in enumerate(words) if word in counting]
    if not places:
        return Verdict(0.0, 0.0, 0.0, 1.0 if words else 0.0)
    reading = _Reading(words, written)
    values: list[float] = []
    turn = -1
    for at in places:
        if words[at] != "but":
            values.append(reading.value(at))
        elif turn < 0:
            turn = len(values)
    if turn >= 0:
        _turn(values, turn)
    emphasis = min(text.count("!"), 4) * 0.292
    questions = text.count("?")
    if questions > 1:
        emphasis += questions * 0.18 if questions <= 3 else 0.96
    total = sum(values)
    if total:
        total += emphasis if total > 0 else -emphasis
    liked = sum([value + 1 for value in values if value > 0])
    disliked = sum([1 - value for value in values if value < 0])
    neutral = len(words) - sum([value != 0 for value in values])
    if liked > disliked:
        liked += emphasis
    elif liked < disliked:
        disliked += emphasis
    whole = liked + disliked + neutral
    return Verdict(
        round(total / math.sqrt(total * total + _SOFTNESS), 4),
        round(liked / whole, 3),
        round(disliked / whole, 3),
        round(neutral / whole, 3),
    )


@lru_cache(maxsize=1)
def _counting() -> frozenset[str]:
    """Words that are scored, and "but"."""
    return frozenset(lexicon()) - frozenset(BOOSTER_DICT) | {"but"}


class _Reading:
    """The words of a text, in lower case and as written."""

    def __init__(self, words: list[str], written: list[str]) -> None:
        self._words = words
        self._written = written
        self._lexicon = lexicon()
        # Capitals say something where not all words have them.
        self._mixed = 0 < sum(map(str.isupper, written)) < len(written)
        joined = " ".join(words)
        self._contracted = "n't" in joined
        self._phrased = any(phrase in joined for phrase in _PHRASES)

    def value(self, at: int) -> float:
        """What a scored word says among its neighbours."""
        words, lexicon = self._words, self._lexicon
        word = words[at]
        known = value = lexicon[word]
        before = words[max(0, at - 3) : at][::-1]  # the nearest first
        following = words[at + 1] if at + 1 < len(words) else ""
        if word == "kind" and following == "of":
            return 0.0
        plain = _CHANGING.isdisjoint(before) and not (
            self._contracted and "n't" in " ".join(before)
        )
        if word == "no" and following in lexicon:
            value = 0.0
        if not plain and (
            "no" in before[:2] or (before[2:] == ["no"] and before[0] in ("or", "nor"))
        ):
            value = known * N_SCALAR
        if self._mixed and self._written[at].isupper():
            value += C_INCR if value > 0 else -C_INCR
        if plain and not self._phrased:
            return value
        for distance, neighbour in enumerate(before):
            if neighbour in lexicon:
                continue
            boost = BOOSTER_DICT.get(neighbour, 0.0)
            if boost:
                if value < 0:
                    boost = -boost
                if self._mixed and self._written[at - distance - 1].isupper():
                    boost += C_INCR if value > 0 else -C_INCR
                value += boost * _FADING[distance]
            value *= _negation(before, distance)
            if distance == 2 and self._phrased:
                value = _phrase(word, before, words[at + 1 : at + 3], value)
        if before and before[0] == "least" and before[1:2] not in (["at"], ["very"]):
            value *= N_SCALAR
        return value


def _negation(before: list[str], distance: int) -> float:
    """What a value is multiplied with for the word so many places before the nearest one."""
    word = before[distance]
    if distance and word == "never" and before[distance - 1] in _CONFIRMING:
        return 1.25
    if distance == 2 and before[0] in _CONFIRMING:
        return 1.25  # whatever the third word before is
    if distance and word == "without" and "doubt" in before[:distance]:
        return 1.0
    return N_SCALAR if word in _NEGATIONS or "n't" in word else 1.0


def _phrase(own: str, before: list[str], after: list[str], value: float) -> float:
    """The value of a special phrase in place of its word's, with boosters of several words."""
    one, two, three = before
    for phrase in (
        f"{one} {own}",
        f"{two} {one} {own}",
        f"{two} {one}",
        f"{three} {two} {one}",
        f"{three} {two}",
    ):
        if phrase in SPECIAL_CASES:
            value = SPECIAL_CASES[phrase]
            break
    for length in range(1, len(after) + 1):
        value = SPECIAL_CASES.get(" ".join([own, *after[:length]]), value)
    for phrase in (f"{three} {two} {one}", f"{three} {two}", f"{two} {one}"):
        value += BOOSTER_DICT.get(phrase, 0.0)
    return value


def _turn(values: list[float], turn: int) -> None:
    """Halve the values before a "but" and raise those after it; of equal ones the first takes it
    each time, as in vaderSentiment."""
    for at in range(len(values)):
        first = values.index(values[at])
        values[first] *= 0.5 if first < turn else 1.5
