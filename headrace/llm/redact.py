"""Masks what names a person, before anything leaves the machine.

E-mail addresses, phone numbers, @names (and Reddit's u/names) and the names of `llm.redact_names`
become "[email 1]", "[phone 1]", "[user 1]", "[name 1]": the same one the same number within a
request, so that a model can tell them apart. Dates stay as they are, and so do ids (of records, and
what stands under a key "id", "ids" or "…_id"), for evidence has to be found again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_AT = r"(?:@|＠|%40)"
_LOCAL = r"[\w.+'\-]"  # before the @ of an address
_DATE = r"(?:19|20)\d\d-\d\d-\d\d"
_CLOCK = r"[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?"
_DAY = r"(?:\d{1,2}[./\-]\d{1,2}[./\-](?:19|20)\d\d|(?:19|20)\d\d[./]\d{1,2}[./]\d{1,2})"
_BETWEEN = r"[ \t\u00a0\u2009\u202f.\-\u2011\u2013/()]{0,2}"  # digits of a number
_RECORDS = "post|comment|community|conversation|interview|persona"
_KEPT = [
    rf"(?<![\w:])(?:{_RECORDS}):[a-z][a-z0-9_]*:[A-Za-z0-9_.\-]+(?![\w@＠%])",
    rf"(?<!\d){_DATE}(?:{_CLOCK})?(?!\d)",
    rf"(?<![\d./+\-]){_DAY}(?![./\-]?\d)",
    rf"(?<!\d)(?:19|20)\d\d(?: ?[-–/, ] ?(?:19|20)\d\d)+(?!{_BETWEEN}\d)",
]
_KINDS = {
    # A name at a server of the fediverse before the e-mail address in it.
    "user": rf"(?<![\w/]){_AT}\w[\w.\-]*{_AT}[\w\-]+(?:\.[\w\-]+)*",
    "email": rf"(?<!{_LOCAL}){_LOCAL}+{_AT}[\w\-]+(?:\.[\w\-]+)*",
    "user_": r"(?<!\w)[@＠]\w(?:[\w.\-]*\w)?|(?<!\w)/?u/[\w\-]{2,}",
    # Nine digits or more, in groups if any; or 555-0123; or whatever begins with +.
    "phone": (
        rf"(?<![\w+])(?<!\d[.,])(?:[+＋]\d(?:{_BETWEEN}\d){{6,}}"
        rf"|\(?\d(?:{_BETWEEN}\d){{8,}}"
        r"|\d{3}[-.]\d{4})(?!\w)"
    ),
}
_ID = re.compile(r"(?:.*_)?ids?")
_NOT_A_DIGIT = re.compile(r"\D")


class Redactor:
    """Masks one request: make a new one for each."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._pattern = _compiled(tuple(names))
        self._known: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def text(self, text: str) -> str:
        """In the composed form, which names are written in."""
        return self._pattern.sub(self._masked, unicodedata.normalize("NFC", text))

    def value(self, value: Any) -> Any:
        """A JSON-able value with every text in it masked, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): inner if _ID.fullmatch(str(key)) else self.value(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        return value

    def _masked(self, match: re.Match[str]) -> str:
        kind = match.lastgroup or ""
        if kind == "kept":
            return match[0]
        kind = kind.rstrip("_")
        if kind == "phone":
            same = _NOT_A_DIGIT.sub("", match[0])
        else:
            same = " ".join(match[0].casefold().replace("＠", "@").replace("%40", "@").split())
            same = same.removeprefix("/").strip("'.+-")
        known = self._known.get((kind, same))
        if known is None:
            self._counts[kind] = number = self._counts.get(kind, 0) + 1
            known = self._known[kind, same] = f"[{kind} {number}]"
        return known


_patterns: dict[tuple[str, ...], re.Pattern[str]] = {}


def _compiled(names: tuple[str, ...]) -> re.Pattern[str]:
    found = _patterns.get(names)
    if found is None:
        tidied = (" ".join(unicodedata.normalize("NFC", name).split()) for name in names)
        said = sorted({name for name in tidied if name}, key=len)
        own = "|".join(r"\s+".join(map(re.escape, name.split(" "))) for name in reversed(said))
        parts = [("kept", "|".join(_KEPT))]
        parts += [("name", rf"(?<!\w)(?:{own})(?!\w|{_LOCAL}{{0,64}}{_AT})")] if own else []
        parts += list(_KINDS.items())
        pattern = "|".join(f"(?P<{kind}>{part})" for kind, part in parts)
        found = _patterns[names] = re.compile(pattern, re.IGNORECASE)
    return found
