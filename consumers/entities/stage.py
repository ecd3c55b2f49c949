"""Finds brands, products, organisations, places and people by dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace import platforms
from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.models.gazetteer import Gazetteer
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok
from headrace.text import is_empty


class Finder:
    def __init__(
        self, dictionary: Gazetteer, threshold: float, own: Mapping[str, str] | None = None
    ) -> None:
        """`own` names the list of a platform that is not called like it."""
        self._dictionary = dictionary
        self._threshold = threshold
        self._own = own or {}
        self.version = dictionary.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        return [self._find(record) for record in batch]

    def _find(self, record: Record) -> Outcome:
        if is_empty(record.text):
            return drop("empty")
        found = self._dictionary.find(
            record.text, self._own.get(record.platform, record.platform), self._threshold
        )
        return ok({"entities": [match.as_result() for match in found]})


def build(context: Context) -> Process:
    settings = context.settings
    dictionary = Gazetteer.load(settings.path("dictionaries"))
    own = _own_lists(settings, dictionary)
    return Finder(dictionary, settings.entities.threshold, own)


def _own_lists(settings: Settings, dictionary: Gazetteer) -> dict[str, str]:
    own = {}
    for name, platform in platforms.load(settings).items():
        if platform.dictionary is None:
            continue
        own[name] = platform.dictionary.removesuffix(".tsv")
        if own[name] not in dictionary.lists:
            raise ConfigError(
                f"{platform.path}: dictionary: there is no {own[name]}.tsv in"
                f" {settings.path('dictionaries')}"
            )
    return own
