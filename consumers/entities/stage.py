"""Finds brands, products, organisations, places and people by dictionary."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.models.gazetteer import Gazetteer
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok
from headrace.text import is_empty


class Finder:
    def __init__(self, dictionary: Gazetteer, threshold: float) -> None:
        self._dictionary = dictionary
        self._threshold = threshold
        self.version = dictionary.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        return [self._find(record) for record in batch]

    def _find(self, record: Record) -> Outcome:
        if is_empty(record.text):
            return drop("empty")
        found = self._dictionary.find(record.text, record.platform, self._threshold)
        return ok({"entities": [match.as_result() for match in found]})


def build(context: Context) -> Process:
    settings = context.settings
    return Finder(Gazetteer.load(settings.path("dictionaries")), settings.entities.threshold)
