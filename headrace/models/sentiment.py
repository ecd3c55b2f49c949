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
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple, TypeVar
from zlib import crc32

import numpy as np
import orjson

from headrace.errors import HeadraceError
from headrace.models import vader
from headrace.models.kept import Kept
from headrace.text import decode

Integers = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[Any]]
Number = TypeVar("Number", int, Integers)
Label = Literal["negative", "neutral", "positive"]
LABELS: tuple[Label, ...] = ("negative", "neutral", "positive")
LANGUAGES = frozenset(("en",))  # what the model can read
FAMILIES = ("word", "pair", "negated", "part")
BUCKETS = 1 << 20  # so many that strangers seldom meet
MAX_WORDS = 1_000  # of a text; the rest of a longer one is not read
MAX_CHARACTERS = 8_000
VADER_WORDS = 60
MAX_TOKEN = 40  # characters that are read of one
TOGETHER = 256  # texts that are summed up at once

_LINK = re.compile(r"(?:https?://|www\.)\S+|\bhttp\b")
_USER = re.compile(r"@\w+")
_TOKEN = re.compile(
    r"[#@]?\w+(?:'\w+)*"
    r"|[:;=8xX][-'^o]?[)(DPp/\\|*3\]\[]+|<3+"  # emoticons
    r"|[\U0001f000-\U0001faff\u2600-\u27bf]|[!?]+|\.\.+"
)
_STRETCH = re.compile(r"(\w)\1{2,}")
_DENYING = frozenset(("no", "not", "never", "none", "nobody", "nothing", "neither", "nor")) | {
    *("without", "hardly", "barely", "cannot", "dont", "cant", "wont", "didnt", "doesnt", "isnt"),
    *("aint", "wasnt", "couldnt", "shouldnt", "wouldnt"),
}
_BOOST = frozenset(("absolutely", "completely", "damn", "extremely", "freaking", "fucking")) | {
    *("incredibly", "most", "really", "so", "such", "super", "too", "totally", "very")
}
_TURN = frozenset(("but", "however", "though", "yet"))
_NEGATION_REACH = 4  # words after a negation that it turns round
_BEGIN = crc32(b"pair:< ")
_NEGATED = crc32(b"negated:")
_PART = crc32(b"part:")


@dataclass(frozen=True, slots=True)
class Sentiment:
    """``score`` is the positive minus the negative probability; ``confidence`` the label's own."""

    label: Label
    score: float
    confidence: float


class Features(NamedTuple):
    """What the model sees of a text: its distinct words, the hashes of its distinct pairs and of
    its negated words, their norm, and 31 numbers."""

    words: set[str]
    pairs: set[int]
    negated: set[int]
    norm: float
    dense: list[float]


class _Token(NamedTuple):
    name: str
    tail: bytes
    leads: int  # the hash of a pair up to its second word
    can_be_negated: bool
    negates: bool
    ends: bool  # the reach of a negation


def features(text: str) -> Features:
    """The features of one text, for training and for use."""
    plain = prepare(text)
    lower = plain.lower()
    tokens = list(map(_TOKENS.__getitem__, _TOKEN.findall(lower)))
    names = {token.name for token in tokens}
    pairs = {crc32(b.tail, a.leads) for a, b in pairwise(tokens)}
    if tokens:
        pairs.add(crc32(tokens[0].tail, _BEGIN))
    if "#" in plain:
        names |= {name[1:] for name in names if name[0] == "#"}
    written, words = plain.split(), vader.bare(lower.split())
    return Features(
        names,
        pairs,
        _negated(tokens),
        1 / (5 * math.sqrt(max(4, len(tokens)))),
        _vader(plain, written, words) + _lexicon(written, words),
    )


def hashed(family: str, name: str) -> int:
    """What stands for a feature in place of its name; the same on every machine."""
    return crc32(f"{family}:{name}".encode())


def bucket(number: Number) -> Number:
    """Where the weights of a hashed feature stand; of an array's, an array."""
    return number & (BUCKETS - 1)


def parts(word: str) -> list[int]:
    """Hashes of the pieces of three to five letters, for words never seen and for misspellings."""
    bare = word.lstrip("#")
    if not bare.isalpha():
        return []
    framed = f"<{bare}>"
    return [
        crc32(framed[start : start + length].encode(), _PART)
        for length in (3, 4, 5)
        for start in range(len(framed) - length + 1)
    ]


def prepare(text: str) -> str:
    """The part of a text that is read, with addresses and people made alike."""
    plain = decode(text[:MAX_CHARACTERS]).replace("’", "'")
    if "http" in plain or "www." in plain:
        plain = _LINK.sub(" _url_ ", plain)
    if "@" in plain:
        plain = _USER.sub(" _user_ ", plain)
    return " ".join(plain.split(maxsplit=MAX_WORDS)[:MAX_WORDS])


def _token(found: str) -> _Token:
    found = _STRETCH.sub(r"\1\1", found)[:MAX_TOKEN]
    if found.isdigit():
        found = "_num_"
    elif found[0] in "!?":
        found = found[0] + ("+" if len(found) > 1 else "")
    return _Token(
        found,
        found.encode(),
        hashed("pair", f"{found} "),
        found.isalpha(),
        found in _DENYING or found.endswith("n't"),
        found[0] in ".!?",
    )


_TOKENS = Kept(_token, 50_000)


