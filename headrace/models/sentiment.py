"""Negative, neutral or positive: VADER and hashed words in a small linear model, for English.

The model is linear in sums over a text's own words. Weights of words are small integers, so a
text's sums are exact whatever stands beside it in a batch and however its words are ordered.

`bench/train_sentiment.py` trains it with the features made here; its figures are in
data/METRICS.md and, with what it was trained on, in data/sentiment.json.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import orjson
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from headrace.errors import HeadraceError
from headrace.text import decode

Label = Literal["negative", "neutral", "positive"]
LABELS: tuple[Label, ...] = ("negative", "neutral", "positive")
LANGUAGES = frozenset(("en",))  # what the model can read
FAMILIES = ("word", "pair", "negated", "part")
BUCKETS = 1 << 20  # so many that strangers seldom meet
MAX_WORDS = 1_000  # of a text; the rest of a longer one is not read
MAX_CHARACTERS = 8_000
VADER_WORDS = 60

_LINK = re.compile(r"(?:https?://|www\.)\S+|\bhttp\b")
_USER = re.compile(r"@\w+")
_TOKEN = re.compile(
    r"[#@]?\w+(?:'\w+)*"
    r"|[:;=8xX][-'^o]?[)(DPp/\\|*3\]\[]+|<3+"  # emoticons
    r"|[\U0001f000-\U0001faff\u2600-\u27bf]|[!?]+|\.\.+"
)
_STRETCH = re.compile(r"(\w)\1{2,}")
_NEGATION = re.compile(
    r"(?:no|not|never|none|nobody|nothing|neither|nor|without|hardly|barely|cannot|\w+n't|dont|cant|"
    r"wont|didnt|doesnt|isnt|aint|wasnt|couldnt|shouldnt|wouldnt)"
)
_BOOST = frozenset(("absolutely", "completely", "damn", "extremely", "freaking", "fucking")) | {
    *("incredibly", "most", "really", "so", "such", "super", "too", "totally", "very")
}
_TURN = frozenset(("but", "however", "though", "yet"))
_NEGATION_REACH = 4  # words after a negation that it turns round


@dataclass(frozen=True, slots=True)
class Sentiment:
    """``score`` is the positive minus the negative probability; ``confidence`` the label's own."""

    label: Label
    score: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Features:
    """What the model sees of a text: distinct features by family, their norm, and 31 numbers."""

    hashed: dict[str, list[str]]
    norm: float
    dense: list[float]


def features(text: str) -> Features:
    """The features of one text, for training and for use."""
    plain = prepare(text)
    tokens = _tokens(plain)
    pairs: dict[str, None] = {}
    negated: dict[str, None] = {}
    previous = "<"
    reach = 0
    for token in tokens:
        pairs[f"{previous} {token}"] = None
        previous = token
        if reach and token.isalpha():
            negated[token] = None
        if _NEGATION.fullmatch(token):
            reach = _NEGATION_REACH
        elif token[0] in ".!?":
            reach = 0
        elif reach:
            reach -= 1
    words = dict.fromkeys(tokens)
    words.update(dict.fromkeys(token[1:] for token in tokens if token[0] == "#"))
    return Features(
        {"word": list(words), "pair": list(pairs), "negated": list(negated)},
        1 / (5 * math.sqrt(max(4, len(tokens)))),
        _vader(plain) + _lexicon(plain),
    )


def parts(word: str) -> list[str]:
    """Pieces of three to five letters, for words never seen and for misspellings."""
    if not word.lstrip("#").isalpha():
        return []
    framed = f"<{word.lstrip('#')}>"[:40]
    return [
        framed[start : start + length]
        for length in (3, 4, 5)
        for start in range(len(framed) - length + 1)
    ]


def bucket(family: str, name: str) -> int:
    """Where a feature's weights stand; the same on every machine."""
    return zlib.crc32(f"{family}:{name}".encode()) & (BUCKETS - 1)


def prepare(text: str) -> str:
    """The part of a text that is read, with addresses and people made alike."""
    plain = decode(text[:MAX_CHARACTERS]).replace("’", "'")
    plain = _USER.sub(" _user_ ", _LINK.sub(" _url_ ", plain))
    return " ".join(plain.split(maxsplit=MAX_WORDS)[:MAX_WORDS])


def _tokens(plain: str) -> list[str]:
    tokens = []
    for token in _TOKEN.findall(_STRETCH.sub(r"\1\1", plain.lower())):
        if token.isdigit():
            token = "_num_"
        elif token[0] in "!?":
            token = token[0] + ("+" if len(token) > 1 else "")
        tokens.append(token)
    return tokens


@lru_cache(maxsize=1)
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def _verdict(plain: str) -> dict[str, float]:
    """VADER's four figures. Its time grows with the square of a text's words, so a long text is
    read in pieces and their figures are averaged by length."""
    words = plain.split()
    if len(words) <= VADER_WORDS:
        return _analyzer().polarity_scores(plain)  # type: ignore[no-any-return]
    total = dict.fromkeys(("compound", "pos", "neg", "neu"), 0.0)
    for start in range(0, len(words), VADER_WORDS):
        piece = words[start : start + VADER_WORDS]
        for name, figure in _analyzer().polarity_scores(" ".join(piece)).items():
            total[name] += figure * len(piece) / len(words)
    return total


