"""Finds the names of a dictionary in text: longest match, offsets, measured confidence.

A dictionary is a folder:

    terms.tsv.gz        term, type, class, name: made by bench/build_dictionary.py
    common.tsv          name, type, other spellings between bars: written by hand
    <platform>.tsv      the same, for texts of one platform only
    everyday.txt.gz     words that are mostly written without a capital, to class the lists by hand
    confidence.json     class → form → precision, measured on held-in data by the same script

A *class* says where a term comes from and how much like an everyday word it is, a *form* how it
stands in the text (as in the dictionary, first in its sentence, in lower case, in a hashtag, a
place after "in" or "from", …).
Nothing else decides what a match is worth, so case rules are measured and not set by hand.

Offsets count Unicode code points of the text given, which is never changed.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import ConfigError

TYPES = frozenset(("brand", "product", "organisation", "place", "person"))
METHOD = "dictionary"
FORMS = (
    *("exact", "beside", "cased", "first", "upper", "loud", "crowd", "lower", "tag"),
    *("placed", "placed_lower"),
)
MAX_WORDS = 8
MAX_MATCHES = 1_000  # of one text; a list of all towns is no news

_TOKEN = re.compile(r"[@#]?\w+")
_GAP = re.compile(r"[ \t]|[ \t]?(?:&amp;|[-&'’/+])[ \t]?")
_DOTS = frozenset((".", ". ", " .", " . "))  # "St. Louis", "J.K. Rowling", but no end of a sentence
_URL = re.compile(r"(?:https?://|www\.)\S+")
_WORDS = re.compile(r"\w+")

# Before a place, and seldom before another use of its name.
_PLACING = frozenset(("in", "at", "from", "to", "near", "outside", "around", "through", "across"))
_PLACED = dict.fromkeys(("exact", "cased", "upper", "loud"), "placed") | {"lower": "placed_lower"}

# type, class, name; a name of None is the term as it stands in the text's own spelling
Entry = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Match:
    """A dictionary term at ``text[start:end]``; ``name`` is how the dictionary spells it."""

    text: str
    name: str
    type: str
    start: int
    end: int
    confidence: float
    kind: str  # class and form, what the confidence was measured for

    def as_result(self) -> dict[str, Any]:
        """The match as schemas/enriched_entities.v1.json has it."""
        return {
            "text": self.text,
            "name": self.name,
            "type": self.type,
            "start": self.start,
            "end": self.end,
            "method": METHOD,
            "confidence": self.confidence,
        }


class Terms:
    """``words`` maps a term's words, in lower case with blanks between them, to the term;
    ``begins`` a first word to the number of words of the longest term that begins with it, and
    ``follows`` to the words that come second."""

    __slots__ = ("begins", "follows", "words")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.words: dict[str, Entry] = {}
        self.begins: dict[str, int] = {}
        self.follows: dict[str, set[str]] = {}
        for entry in entries:
            self.add(entry)

    def __len__(self) -> int:
        return len(self.words)

    def add(self, entry: Entry) -> None:
        """The first entry of the same words stays."""
        words = key(entry[0])
        if not words or len(words) > MAX_WORDS:
            return
        self.words.setdefault(" ".join(words), entry)
        first = words[0]
        if len(words) > 1:
            self.follows.setdefault(first, set()).add(words[1])
        if len(words) > self.begins.get(first, 0):
            self.begins[first] = len(words)

    def get(self, words: str) -> Entry | None:
        return self.words.get(words)


def key(term: str) -> list[str]:
    """A term's words as they are looked up: lower case, signs between them forgotten."""
    words = _WORDS.findall(term.lower())
    if words and term[0] in "@#":
        words[0] = term[0] + words[0]
    return words


@dataclass(frozen=True, slots=True)
class _Reading:
    """A text cut into words, with its platform's own terms."""

    text: str
    spans: list[tuple[int, int]]
    lower: list[str]
    loud: bool
    own: Terms | None


