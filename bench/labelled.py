"""Reads texts with a sentiment label: 0 negative, 1 neutral, 2 positive."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

LABELS = {"negative": 0, "neutral": 1, "positive": 2}


@dataclass(frozen=True, slots=True)
class Labelled:
    text: str
    label: int


def read_semeval(folder: Path) -> list[Labelled]:
    """The rows of all ``semeval_*_A.tsv``; rows without one of the three labels are left out."""
    rows: list[Labelled] = []
    for file in sorted(folder.glob("semeval_*_A.tsv")):
        for line in file.read_text(encoding="utf-8").split("\n"):
            parts = line.split("\t")
            if len(parts) < 3 or parts[1] not in LABELS:
                continue
            text = parts[2]
            if len(text) > 1 and text[0] == text[-1] == '"':
                text = text[1:-1].replace('""', '"')
            rows.append(Labelled(text, LABELS[parts[1]]))
    return rows


def read_tweeteval(folder: Path) -> list[Labelled]:
    texts = (folder / "tweeteval_val_text.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    labels = (folder / "tweeteval_val_labels.txt").read_text().split()
    return [Labelled(text, int(label)) for text, label in zip(texts, labels, strict=True)]


def read_airlines(file: Path) -> list[Labelled]:
    """Messages to airlines, each tweet once."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = {row["tweet_id"]: row for row in csv.DictReader(lines)}
    return [Labelled(row["text"], LABELS[row["airline_sentiment"]]) for row in rows.values()]
