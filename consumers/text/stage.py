"""Cleans each text and finds its language, hashtags, mentions and links."""

from __future__ import annotations

from collections.abc import Sequence

from headrace import text
from headrace.models.language import CLD2WithSmallWords
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok


class Reader:
    def __init__(self) -> None:
        self._language = CLD2WithSmallWords()
        self.version = self._language.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        return [self._read(record) for record in batch]

    def _read(self, record: Record) -> Outcome:
        read = text.read(record.text)
        if read.is_empty and not read.links:
            return drop("empty")
        language = self._language.detect(read.clean)
        return ok(
            {
                "clean": read.clean,
                "language": language.code,
                "language_confidence": language.confidence,
                "hashtags": list(read.hashtags),
                "mentions": list(read.mentions),
                "links": list(read.links),
                "characters": read.characters,
                "words": read.words,
                "sentences": read.sentences,
                "emoji": read.emoji,
            }
        )


def build(context: Context) -> Process:
    return Reader()
