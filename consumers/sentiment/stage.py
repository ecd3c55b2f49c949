"""Says whether a text is negative, neutral or positive; drops languages that it cannot read."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.errors import ConfigError
from headrace.models import language
from headrace.models.sentiment import LANGUAGES, Sentiment, SentimentModel
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok
from headrace.text import clean, is_empty

BEGINNING = 2 * language.MAX_CHARACTERS  # enough of a text to tell its language by


class Judge:
    def __init__(self, model: SentimentModel, languages: frozenset[str], sure: float) -> None:
        self._model = model
        self._languages = languages
        self._sure = sure
        self.version = model.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        codes = [self._language(record.text) for record in batch]
        spoken = list(zip(batch, codes, strict=True))
        texts = [record.text for record, code in spoken if code in self._languages]
        found = iter(self._model.classify_all(texts))
        return [
            _outcome(next(found), code) if code in self._languages else drop(_reason(code))
            for code in codes
        ]

    def _language(self, written: str) -> str:
        """A language's code, "und" where it is not sure, nothing for an empty text."""
        text = clean(written[:BEGINNING])
        if is_empty(text):
            text = clean(written)
            if is_empty(text):
                return ""
        spoken = language.detect(text)
        return spoken.code if spoken.confidence >= self._sure else language.UNDETERMINED


def _reason(code: str) -> str:
    return f"language: {code}" if code else "empty"


def _outcome(found: Sentiment, code: str) -> Outcome:
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
