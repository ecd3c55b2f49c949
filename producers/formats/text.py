"""From bytes to text: which encoding, and what becomes of bytes that are no text in it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from headrace.errors import HeadraceError

SURROGATE = re.compile("[\ud800-\udfff]")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class _BadBytes:
    """How many times a byte was no text, in any file of this process.

    A reader that sees the number move looks closely at its rows from then on; the others need not.
    """

    seen = 0

    @classmethod
    def escape(cls, error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        cls.seen += 1
        # As surrogateescape does, but for every byte: multi-byte codecs complain of ASCII too.
        return "".join(chr(0xDC00 + b) for b in error.object[error.start : error.end]), error.end


ESCAPE = "headrace.escape"
codecs.register_error(ESCAPE, _BadBytes.escape)


def bad_bytes_seen() -> int:
    return _BadBytes.seen


def check_encoding(name: str) -> str:
    """The codec's own name; HeadraceError for one that Python does not know."""
    try:
        if not codecs.lookup(name)._is_text_encoding:
            raise LookupError
        return name.lower()
    except LookupError:
        raise HeadraceError(
            f"{name!r} is no known encoding: try utf-8, cp1252, latin-1, utf-16, gb18030, shift_jis"
        ) from None


def detect_encoding(head: bytes, whole: bool, name: str) -> str:
    """The encoding of a file that begins with `head`.

    A byte order mark decides; then UTF-16 by its zero bytes; then UTF-8, if most of what is not
    ASCII is valid in it; else cp1252, the usual one of older Western exports.
    """
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        sample = head[: len(head) // 2 * 2][:65536]
        zeros = sample.count(b"\0")
        odd, even = sample[1::2].count(b"\0"), sample[::2].count(b"\0")
        if len(sample) >= 4 and odd > 0.35 * len(sample) / 2 and even < odd / 8:
            return "utf-16-le"
        if len(sample) >= 4 and even > 0.35 * len(sample) / 2 and odd < even / 8:
            return "utf-16-be"
        if zeros > 0.1 * len(sample):
            raise HeadraceError(
                f"{name} is a binary file that is none of csv, tsv, json, jsonl, parquet, xlsx"
            )
    if head.isascii():
        return "utf-8"
    text = codecs.getincrementaldecoder("utf-8")(ESCAPE).decode(head, whole)
    wrong = len(SURROGATE.findall(text))
    right = sum(1 for c in text if c > "\x7f") - wrong
    return "utf-8" if right >= wrong else "cp1252"


def decoded(chunks: Iterator[bytes], encoding: str, name: str) -> Iterator[str]:
    """Chunks as text; bytes that are no text become lone surrogates (see `SURROGATE`)."""
    decoder = codecs.getincrementaldecoder(encoding)(ESCAPE)
    try:
        for chunk in chunks:
            yield decoder.decode(chunk)
        yield decoder.decode(b"", True)
    except UnicodeError as error:
        raise wrong_encoding(name, encoding, error) from None


def wrong_encoding(name: str, encoding: str, error: UnicodeError) -> HeadraceError:
    return HeadraceError(f"{name} is not {encoding}: {error}. Set another with --encoding")


def not_in(encoding: str) -> str:
    """The reason of a row with bytes that are no text."""
    return f"holds bytes that are no {encoding.removesuffix('-sig')}: set --encoding"


def printable(text: str, limit: int = 65536) -> str:
    """Text with its lone surrogates as \\xNN (or \\uNNNN), cut at `limit` characters."""

    def show(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC00 <= code <= 0xDCFF else f"\\u{code:04x}"

    return SURROGATE.sub(show, text[:limit])
