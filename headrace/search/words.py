"""How well texts answer words, counted over all collections that are asked. Pure.

Weaviate weighs a word by how rare it is in its collection, so that the scores of two collections
say nothing about each other: `flight` is rare among recipes and means little among airlines. Here a
word's weight is that of all records together; the rest is BM25 as it is known.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

_SATURATION, _LENGTH = 1.2, 0.75  # BM25's k1 and b, as Weaviate has them
_TITLE = 2  # a word of the title counts as often
_TOKEN = re.compile(r"[^\W_]+")
# Weaviate's own list for English: it does not look for these either.
_LITTLE = frozenset(
    """a an and are as at be but by for if in into is it no not of on or such that the their then
    there these they this to was will with""".split()  # noqa: SIM905  (a list is longer to read)
)


def terms(words: str) -> list[str]:
    """What is looked for: each word once, in small letters, without those that say nothing."""
    return [word for word in dict.fromkeys(tokens(words)) if word not in _LITTLE]


def tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def weights(holding: Mapping[str, int], total: int) -> dict[str, float]:
    """By term, from the number of records that hold it: the rarer, the more."""
    return {
        term: math.log(1 + (max(total - count, 0) + 0.5) / (count + 0.5))
        for term, count in holding.items()
    }


def scores(texts: Sequence[tuple[str, str]], weight: Mapping[str, float]) -> list[float]:
    """For (title, body) each; 0 where no term stands. Lengths are measured against their mean."""
    counted = [_counted(title, body, weight) for title, body in texts]
    mean = sum(length for _, length in counted) / max(len(counted), 1) or 1.0
    found = []
    for counts, length in counted:
        norm = _SATURATION * (1 - _LENGTH + _LENGTH * length / mean)
        found.append(
            sum(
                weight[term] * count * (_SATURATION + 1) / (count + norm)
                for term, count in counts.items()
            )
        )
    return found


def _counted(title: str, body: str, wanted: Mapping[str, float]) -> tuple[Counter[str], int]:
    words = tokens(body)
    counts = Counter(word for word in words if word in wanted)
    for word in tokens(title):
        if word in wanted:
            counts[word] += _TITLE
    return counts, len(words)
