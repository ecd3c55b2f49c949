"""Turns each text into a vector."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.models import embedding
from headrace.models.embedding import Embedder
from headrace.stream.stage import Context, Outcome, Process, Record, drop, ok
from headrace.text import clean, count_words


class Embed:
    def __init__(self, model: Embedder, characters: int) -> None:
        self._model = model
        self._characters = characters
        self.version = model.version

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        texts = [clean(record.text)[: self._characters].rstrip() for record in batch]
        worded = [text for text in texts if count_words(text)]
        vectors = iter(self._model.embed(worded))
        return [
            ok(
                {
                    "clean": text,
                    "vector": embedding.encoded(next(vectors)),
                    "model": self._model.name,
                    "dimensions": self._model.dimensions,
                }
            )
            if count_words(text)
            else drop("no words")
            for text in texts
        ]


def build(context: Context) -> Process:
    settings = context.settings
    model = embedding.load(settings.embeddings, settings.llm)
    return Embed(model, settings.embeddings.max_characters)