def _vader(plain: str) -> list[float]:
    verdict = _verdict(plain)
    compound, positive, negative = verdict["compound"], verdict["pos"], verdict["neg"]
    shouted = sum(1 for word in plain.split() if len(word) > 1 and word.isupper())
    return [
        compound,
        positive,
        negative,
        verdict["neu"],
        float(compound > 0.05),
        float(compound < -0.05),
        abs(compound),
        float(compound == 0),
        positive - negative,
        float("!" in plain),
        float("?" in plain),
        min(shouted, 4) / 4,
        float("_url_" in plain),
        float("_user_" in plain),
        min(len(plain), 200) / 100,
    ]


def _lexicon(plain: str) -> list[float]:
    """What the words of VADER's lexicon say one by one: how much, negated or not, and where."""
    lexicon: dict[str, float] = _analyzer().lexicon
    liked = disliked = not_liked = not_disliked = 0.0
    best = worst = first = last = turned = 0.0
    found = reach = 0
    boosted = but = False
    words = plain.split()
    for written in words:
        bare = written.strip(".,!?:;\"()'") if len(written) > 3 else written
        word = bare.lower()
        value = lexicon.get(word, 0.0) or lexicon.get(word.lstrip("#"), 0.0)
        if value:
            found += 1
            weight = abs(value) * (1.3 if boosted else 1.0) * (1.2 if bare.isupper() else 1.0)
            if reach:
                if value > 0:
                    not_liked += weight
                else:
                    not_disliked += weight
                value *= -0.7
            elif value > 0:
                liked += weight
            else:
                disliked += weight
            best, worst, last = max(best, value), min(worst, value), value
            first = first or value
            if but:
                turned += value
        boosted = word in _BOOST
        if _NEGATION.fullmatch(word):
            reach = _NEGATION_REACH
        elif reach:
            reach -= 1
        but = but or word in _TURN
    count = max(1, len(words))
    return [
        liked / (liked + 4),
        disliked / (disliked + 4),
        not_liked / (not_liked + 4),
        not_disliked / (not_disliked + 4),
        best / 4,
        worst / 4,
        last / 4,
        first / 4,
        min(found, 5) / 5,
        found / count,
        (liked - disliked) / math.sqrt(count),
        math.tanh(turned / 3),
        float(but),
        float(found == 0),
        float(liked > disliked),
        float(disliked > liked),
    ]


def verdict(probabilities: Sequence[float]) -> Sentiment:
    """The most probable of LABELS; of equals the first."""
    negative, _, positive = probabilities
    confidence = max(probabilities)
    label = LABELS[list(probabilities).index(confidence)]
    return Sentiment(label, round(positive - negative, 4), round(confidence, 4))


class SentimentModel:
    """The trained model. Read-only after loading, so one serves all batches of a process."""

    def __init__(self, weights: dict[str, Any], about: dict[str, Any]) -> None:
        table = np.ascontiguousarray(weights["table"], dtype=np.int8)
        if table.shape != (BUCKETS, len(LABELS)):
            raise HeadraceError("the sentiment model's file does not fit this code; reinstall it")
        self._table = memoryview(table.tobytes()).cast("b")
        self._scales = dict(zip(FAMILIES, weights["scales"].tolist(), strict=True))
        self._dense: list[list[float]] = weights["dense"].tolist()
        self._intercept: list[float] = weights["intercept"].tolist()
        self.version: str = about["version"]
        self._word = lru_cache(maxsize=50_000)(self._sum_of_word)

    @classmethod
    def load(cls) -> SentimentModel:
        """The model that the package ships."""
        folder = resources.files("headrace.models") / "data"
        try:
            packed = (folder / "sentiment.npz").read_bytes()
            about = orjson.loads((folder / "sentiment.json").read_bytes())
            with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
                return cls({name: arrays[name] for name in arrays.files}, about)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise HeadraceError(
                f"the sentiment model cannot be read ({error}); reinstall headrace, or run "
                "bench/train_sentiment.py"
            ) from None

    def classify(self, text: str) -> Sentiment:
        """Label, score and confidence of one English text."""
        odds = [
            1 / (1 + math.exp(-max(-30.0, min(30.0, one)))) for one in self.sums(features(text))
        ]
        total = sum(odds)
        return verdict([value / total for value in odds])

    def sums(self, seen: Features) -> list[float]:
        """What the model says for each of LABELS, before it becomes a probability."""
        sums = list(self._intercept)
        for position, row in enumerate(self._dense):
            value = seen.dense[position]
            for label in range(3):
                sums[label] += value * row[label]
        words = [self._word(word) for word in seen.hashed["word"]]
        both = [sum(column) for column in zip(*words, strict=True)] or [0] * 6
        found = {
            "word": both[:3],
            "part": both[3:],
            "pair": self._sum("pair", seen.hashed["pair"]),
            "negated": self._sum("negated", seen.hashed["negated"]),
        }
        for family in FAMILIES:
            scale = self._scales[family] * seen.norm
            for label in range(3):
                sums[label] += found[family][label] * scale
        return sums

    def classify_all(self, texts: Sequence[str]) -> list[Sentiment]:
        """Each text by itself: its answer does not depend on its neighbours."""
        return [self.classify(text) for text in texts]

    def _sum(self, family: str, names: list[str]) -> list[int]:
        table = self._table
        sums = [0, 0, 0]
        for name in names:
            at = 3 * bucket(family, name)
            sums[0] += table[at]
            sums[1] += table[at + 1]
            sums[2] += table[at + 2]
        return sums

    def _sum_of_word(self, word: str) -> tuple[int, ...]:
        return (*self._sum("word", [word]), *self._sum("part", parts(word)))
