"""Reads token/IOB files as sentences with entities by their place in the text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entity:
    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """Tokens joined by single blanks, and the entities' places in that text."""

    text: str
    entities: tuple[Entity, ...]


def read_conll(path: Path) -> list[Sentence]:
    """Sentences of a file of ``token<TAB>label`` lines with blank lines between sentences."""
    sentences: list[Sentence] = []
    rows: list[tuple[str, str]] = []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        parts = line.split("\t")
        if len(parts) == 2 and parts[0].strip():
            rows.append((parts[0].strip(), parts[1].strip()))
        elif rows:
            sentences.append(_sentence(rows))
            rows = []
    return sentences


def _sentence(rows: list[tuple[str, str]]) -> Sentence:
    position = 0
    entities: list[Entity] = []
    for token, label in rows:
        end = position + len(token)
        if label.startswith("B-"):
            entities.append(Entity(position, end, label[2:]))
        elif label.startswith("I-") and entities:
            entities[-1] = Entity(entities[-1].start, end, entities[-1].type)
        position = end + 1
    return Sentence(" ".join(token for token, _ in rows), tuple(entities))
