"""What can be said about a text without a model: cleaning, tags, links, counts.

Pure functions, safe on any ``str``: lone surrogates, NUL, broken entities and megabytes included.
Offsets and counts are Unicode code points, Python's own unit.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass


def _marks() -> str:
    """Combining marks as a character class: ``\\w`` lacks them, so it cuts Devanagari words."""
    ranges: list[tuple[int, int]] = []
    for point in range(0x300, 0xAC00):
        if unicodedata.category(chr(point)) in ("Mn", "Mc"):
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1] = (ranges[-1][0], point)
            else:
                ranges.append((point, point))
    return "".join(f"\\u{low:04x}-\\u{high:04x}" for low, high in ranges)


_LETTER = rf"\w{_marks()}\u200c\u200d"
_EMOJI = r"\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
# Scripts written without spaces end an address, so that the words after it survive.
_NOT_IN_URL = rf"\s<>\"`{_EMOJI}\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef"
_TLD = (
    "com|org|net|edu|gov|info|co|ly|be|io|me|gl|tv|uk|us|eu|de|fr|es|it|nl|ru|in|my|id|sg|pk|au|"
    "ca|jp|app|dev|ai|gd|cc|to|st|am|fm|bz"
)

_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"  # controls
    "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
_JOINER = re.compile("[\u200c\u200d]+")
_MARKDOWN_LINK = re.compile(
    r"!?\[([^\[\]\n]{0,300})\]\(((?:https?://|/|www\.)(?:[^()\s]|\([^()\s]{0,200}\)){0,2000})\)"
)
_URL = re.compile(
    rf"(?:https?://|(?<![\w.@])www\.)[^{_NOT_IN_URL}]+"
    rf"|(?<![\w.@/-])(?:[a-z0-9-]{{1,63}}\.){{1,4}}(?:{_TLD})/[^{_NOT_IN_URL}]*",
    re.IGNORECASE,
)
# Most texts name no host without its scheme; looking for this sign of one first is much quicker.
_BARE_HOST = re.compile(r"\.[a-z]{2,4}/", re.IGNORECASE)
_PLAIN_URL = re.compile(rf"(?:https?://|(?<![\w.@])www\.)[^{_NOT_IN_URL}]+", re.IGNORECASE)
_HASHTAG = re.compile(rf"(?<![{_LETTER}&/#])[#＃](?=[{_LETTER}]*[^\W\d_])([{_LETTER}]{{1,140}})")
_MENTION = re.compile(
    r"(?<![\w@./+-])@([A-Za-z0-9_]{1,64}(?:[.-][A-Za-z0-9_]{1,64}){0,8})"
    r"|(?<![\w/])/?u/([A-Za-z0-9_-]{3,20})(?![\w/-])"
)
_WORD = re.compile(rf"[\u3400-\u9fff\u3040-\u30ff]|\w[{_LETTER}]*(?:['’-]\w[{_LETTER}]*)*")
# The same for ASCII, where most texts are and a small class is four times as fast.
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]+(?:['-][A-Za-z0-9_]+)*")
_SENTENCE_END = re.compile(r"[.!?…۔؟।。！？]+(?=[\s\"'”’)\]]|$)|[。！？]+|\n+")
_EMOJI_SIGN = "[\u231a-\u23ff\u25aa-\u27bf\u2b05-\u2b55\U0001f300-\U0001f3fa\U0001f400-\U0001faff]"
# One sign as people see it: a flag, or signs joined and coloured.
_EMOJI_SEEN = re.compile(
    "[\U0001f1e6-\U0001f1ff]{2}"
    f"|{_EMOJI_SIGN}[\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d{_EMOJI_SIGN}[\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)
_CONTENT = re.compile(rf"[^\W_]|[{_EMOJI}]")


@dataclass(frozen=True, slots=True)
class Text:
    """A text after :func:`read`.

    ``clean`` is one line without addresses; ``hashtags`` and ``mentions`` are lower case, without
    their sign; ``links`` are as written. All three keep the order of the text, without repeats.
    """

    clean: str
    hashtags: tuple[str, ...]
    mentions: tuple[str, ...]
    links: tuple[str, ...]
    characters: int
    words: int
    sentences: int
    emoji: int

    @property
    def is_empty(self) -> bool:
        """True when neither a letter, a digit nor an emoji is left."""
        return is_empty(self.clean)


def read(text: str) -> Text:
    """Everything this module knows about ``text``, each step done once."""
    plain = decode(text)
    links, unlinked = _split_links(plain)
    clean_text = " ".join(unlinked.split())
    return Text(
        clean=clean_text,
        hashtags=_hashtags(unlinked),
        mentions=_mentions(unlinked),
        links=links,
        characters=len(clean_text),
        words=count_words(clean_text),
        sentences=_count_sentences(unlinked),
        emoji=0 if unlinked.isascii() else len(_EMOJI_SEEN.findall(unlinked)),
    )


def clean(text: str) -> str:
    """``text`` on one line, readable: escapes and entities decoded, addresses and what cannot be
    seen (NUL, controls, zero-width and direction marks) removed. Joiners inside emoji and words
    of Indic and Arabic scripts stay, since they carry meaning there."""
    return " ".join(_split_links(decode(text))[1].split())


def decode(text: str) -> str:
    """Literal ``\\u2019`` escapes and HTML entities decoded, invisible characters removed; line
    breaks and addresses are kept."""
    if "\\u" in text:
        text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
        # Two escapes may have been the halves of one emoji.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for _ in range(2):  # exports often escape twice, "&amp;amp;"
        if "&" not in text:
            break
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    text = _INVISIBLE.sub("", text)
    if "\u200d" in text or "\u200c" in text:
        text = _JOINER.sub(_keep_joiner, text)
    return text


def hashtags(text: str) -> tuple[str, ...]:
    """Hashtags in lower case without ``#``; one of digits only is a number, not a tag."""
    return _hashtags(_split_links(decode(text))[1])


