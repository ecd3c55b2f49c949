"""How good the local models are, on texts they were not trained on.

    python -m bench.eval [DATA_DIR]     (default: HEADRACE_EVAL_DATA, else ../shared/data/eval)

DATA_DIR holds sentiment/tweeteval_val_*.txt and ner/wnut17_dev.conll; where ../social beside it
holds customer_care_airline_tweets.csv, that is tried too. Prints tables and writes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from bench.conll import Sentence, read_conll
from bench.labelled import Labelled, read_airlines, read_tweeteval
from headrace.models.gazetteer import Gazetteer, read_list, read_terms
from headrace.models.sentiment import LABELS, SentimentModel

DICTIONARIES = Path(__file__).parent.parent / "config" / "dictionaries"
THRESHOLD = 0.8  # entities.threshold as shipped


def macro_recall(gold: Sequence[int], found: Sequence[int]) -> float:
    recalls = []
    for label in sorted(set(gold)):
        own = [answer for truth, answer in zip(gold, found, strict=True) if truth == label]
        recalls.append(sum(answer == label for answer in own) / len(own))
    return sum(recalls) / len(recalls)


def accuracy(gold: Sequence[int], found: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(gold, found, strict=True)) / len(gold)


@cache
def vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def vader_label(text: str) -> int:
    """VADER on the text as it is, with its authors' rule for three labels."""
    score = vader().polarity_scores(text)["compound"]
    return 2 if score >= 0.05 else 0 if score <= -0.05 else 1


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    print(f"\n{title}\n")
    for number, row in enumerate((columns, *rows)):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def sentiment_rows(rows: Sequence[Labelled], model: SentimentModel) -> list[list[str]]:
    gold = [row.label for row in rows]
    texts = [row.text for row in rows]
    ways: tuple[tuple[str, Callable[[], list[int]]], ...] = (
        (
            f"headrace {model.version}",
            lambda: [LABELS.index(found.label) for found in model.classify_all(texts)],
        ),
        ("VADER", lambda: list(map(vader_label, texts))),
    )
    out = []
    for name, answer in ways:
        begun = time.perf_counter()
        found = answer()
        rate = len(rows) / (time.perf_counter() - begun)
        scores = f"{macro_recall(gold, found):.3f}", f"{accuracy(gold, found):.3f}"
        out.append([name, *scores, f"{rate:,.0f}"])
    return out


Spans = set[tuple[int, int]]


def exact_matcher(folder: Path) -> Callable[[str], Spans]:
    """The baseline: every term of the same dictionary wherever it stands word for word."""
    terms: dict[str, None] = {}
    for term, _, class_, _ in read_terms(folder / "terms.tsv.gz"):
        if not class_.startswith(("given", "surname")):
            terms[term] = None
    for file in folder.glob("common.tsv"):
        for term, *_ in read_list(file, "common", {}):
            terms[term] = None
    split = {tuple(term.split()): None for term in terms}
    longest = max(map(len, split))

    def find(text: str) -> Spans:
        tokens: list[tuple[str, int, int]] = []
        at = 0
        for token in text.split(" "):
            tokens.append((token, at, at + len(token)))
            at += len(token) + 1
        found: Spans = set()
        index = 0
        while index < len(tokens):
            for length in range(min(longest, len(tokens) - index), 0, -1):
                if tuple(token[0] for token in tokens[index : index + length]) in split:
                    found.add((tokens[index][1], tokens[index + length - 1][2]))
                    index += length
                    break
            else:
                index += 1
        return found

    return find


def entity_rows(sentences: Sequence[Sentence], folder: Path) -> list[list[str]]:
    dictionary = Gazetteer.load(folder)

    def at(threshold: float) -> Callable[[str], Spans]:
        return lambda text: {(m.start, m.end) for m in dictionary.find(text, "", threshold)}

    ways = [
        (f"headrace, threshold {THRESHOLD}", at(THRESHOLD)),
        ("headrace, threshold 0.5", at(0.5)),
        ("exact match of the same terms", exact_matcher(folder)),
    ]
    out = []
    for name, find in ways:
        begun = time.perf_counter()
        found = [find(sentence.text) for sentence in sentences]
        rate = len(sentences) / (time.perf_counter() - begun)
        gold = [{(entity.start, entity.end) for entity in s.entities} for s in sentences]
        right = sum(len(a & b) for a, b in zip(found, gold, strict=True))
        precision = right / max(1, sum(map(len, found)))
        recall = right / max(1, sum(map(len, gold)))
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        out.append([name, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", f"{rate:,.0f}"])
    return out


def main() -> int:
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HEADRACE_EVAL_DATA")
    data = Path(given or "../shared/data/eval")
    if not data.is_dir():
        print(f"eval: {data} is no folder; name one as argument or in HEADRACE_EVAL_DATA")
        return 2
    model = SentimentModel.load()
    columns = ("sentiment", "macro recall", "accuracy", "texts/s")
    tried = False
    if (data / "sentiment" / "tweeteval_val_text.txt").exists():
        rows = read_tweeteval(data / "sentiment")
        table(f"tweeteval_val, {len(rows):,} tweets", columns, sentiment_rows(rows, model))
        tried = True
    airlines = data.parent / "social" / "customer_care_airline_tweets.csv"
    if airlines.exists():
        rows = read_airlines(airlines)
        table(f"airlines, {len(rows):,} messages", columns, sentiment_rows(rows, model))
        tried = True
    for file in sorted((data / "ner").glob("*dev*.conll")):
        sentences = read_conll(file)
        count = sum(len(sentence.entities) for sentence in sentences)
        table(
            f"{file.stem}, {len(sentences):,} texts with {count:,} entities, by span",
            ("entities", "precision", "recall", "F1", "texts/s"),
            entity_rows(sentences, DICTIONARIES),
        )
        tried = True
    if not tried:
        print(f"eval: {data} holds none of the files that bench/eval.py names")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