def _negated(tokens: list[_Token]) -> set[int]:
    """Hashes of the words that a negation turns round."""
    found: set[int] = set()
    for at in [at for at, token in enumerate(tokens) if token.negates]:
        for token in tokens[at + 1 : at + 1 + _NEGATION_REACH]:
            if token.can_be_negated:
                found.add(crc32(token.tail, _NEGATED))
            if token.ends:
                break
    return found


def _verdict(written: list[str], words: list[str]) -> vader.Verdict:
    """VADER's four figures. It was made for sentences, so a long text is read in pieces and their
    figures are averaged by length."""
    if len(words) <= VADER_WORDS:
        return vader.verdict(written, words)
    sums = [0.0] * 4
    for start in range(0, len(words), VADER_WORDS):
        piece = slice(start, start + VADER_WORDS)
        share = len(words[piece]) / len(words)
        for at, figure in enumerate(vader.verdict(written[piece], words[piece])):
            sums[at] += figure * share
    return vader.Verdict(*sums)


def _vader(plain: str, written: list[str], words: list[str]) -> list[float]:
    compound, positive, negative, neutral = _verdict(written, words)
    shouted = sum([len(word) > 1 for word in written if word.isupper()])
    return [
        compound,
        positive,
        negative,
        neutral,
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


def _lexicon(written: list[str], words: list[str]) -> list[float]:
    """What the words of VADER's lexicon say one by one: how much, negated or not, and where."""
    lexicon = vader.lexicon()
    liked = disliked = not_liked = not_disliked = 0.0
    best = worst = first = last = turned = 0.0
    found = 0
    but = False
    for at in [at for at, word in enumerate(words) if word in lexicon or word in _TURN]:
        if words[at] in _TURN:
            but = True
            continue
        value = lexicon[words[at]]
        found += 1
        weight = abs(value)
        before = words[max(0, at - _NEGATION_REACH) : at]
        if before and before[-1] in _BOOST:
            weight *= 1.3
        if written[at].isupper():
            weight *= 1.2
        if not _DENYING.isdisjoint(before) or "n't" in " ".join(before):
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
    """The trained model. Nothing but a memory of words changes after loading, so one serves all
    batches of a process."""

    def __init__(self, weights: dict[str, Any], about: dict[str, Any]) -> None:
        self._table = np.ascontiguousarray(weights["table"], dtype=np.int8)
        if self._table.shape != (BUCKETS, len(LABELS)):
            raise HeadraceError("the sentiment model's file does not fit this code; reinstall it")
        self._scales = dict(zip(FAMILIES, weights["scales"].tolist(), strict=True))
        self._dense = np.asarray(weights["dense"], dtype=np.float64)
        self._intercept = np.asarray(weights["intercept"], dtype=np.float64)
        self.version: str = about["version"]
        self._words = Kept(self._row, 50_000)

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
        return self.classify_all([text])[0]

    def classify_all(self, texts: Sequence[str]) -> list[Sentiment]:
        """Each text by itself: its answer does not depend on its neighbours."""
        found: list[Sentiment] = []
        for start in range(0, len(texts), TOGETHER):
            seen = [features(text) for text in texts[start : start + TOGETHER]]
            found += map(_sentiment, self.sums(seen).tolist())
        return found

    def sums(self, seen: Sequence[Features]) -> Floats:
        """What the model says for each of LABELS before it becomes a probability, a row a text.

        Integers are added, or columns one by one, so no row depends on another to the last bit."""
        dense = np.array([text.dense for text in seen])
        sums = np.tile(self._intercept, (len(seen), 1))
        for column, weights in zip(dense.T, self._dense, strict=True):
            sums += column[:, None] * weights
        rows = b"".join([self._words[word] for text in seen for word in text.words])
        words = _by_text(
            np.frombuffer(rows, dtype=np.int16).reshape(-1, 2 * len(LABELS)),
            [len(text.words) for text in seen],
        )
        found = {
            "word": words[:, : len(LABELS)],
            "part": words[:, len(LABELS) :],
            "pair": self._hashed([text.pairs for text in seen]),
            "negated": self._hashed([text.negated for text in seen]),
        }
        norms = np.array([text.norm for text in seen])
        for family in FAMILIES:
            sums += found[family] * (self._scales[family] * norms)[:, None]
        return sums

    def _hashed(self, seen: list[set[int]]) -> Integers:
        lengths = [len(numbers) for numbers in seen]
        numbers = np.fromiter(chain.from_iterable(seen), np.int64, count=sum(lengths))
        return _by_text(self._table[bucket(numbers)], lengths)

    def _row(self, word: str) -> bytes:
        """The weights of a word and the sums of its parts', two bytes each."""
        own = self._table[bucket(hashed("word", word))].astype(np.int16)
        pieces = self._table[bucket(np.array(parts(word), dtype=np.int64))]
        both = np.concatenate((own, pieces.sum(axis=0, dtype=np.int16)))
        return bytes(both.tobytes())


def _by_text(rows: Rows, lengths: list[int]) -> Integers:
    """Sums of the rows of each text, which has so many."""
    ends = np.cumsum(lengths)
    total = np.zeros((len(rows) + 1, rows.shape[1]), dtype=np.int64)
    np.cumsum(rows, axis=0, out=total[1:])
    sums: Integers = total[ends] - total[ends - lengths]
    return sums


def _sentiment(sums: list[float]) -> Sentiment:
    odds = [1 / (1 + math.exp(-max(-30.0, min(30.0, value)))) for value in sums]
    total = sum(odds)
    return verdict([value / total for value in odds])
