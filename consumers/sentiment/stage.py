"""Says whether a text is negative, neutral or positive; drops languages that it cannot read."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import ConfigError
from headrace.models import language
from headrace.models.sentiment import LANGUAGES, SentimentModel
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok
from headrace.text import clean, is_empty


class Judge:
    def __init__(self, model: SentimentModel, languages: frozenset[str], sure: float) -> None:
        self._model = model
        self._languages = languages
        self._sure = sure
        self.version = model.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        return [self._judge(record) for record in batch]

    def _judge(self, record: Record) -> Outcome:
        text = clean(record.text)
        if is_empty(text):
            return drop("empty")
        spoken = language.detect(text)
        code = spoken.code if spoken.confidence >= self._sure else language.UNDETERMINED
        if code not in self._languages:
            return drop(f"language: {code}")
        found = self._model.classify(record.text)
        return ok(
            {
                "label": found.label,
                "score": found.score,
                "confidence": found.confidence,
                "language": code,
            }
        )


def build(context: Context) -> Process:
    settings = context.settings.sentiment
    unread = sorted(set(settings.languages) - LANGUAGES)
    if unread:
        raise ConfigError(
            f"sentiment.languages: the model cannot read {', '.join(unread)}; it reads "
            f"{', '.join(sorted(LANGUAGES))}"
        )
    sure = settings.min_language_confidence
    return Judge(SentimentModel.load(), frozenset(settings.languages), sure)
