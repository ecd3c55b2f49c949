"""Which language a text is written in, with a confidence; 'und' where nobody could tell.

CLD2 gives the first guess. It leans to English for the short, noisy, mixed texts of comments and
does not know Hindi in Latin letters, so small words of English, Malay/Indonesian and Hindi confirm,
weaken or replace its guess. A text without evidence is 'und': never a guess.

The confidence is a rule, not a probability; what it is worth is measured in data/METRICS.md.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import pycld2

from headrace.models.function_words import ENGLISH, HINDI, MALAY
from headrace.models.kept import Kept

UNDETERMINED = "und"
MIN_CONFIDENCE = 0.5
MAX_CHARACTERS = 1_000  # more hardly ever change the answer, and a record may hold megabytes

# Left alone, CLD2 finds Ganda, Afar or Klingon in slang; those need a long text to be believed.
_COMMON = (
    "af ar az be bg bn ca cs cy da de el en es et eu fa fi fr gl gu he hi hr hu hy id is it ja ka "
    "kk km kn ko lt lv mk ml mn mr ms my ne nl no pa pl ps pt ro ru sd si sk sl sq sr sv sw ta te "
    "th tl tr uk ur uz vi zh"
)
_COMMON_CODES = frozenset(_COMMON.split())
_RENAMED = {"iw": "he", "jw": "jv", "in": "id", "zh-Hant": "zh", "nb": "no"}
_NONSENSE = frozenset(("un", "xxx", "tlh", "zzb", "zze", "zzh", "zzp"))

_NOISE = re.compile(r"(?:https?://|www\.)\S+|[@#]\S+")
_LATIN_WORD = re.compile("[a-zà-ɏ]+(?:['’][a-zà-ɏ]+)?")
_OTHER_SCRIPT = re.compile("[\u0370-\u1cff\u3040-\ud7af]")  # letters and their vowel signs
_STRETCH = re.compile(r"(\w)\1{2,}")
_LISTS = (("en", ENGLISH), ("ms", MALAY), ("hi", HINDI))


@dataclass(frozen=True, slots=True)
class Language:
    """ISO 639-1 code (or 'und') and confidence 0…1; with 'und' the confidence of what was not
    believed."""

    code: str
    confidence: float


def _lists(token: str) -> tuple[bool, ...]:
    plain = _STRETCH.sub(r"\1", token)
    return tuple(plain in words for _, words in _LISTS)


_KEPT = Kept(_lists, 30_000)
_NOTHING = Language(UNDETERMINED, 0.0)


class CLD2WithSmallWords:
    """The language model of this package. Needs no files and keeps no state."""

    version = "cld2-words-1"

    def detect(self, text: str) -> Language:
        """The language of ``text``; addresses, mentions and hashtags say nothing of it."""
        return detect(text)


def detect(text: str) -> Language:
    """The language of ``text``; addresses, mentions and hashtags say nothing of it."""
    text = _NOISE.sub(" ", text[:MAX_CHARACTERS])
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)  # comments like 𝕕𝕠𝕟𝕖
    if sum(map(str.isalpha, text[:200])) < 2:
        return _NOTHING
    code, reliable, percent = _cld2(text)
    tokens = _LATIN_WORD.findall(text.lower().replace("’", "'"))
    if not text.isascii() and sum(map(len, tokens)) < len(_OTHER_SCRIPT.findall(text)):
        return _judge(code, (0.9 if reliable else 0.6) * percent)
    return _latin(code, reliable, percent, tokens)


def _cld2(text: str) -> tuple[str, bool, float]:
    try:
        encoded = text.encode("utf-8", "ignore")
        sure, _, found = pycld2.detect(encoded)
        if not sure:
            found = pycld2.detect(encoded, bestEffort=True)[2]
    except pycld2.error:  # signs that it refuses, such as unassigned code points
        return UNDETERMINED, False, 0.0
    code = found[0][1]
    if code in _NONSENSE or code.startswith("xx-"):
        return UNDETERMINED, False, 0.0
    return _RENAMED.get(code, code), sure, found[0][2] / 100


def _latin(code: str, reliable: bool, percent: float, tokens: list[str]) -> Language:
    count = len(tokens)
    if not count:
        return _NOTHING
    lists = list(map(_KEPT.__getitem__, tokens))
    shares = {
        name: sum([mine[at] for mine in lists]) / count for at, (name, _) in enumerate(_LISTS)
    }
    family = "ms" if code == "id" else code
    own = shares.pop(family, 0.0)
    rival, rival_share = max(shares.items(), key=lambda item: item[1])
    short = min(1.0, 0.6 + 0.1 * count)
    believed = code in _COMMON_CODES or count >= 12
    base = (0.95 if reliable else 0.35) * percent if believed else 0.2
    confidence = (base + (1 - base) * min(1.0, 2 * own)) * (1 - max(0.0, rival_share - own)) * short
    if rival_share > own:
        rival_confidence = min(0.95, 0.3 + 2 * (rival_share - own)) * short
        if rival_confidence > confidence:
            return _judge(rival, rival_confidence)
    return _judge(code, confidence)


def _judge(code: str, confidence: float) -> Language:
    confidence = round(confidence, 3)
    return Language(code if confidence >= MIN_CONFIDENCE else UNDETERMINED, confidence)
