"""Remembers what a function says of a word, since most words of a text stood in earlier texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
MAX_CHARACTERS = 30  # longer words hardly ever come back


class Kept(dict[str, T]):
    """``kept[word]`` is ``function(word)``. Forgets everything when it holds ``limit`` words, so
    its memory is bounded; a lookup of a known word costs no Python call."""

    def __init__(self, function: Callable[[str], T], limit: int) -> None:
        self._function = function
        self._limit = limit

    def __missing__(self, word: str) -> T:
        found = self._function(word)
        if len(word) <= MAX_CHARACTERS:
            if len(self) >= self._limit:
                self.clear()
            self[word] = found
        return found