class Gazetteer:
    """The matcher. Read-only after loading, so one serves all batches of a process."""

    def __init__(
        self,
        terms: Terms,
        platforms: Mapping[str, Terms],
        given: frozenset[str],
        surnames: frozenset[str],
        everyday: Mapping[str, str],
        confidence: Mapping[str, Mapping[str, float]],
        version: str,
    ) -> None:
        self._terms = terms
        self._platforms = platforms
        self._given = given
        self._surnames = surnames
        self._everyday = everyday
        self._confidence = confidence
        self.version = version

    @classmethod
    def load(cls, folder: Path) -> Gazetteer:
        """Read a dictionary folder; raises ConfigError with file and line for what it cannot."""
        return _load(str(folder))

    @property
    def lists(self) -> frozenset[str]:
        """Names of the lists that stand beside the common ones, usually a platform's."""
        return frozenset(self._platforms)

    def __len__(self) -> int:
        return len(self._terms) + sum(map(len, self._platforms.values()))

    def find(self, text: str, platform: str = "", threshold: float = 0.8) -> list[Match]:
        """Matches of at least ``threshold``, in order, not overlapping.

        The longest term wins even if it falls short of the threshold: half of a name that is
        known to be doubtful would be worse.
        """
        matches = []
        for match in self.candidates(text, platform):
            if match.confidence >= threshold:
                matches.append(match)
                if len(matches) == MAX_MATCHES:
                    break
        return matches

    def candidates(self, text: str, platform: str = "") -> Iterator[Match]:
        """Every longest match whatever its confidence (what the measuring script counts)."""
        spans = [match.span() for match in _TOKEN.finditer(text)]
        if "://" in text or "www." in text:
            spans = _outside_urls(text, spans)
        lower = _lower(text, spans)
        reading = _Reading(text, spans, lower, _is_loud(text, spans), self._platforms.get(platform))
        free = 0  # the first word that no match holds
        for index in self._beginnings(reading):
            if index < free:
                continue
            found = self._at(reading, index)
            if found is None:
                continue
            length, name, type_, class_ = found
            start, end = spans[index][0], spans[index + length - 1][1]
            form = _form(text, start, end, name, reading.loud)
            if form in _BESIDE and _beside(text, spans, index, index + length - 1):
                form = _BESIDE[form]
            elif type_ == "place" and index and lower[index - 1] in _PLACING:
                form = _PLACED.get(form, form) if text[start - 1] == " " else form
            yield Match(
                text=text[start:end],
                name=name,
                type=type_,
                start=start,
                end=end,
                confidence=self._confidence.get(class_, {}).get(form, 0.0),
                kind=f"{class_}/{form}",
            )
            free = index + length

    def _beginnings(self, reading: _Reading) -> list[int]:
        """Places of the words at which a name may begin. Most words cannot, and most of those that
        can ("the", "a") have another word after them than the terms that begin so."""
        terms, given, follows = self._terms.words, self._given, self._terms.follows
        own = reading.own.begins if reading.own is not None else {}
        return [
            at
            for at, (word, following) in enumerate(pairwise([*reading.lower, ""]))
            if word in terms
            or word in given
            or word[0] in "#@"
            or (word in follows and following in follows[word])
            or word in own
        ]

    def _at(self, reading: _Reading, index: int) -> tuple[int, str, str, str] | None:
        """The longest name that begins at a word: its words, name, type and class."""
        text, spans, lower, own = reading.text, reading.spans, reading.lower, reading.own
        first = lower[index]
        bare = first[1:] if first[0] == "#" else first
        longest = self._terms.begins.get(bare, 0)
        if own is not None:
            longest = max(longest, own.begins.get(first, 0), own.begins.get(bare, 0))
        best = 0
        entry: Entry | None = None
        if longest:
            reach = 1
            while (
                reach < longest
                and index + reach < len(spans)
                and _joined(text, spans[index + reach - 1], spans[index + reach])
            ):
                reach += 1
            for length in range(reach, 0, -1):
                rest = lower[index + 1 : index + length]
                entry = self._entry(" ".join([bare, *rest]), own)
                if entry is None and bare != first and own is not None:
                    entry = own.get(" ".join([first, *rest]))
                if entry is not None and _spelt(entry, text, spans, index, length):
                    best = length
                    break
                entry = None
        if best < 2 and bare in self._given:
            full = self._full_name(reading, index)
            if full is not None:
                return full
        return None if entry is None else (best, entry[3], entry[1], entry[2])

    def _entry(self, words: str, own: Terms | None) -> Entry | None:
        entry = own.get(words) if own is not None else None
        return entry or self._terms.get(words)

    def _full_name(self, reading: _Reading, index: int) -> tuple[int, str, str, str] | None:
        """A given name with the names that follow it at once, up to four words in all.

        The last must be a known surname or, where capitals mean something, no everyday word.
        """
        text, spans, lower = reading.text, reading.spans, reading.lower
        if not text[spans[index][0]].isupper():
            return None
        shouted = text[spans[index][0] : spans[index][1]].isupper()
        best = 0
        class_ = "full_name"
        for at in range(index + 1, min(index + 4, len(spans))):
            start, end = spans[at]
            if not text[start].isupper():
                break
            initial = spans[at - 1][1] - spans[at - 1][0] == 1 and at > index + 1
            gap = text[spans[at - 1][1] : start]
            irish = gap in ("'", "’") and lower[at - 1] in ("o", "d")  # as in O'Brien
            if gap != " " and not irish and not (initial and gap in (". ", " . ")):
                break
            if end - start == 1:
                continue  # an initial
            if text[start:end].isupper() and not shouted:
                break
            word = lower[at]
            if word in self._surnames:
                best, class_ = at, "full_name.word" if word in self._everyday else "full_name"
            elif not reading.loud and word.isalpha() and word not in self._everyday:
                best, class_ = at, "full_name.open"
            elif word not in self._given:
                break
        if not best:
            return None
        name = " ".join(text[spans[index][0] : spans[best][1]].split())
        return best - index + 1, name, "person", class_


