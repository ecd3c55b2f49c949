"""JSON that is not lines: an array, objects under a path, a table as lists, or one object.

Read piece by piece: only one element is in memory at a time, so the file may be of any size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.errors import HeadraceError
from producers.formats.base import BadRow, ReadOptions, Row
from producers.formats.jsonl import scrub
from producers.formats.text import SURROGATE, bad_bytes_seen, not_in, printable

_DECODE = json.JSONDecoder(strict=False, parse_constant=lambda _: None).raw_decode
_SPACE = re.compile(r"[ \t\n\r\ufeff]*").match
_NAMES = ("fields", "columns", "header", "headers")  # where a table says its columns
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Tree:
    """Where the rows stand. `path` None: the root values are the rows themselves."""

    path: tuple[str, ...] | None
    columns: tuple[str, ...] | None = None  # of a table of lists

    @property
    def shown(self) -> str | None:
        return None if self.path is None else ".".join(self.path)


def find_rows(head: str, whole: bool, options: ReadOptions, name: str) -> Tree:
    """Where the rows of a file stand that begins with `head`."""
    start = _SPACE(head, 0).end()  # type: ignore[union-attr]
    if start == len(head):
        raise HeadraceError(f"{name} holds nothing but white space: there is nothing to read")
    columns = options.columns
    if options.json_path == ".":
        return Tree(None, columns)
    if options.json_path:
        path = tuple(options.json_path.strip("$.").split("."))
        return Tree(path, columns or _Survey(head).columns_beside(path))
    if head[start] == "[":
        return Tree((), columns)
    survey = _Survey(head)
    if len(options.known_columns & survey.root_keys) >= 2 or not survey.arrays:
        if not survey.ended and not whole and not survey.arrays:
            raise HeadraceError(
                f"{name} is one large JSON object in whose beginning no list of records stands: "
                "name the list with --json-path, as in --json-path data.items"
            )
        return Tree(None, columns)
    path = max(survey.arrays, key=lambda p: survey.arrays[p])
    return Tree(path, columns or survey.columns_beside(path))


class _Survey:
    """The arrays of objects (or of lists) in the beginning of a root object, and their sizes."""

    def __init__(self, head: str) -> None:
        self.arrays: dict[tuple[str, ...], int] = {}
        self.names: dict[tuple[str, ...], tuple[str, ...]] = {}  # column names by where they stand
        self.root_keys: set[str] = set()
        self.ended = False
        self._head = head
        self.ended = self._object(_SPACE(head, 0).end(), ()) is not None  # type: ignore[union-attr]

    def columns_beside(self, path: tuple[str, ...]) -> tuple[str, ...] | None:
        return self.names.get(path[:-1])

    def _object(self, pos: int, path: tuple[str, ...]) -> int | None:
        """Walk the object at `pos`; returns its end, None when the head ends inside."""
        head = self._head
        if not head.startswith("{", pos):
            return None
        pos += 1
        while True:
            pos = _SPACE(head, pos).end()  # type: ignore[union-attr]
            if head.startswith("}", pos):
                return pos + 1
            try:
                key, pos = _DECODE(head, pos)
            except ValueError:
                return None
            pos = _SPACE(head, pos).end()  # type: ignore[union-attr]
            if not isinstance(key, str) or not head.startswith(":", pos):
                return None
            pos = _SPACE(head, pos + 1).end()  # type: ignore[union-attr]
            if not path:
                self.root_keys.add(key)
            end = self._value(pos, (*path, key))
            if end is None:
                return None
            pos = _SPACE(head, end).end()  # type: ignore[union-attr]
            if head.startswith(",", pos):
                pos += 1

    def _value(self, pos: int, path: tuple[str, ...]) -> int | None:
        head = self._head
        if head.startswith("{", pos) and len(path) < _DEEPEST:
            return self._object(pos, path)
        try:
            value, end = _DECODE(head, pos)
        except (ValueError, RecursionError):
            value, end = None, None
        if head.startswith("[", pos):
            first = _SPACE(head, pos + 1).end()  # type: ignore[union-attr]
            if path[-1] in _NAMES and isinstance(value, list):
                names = [v.get("name") if isinstance(v, dict) else v for v in value]
                if names and all(isinstance(n, str) for n in names):
                    self.names[path[:-1]] = tuple(map(str, names))
                    return end
            if head[first : first + 1] in ("{", "["):
                # One that goes on behind the head is the large one.
                self.arrays[path] = (end or len(head) * 2) - pos
        return end


def read_tree(
    chunks: Iterator[str], tree: Tree, encoding: str, options: ReadOptions, name: str
) -> Iterator[Row | BadRow]:
    """Raises HeadraceError where the JSON is broken: what follows cannot be told apart."""
    reader = _Reader(chunks, options.max_row_bytes, name)
    clean = bad_bytes_seen()
    values = reader.roots() if tree.path is None else reader.array_at(tree.path)
    columns = tree.columns
    number = 0
    for value in values:
        number += 1
        reader.row = number
        if type(value) is list:
            if columns is None and value and all(isinstance(v, str) for v in value):
                columns = tuple(value)  # the first list names the others' columns
                continue
            names = columns or tuple(f"col{i + 1}" for i in range(len(value)))
            if len(value) != len(names):
                reason = f"has {len(value)} values where {len(names)} are named"
                yield BadRow(number, reason, _raw(value))
                continue
            value = dict(zip(names, value, strict=True))
        if type(value) is not dict:
            yield BadRow(number, "is no JSON object", _raw(value))
            continue
        if reader.escapes or clean != bad_bytes_seen():
            try:
                orjson.dumps(value)
            except TypeError:
                raw = json.dumps(value, ensure_ascii=False, default=str)
                if clean != bad_bytes_seen() and SURROGATE.search(raw):
                    yield BadRow(number, not_in(encoding), printable(raw))
                    continue
                value = scrub(value)
        yield Row(number, value)


class _Reader:
    """A cursor over text that comes in pieces."""

    def __init__(self, chunks: Iterator[str], limit: int, name: str) -> None:
        self._chunks = chunks
        self._limit = limit
        self._name = name
        self._text = ""
        self._at = 0
        self._ended = False
        self.escapes = False  # \ud… was seen: there may be lone surrogates
        self.row = 0  # the last row given, for messages

    def roots(self) -> Iterator[Any]:
        """Each value of the root, one after the other."""
        while self._peek():
            if self._text[self._at] == ",":  # objects with commas between and no brackets
                self._at += 1
                continue
            yield self._value()

    def array_at(self, path: tuple[str, ...]) -> Iterator[Any]:
        """The elements of the array at a path of keys; a lone object there is the one element."""
        for depth, key in enumerate(path):
            if self._peek() != "{" or not self._enter(key):
                where = ".".join(path[: depth + 1])
                raise HeadraceError(f"{self._name} has nothing at {where}: look at --json-path")
        kind = self._peek()
        if kind == "{":
            yield self._value()
            return
        if kind != "[":
            raise HeadraceError(f"{self._name} has no list at {'.'.join(path) or 'its root'}")
        yield from self._array()
        if not path and self._peek():
            raise self._broken("text stands behind the list's end")

    def _array(self) -> Iterator[Any]:
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            follows = self._peek()
            self._at += 1
            if follows == "]":
                return
            if follows != ",":
                raise self._broken("the file ends inside the list" if not follows else "no comma")

    def _enter(self, key: str) -> bool:
        """Go to the value of `key` in the object that begins here; False when it has none."""
        self._at += 1
        while self._peek() == '"':
            found = self._value()
            if self._peek() != ":":
                raise self._broken("no colon behind a key")
            self._at += 1
            self._peek()
            if found == key:
                return True
            self._skip()
            if self._peek() == ",":
                self._at += 1
        return False

    def _skip(self) -> None:
        """Pass over one value; a list element by element, since it may be large."""
        if self._peek() == "[":
            for _ in self._array():
                pass
        else:
            self._value()

    def _peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self._at = _SPACE(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            text = self._text
            try:
                value, end = _DECODE(text, self._at)
            except RecursionError:
                raise self._broken("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                # Far from the end of what was read, more text will not mend it.
                cut = error.pos > len(text) - 64 or error.msg.startswith("Unterminated")
                if not (cut and self._more(len(text) - self._at)):
                    raise self._broken(error.msg) from None
            else:
                if end < len(text) or text[end - 1] in '}]"' or not self._more(1):
                    self._at = end
                    return value

    def _more(self, least: int) -> bool:
        """Read on, dropping what is behind; False at the end."""
        kept = self._text[self._at :]
        if len(kept) > self._limit:
            raise HeadraceError(
                f"{self._name}: row {self.row + 1} is longer than {self._limit:,} characters"
            )
        pieces, size = [kept], 0
        while size < least and not self._ended:
            piece = next(self._chunks, None)
            if piece is None:
                self._ended = True
                break
            pieces.append(piece)
            size += len(piece)
            if not self.escapes and ("\\ud" in piece or "\\uD" in piece or "\\u" in piece[-6:]):
                self.escapes = True
        self._text, self._at = "".join(pieces), 0
        return size > 0

    def _broken(self, what: str) -> HeadraceError:
        return HeadraceError(
            f"{self._name}: the JSON is broken at row {self.row + 1} ({what.lower()}). "
            f"The {self.row:,} rows before it were read; mend the file for the rest"
        )


def _raw(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False, default=str))
