"""Train consumers/sentiment_ml/weights.json on labelled tweets and say how good it is.

    python -m bench.train_sentiment_ml [DATA_DIR] [VECTORS_DIR]   (default ../shared/data/eval)

The same training set as bench/train_sentiment.py: SemEval without what also stands in the held-out
tweeteval_val. What the fast model says of a training text must come of one that never saw it, so
it is trained five times, each time without a fifth. Minutes; VECTORS_DIR keeps vectors and sums
for the next time. Needs scikit-learn and scipy (extra `dev`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.eval import accuracy, macro_recall
from bench.labelled import Labelled, read_airlines, read_tweeteval
from bench.train_sentiment import fit, training_set
from headrace.models.embedding import MINILM, MINILM_DIMENSIONS, MiniLM
from headrace.models.sentiment import LABELS, SentimentModel, features
from headrace.text import clean
from headrace.vectors import space

OUT = Path("consumers/sentiment_ml/weights.json")
VERSION = "minilm-lr-1"
C = 0.3
FOLDS = 5
SUMS = 0.5  # how much the fast model's sums weigh beside the vector, before training

Array = np.ndarray[Any, Any]


def vectors(rows: Sequence[Labelled]) -> Array:
    """As the stage embeddings makes them."""
    return MiniLM().embed([clean(row.text)[:4_000] for row in rows])


def sums(rows: Sequence[Labelled], model: SentimentModel) -> Array:
    return np.asarray(model.sums([features(clean(row.text)) for row in rows]))


def honest_sums(rows: Sequence[Labelled], labels: Array) -> Array:
    """The fast model's sums of each text, of a model that was trained without it."""
    seen = [features(row.text) for row in rows]
    folds = np.random.RandomState(1).randint(0, FOLDS, len(rows))
    found = np.zeros((len(rows), len(LABELS)))
    for fold in range(FOLDS):
        used = [text for text, own in zip(seen, folds, strict=True) if own != fold]
        model = SentimentModel(fit(used, labels[folds != fold]), {"version": "fold"})
        left = [row for row, own in zip(rows, folds, strict=True) if own == fold]
        found[folds == fold] = sums(left, model)
    return found


def kept(folder: Path | None, name: str, make: Callable[[], Array]) -> Array:
    if folder is None:
        return make()
    file = folder / f"{name}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, make())
    return np.asarray(np.load(file))


def train(found: Array, said: Array, labels: Array) -> dict[str, Any]:
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=500, tol=1e-4)
    model.fit(np.hstack([found, said * SUMS]), labels)
    return {
        "version": VERSION,
        "labels": list(LABELS),
        "space": space(MINILM, MINILM_DIMENSIONS),
        "fast": SentimentModel.load().version,
        "intercept": np.round(model.intercept_, 5).tolist(),
        "of_sums": np.round(model.coef_[:, MINILM_DIMENSIONS:] * SUMS, 5).tolist(),
        "weights": np.round(model.coef_[:, :MINILM_DIMENSIONS], 4).tolist(),
    }


def judge(about: dict[str, Any], found: Array, said: Array, labels: Array) -> str:
    scores = found @ np.array(about["weights"]).T + said @ np.array(about["of_sums"]).T
    answers = (scores + about["intercept"]).argmax(axis=1).tolist()
    gold = labels.tolist()
    return f"macro recall {macro_recall(gold, answers):.3f}, accuracy {accuracy(gold, answers):.3f}"


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data/eval")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    rows, counts = training_set(data)
    labels = np.array([row.label for row in rows])
    found = kept(folder, "train_vectors", lambda: vectors(rows))
    said = kept(folder, "train_sums", lambda: honest_sums(rows, labels))
    fifth = np.random.RandomState(0).rand(len(rows)) < 0.2
    trial = train(found[~fifth], said[~fifth], labels[~fifth])
    print("a fifth left out:", judge(trial, found[fifth], said[fifth], labels[fifth]))

    about = train(found, said, labels)
    about["trained_on"] = "SemEval 2013-2016 task A, without what also stands in tweeteval_val"
    about["texts"] = counts["used"]
    about["settings"] = {"C": C, "folds": FOLDS, "sums": SUMS}
    OUT.write_text(json.dumps(about, separators=(",", ":")) + "\n")
    fast = SentimentModel.load()
    tests = {"tweeteval_val": read_tweeteval(data / "sentiment")}
    airlines = data.parent / "social" / "customer_care_airline_tweets.csv"
    if airlines.exists():
        tests["airlines"] = read_airlines(airlines)
    for name, held in tests.items():
        own = kept(folder, f"{name}_vectors", lambda held=held: vectors(held))
        gold = np.array([row.label for row in held])
        print(f"{name}, {len(held):,} texts:", judge(about, own, sums(held, fast), gold))


if __name__ == "__main__":
    main()
