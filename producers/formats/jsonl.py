"""JSON lines: one object a line, a broken line is one bad row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson

from producers.formats.base import BadRow, ReadOptions, Row
from producers.formats.source import Source
from producers.formats.text import SURROGATE, decoded, not_in, printable

_UTF8 = ("utf-8", "utf-8-sig", "utf8", "ascii")


def read_jsonl(source: Source, encoding: str, options: ReadOptions) -> Iterator[Row | BadRow]:
    chunks = source.chunks()
    if encoding not in _UTF8:
        chunks = _recoded(chunks, encoding, source.name)
    loads, number = orjson.loads, 0
    for line in _lines(chunks, options.max_row_bytes):
        number += 1
        try:
            value = loads(line)  # type: ignore[arg-type]  # None raises too
        except ValueError:
            row = _second_look(number, line, options.max_row_bytes, encoding)
            if row is not None:
                yield row
            continue
        if type(value) is dict:
            yield Row(number, value)
        else:
            yield BadRow(number, "is no JSON object", printable(_text(line)))


def _lines(chunks: Iterator[bytes], limit: int) -> Iterator[bytes | None]:
    """Each line without its end; None for one longer than `limit`."""
    begun: list[bytes] = []  # pieces of a line that goes on
    size = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        if size <= limit:
            begun.append(first)
        size += len(first)
        if not rest:
            if size > limit:
                begun.clear()
            continue
        yield b"".join(begun) if size <= limit else None
        yield from (line if len(line) <= limit else None for line in rest[:-1])
        begun, size = [rest[-1]], len(rest[-1])
    if size:
        yield b"".join(begun) if size <= limit else None


def _second_look(number: int, line: bytes | None, limit: int, encoding: str) -> Row | BadRow | None:
    """A line that orjson refuses: blank, marked, NaN, lone surrogates, or broken."""
    if line is None:
        return BadRow(number, f"is longer than {limit:,} bytes", "")
    line = line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\x1e")
    if not line:
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return BadRow(number, not_in(encoding), printable(_text(line)))
    try:
        value = parse_leniently(text)
    except ValueError:
        return BadRow(number, "is broken JSON", printable(text))
    if not isinstance(value, dict):
        return BadRow(number, "is no JSON object", printable(text))
    return Row(number, value)


def parse_leniently(text: str) -> Any:
    """JSON with NaN and Infinity as null, line breaks in strings, lone surrogates as U+FFFD."""
    try:
        value = json.loads(text, strict=False, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return scrub(value)


def scrub(value: Any) -> Any:
    """The value with every lone surrogate, which no encoding can hold, as U+FFFD."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [scrub(item) for item in value]
    if isinstance(value, dict):
        return {scrub(key): scrub(item) for key, item in value.items()}
    return value


def _text(line: bytes | None) -> str:
    line = line or b""
    try:
        return line.decode("utf-8", "surrogatepass")  # as _recoded writes it
    except UnicodeDecodeError:
        return line.decode("utf-8", "surrogateescape")


def _recoded(chunks: Iterator[bytes], encoding: str, name: str) -> Iterator[bytes]:
    # Bytes that are no text travel as invalid UTF-8, so that only their line is refused.
    for text in decoded(chunks, encoding, name):
        yield text.encode("utf-8", "surrogatepass")