def _lower(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """The words in lower case."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters become two
        return [text[start:end].lower() for start, end in spans]
    return [lower[start:end] for start, end in spans]


def _joined(text: str, word: tuple[int, int], following: tuple[int, int]) -> bool:
    """Whether two words may belong to one name, by what stands between them."""
    if _GAP.fullmatch(text, word[1], following[0]):
        return True
    return word[1] - word[0] <= 2 and text[word[1] : following[0]] in _DOTS


def _spelt(entry: Entry, text: str, spans: list[tuple[int, int]], index: int, length: int) -> bool:
    """Terms made of snippets ("AT&T", "E! ") must stand as they are spelt, but for case."""
    if length == 1 or any(len(word) > 2 for word in key(entry[0])):
        return True
    return text[spans[index][0] : spans[index + length - 1][1]].lower() == (
        entry[0].lower().strip(".! ")
    )


def _form(text: str, start: int, end: int, name: str, loud: bool) -> str:
    written = text[start:end]
    if written[0] == "#":
        return "tag"
    if written[0] == "@":
        return "handle"
    if written.islower():
        return "lower"
    if loud:
        return "loud"
    if written.isupper() and len(written) > 1 and not name.isupper():
        return "upper"
    before = text[max(0, start - 3) : start].rstrip(" \"'“‘(*#_>")
    if start == 0 or not before or before[-1] in ".!?:\n\r\t-–—|…":
        return "first"
    return "exact" if written == name else "cased"


_BESIDE = {"exact": "beside", "cased": "beside", "first": "beside", "loud": "crowd"}


def _beside(text: str, spans: list[tuple[int, int]], first: int, last: int) -> bool:
    """True where a capital letter follows or precedes at once: the name may be longer."""
    if last + 1 < len(spans):
        start = spans[last + 1][0]
        if text[start].isupper() and text[spans[last][1] : start] in (" ", "-"):
            return True
    if first > 1:  # a sentence's first word has its capital for nothing
        start, end = spans[first - 1]
        return (
            text[start].isupper()
            and end - start > 1
            and text[end : spans[first][0]] in (" ", "-")
            and text[start - 1] == " "
            and text[start - 2] not in ".!?:"
        )
    return False


def _is_loud(text: str, spans: list[tuple[int, int]]) -> bool:
    """True in a text where most words have a capital: there it says nothing."""
    words = capitals = 0
    for start, end in spans[:60]:
        if end - start > 3 and text[start].isalpha():
            words += 1
            capitals += text[start].isupper()
    return words >= 4 and capitals >= 0.7 * words


def _outside_urls(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    position = 0
    for url in _URL.finditer(text):
        while position < len(spans) and spans[position][0] < url.start():
            kept.append(spans[position])
            position += 1
        while position < len(spans) and spans[position][0] < url.end():
            position += 1
    return kept + spans[position:]


@lru_cache(maxsize=4)
def _load(folder: str) -> Gazetteer:
    path = Path(folder)
    built = path / "terms.tsv.gz"
    terms, given, surnames = Terms(), set[str](), set[str]()
    common = path / "common.tsv"
    if not built.exists() and not common.exists():
        raise ConfigError(
            f"dictionaries: {path} holds neither terms.tsv.gz nor common.tsv; correct the setting "
            "dictionaries or copy the shipped folder"
        )
    words = path / "everyday.txt.gz"
    everyday = read_words(words) if words.exists() else {}
    if common.exists():
        for entry in read_list(common, "common", everyday):
            terms.add(entry)
    if built.exists():
        for term, type_, class_, name in read_terms(built):
            if class_.startswith("given"):
                given.add(term.lower())
            elif class_ == "surname":
                surnames.add(term.lower())
                continue
            terms.add((term, type_, class_, name or term))
    platforms = {
        file.stem: Terms(read_list(file, "platform", everyday))
        for file in sorted(path.glob("*.tsv"))
        if file.stem != "common"
    }
    measured = path / "confidence.json"
    if not measured.exists():
        raise ConfigError(f"dictionaries: {measured} is missing; run bench/build_dictionary.py")
    content = orjson.loads(measured.read_bytes())
    confidence = {
        class_: {form: float(cell["confidence"]) for form, cell in forms.items()}
        for class_, forms in content["classes"].items()
    }
    return Gazetteer(
        terms,
        platforms,
        frozenset(given),
        frozenset(surnames),
        everyday,
        confidence,
        content["version"],
    )


def read_terms(path: Path) -> Iterator[Entry]:
    """Entries of a built dictionary; the name is empty where it equals the term."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith("#"):
                continue
            parts = line.rstrip("\n").split("\t")
            if len(parts) == 3:
                yield parts[0], parts[1], parts[2], ""
            elif len(parts) == 4:
                yield parts[0], parts[1], parts[2], parts[3]
            else:
                raise ConfigError(f"{path}, line {number}: expected 3 or 4 columns between tabs")


def read_words(path: Path) -> dict[str, str]:
    """Everyday words, one a line, each as ``word`` (hardly ever with a capital) or, marked by a
    tilde, as ``chat`` (often)."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {
            line.strip("~\n"): "chat" if line.startswith("~") else "word"
            for line in lines
            if not line.startswith("#")
        }


def band(term: str, everyday: Mapping[str, str]) -> str:
    """How much of an everyday word a term is: ``word``, ``chat`` (people leave out its capital)
    or ``name``; of several words ``words`` (each is everyday) or ``names``."""
    words = _WORDS.findall(term.lower())
    if len(words) == 1:
        return everyday.get(words[0], "name")
    return "words" if all(word in everyday for word in words) else "names"


def read_list(path: Path, class_: str, everyday: Mapping[str, str]) -> Iterator[Entry]:
    """Entries of a list written by hand: ``name<TAB>type[<TAB>spelling|spelling]``."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("# ") or line == "#":
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) not in (2, 3) or parts[1] not in TYPES:
            raise ConfigError(
                f"{path}, line {number}: expected name, type and perhaps other spellings between "
                f"tabs, the type one of {', '.join(sorted(TYPES))}"
            )
        name, type_ = parts[0], parts[1]
        yield name, type_, f"{class_}.{band(name, everyday)}", name
        for other in parts[2].split("|") if len(parts) == 3 else ():
            if other.strip():
                yield other.strip(), type_, f"{class_}.{band(other, everyday)}", name
