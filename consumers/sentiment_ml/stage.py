"""Says how a text sounds, from its vector; a better answer than that of `sentiment`, and later."""

from __future__ import annotations

from collections.abc import Sequence

from consumers.sentiment_ml.model import VectorSentiment
from headrace.errors import ConfigError
from headrace.models import embedding, language
from headrace.models.sentiment import LANGUAGES
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok
from headrace.vectors import space


class VectorJudge:
    def __init__(self, model: VectorSentiment, languages: frozenset[str], sure: float) -> None:
        self._model = model
        self._languages = languages
        self._sure = sure
        self.version = model.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        return [self._judge(record) for record in batch]

    def _judge(self, record: Record) -> Outcome:
        text, dimensions = record.value["clean"], record.value["dimensions"]
        found = space(record.value["model"], dimensions)
        if found != self._model.space:
            return drop(f"space: {found}")  # it was trained on another model's vectors
        spoken = language.detect(text)
        code = spoken.code if spoken.confidence >= self._sure else language.UNDETERMINED
        if code not in self._languages:
            return drop(f"language: {code}")
        answer = self._model.classify(text, embedding.decoded(record.value["vector"], dimensions))
        return ok(
            {
                "label": answer.label,
                "score": answer.score,
                "confidence": answer.confidence,
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
    return VectorJudge(VectorSentiment.load(), frozenset(settings.languages), sure)