def mentions(text: str) -> tuple[str, ...]:
    """People addressed as ``@name`` or ``u/name``, in lower case; e-mail addresses are not."""
    return _mentions(_split_links(decode(text))[1])


def links(text: str) -> tuple[str, ...]:
    """Web addresses as written, without the punctuation that follows them."""
    return _split_links(decode(text))[0]


def count_words(text: str) -> int:
    """Words; in Chinese and Japanese every sign counts as one."""
    return len(words(text))


def words(text: str) -> list[str]:
    """The words that :func:`count_words` counts."""
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text)


def is_empty(text: str) -> bool:
    """True when ``text`` holds neither a letter, a digit nor an emoji."""
    return _CONTENT.search(text) is None


def _keep_joiner(match: re.Match[str]) -> str:
    text, start, end = match.string, match.start(), match.end()
    before = text[start - 1] if start else " "
    after = text[end] if end < len(text) else " "
    meaningful = min(before, after) > "\u024f" and not (before.isspace() or after.isspace())
    return match[0][0] if meaningful else ""


def _trim(url: str) -> str:
    """``url`` without the punctuation of the sentence around it; its own brackets stay."""
    surplus = {
        closing: url.count(closing) - url.count(opening)
        for opening, closing in ("()", "[]", "{}")
        if closing in url
    }
    end = len(url)
    while end:
        last = url[end - 1]
        if surplus.get(last, 0) > 0:
            surplus[last] -= 1
        elif last not in ".,;:!?'’”…*_|":
            break
        end -= 1
    return url[:end]


def _split_links(text: str) -> tuple[tuple[str, ...], str]:
    """The addresses, and the text without them (a Markdown link leaves its words)."""
    if "/" not in text and "www." not in text.lower():
        return (), text
    bare = _BARE_HOST.search(text) is not None
    if not (bare or "://" in text or "](" in text or "www." in text.lower()):
        return (), text
    found: list[str] = []

    def take(match: re.Match[str]) -> str:
        url = _trim(match[0])
        found.append(url)
        return " " + match[0][len(url) :]

    def take_markdown(match: re.Match[str]) -> str:
        target = match[2]
        if target[0] != "/":
            found.append(target)
        return match[1]

    if "](" in text:
        text = _MARKDOWN_LINK.sub(take_markdown, text)
    text = (_URL if bare else _PLAIN_URL).sub(take, text)
    return _unique(found), text


def _hashtags(text: str) -> tuple[str, ...]:
    if "#" not in text and "＃" not in text:
        return ()
    return _unique(match[1].lower() for match in _HASHTAG.finditer(text))


def _mentions(text: str) -> tuple[str, ...]:
    if "@" not in text and "u/" not in text:
        return ()
    return _unique((match[1] or match[2]).lower() for match in _MENTION.finditer(text))


def _count_sentences(text: str) -> int:
    return sum(1 for part in _SENTENCE_END.split(text) if part and _CONTENT.search(part))


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
