"""Train headrace/models/data/sentiment.npz on labelled tweets and say how good it is.

    python -m bench.train_sentiment [DATA_DIR]        (default ../shared/data/eval)

Trains on the semeval files alone. Texts that also stand in the held-out tweeteval_val, word for
word or nearly so, are taken out first; repeats count once, and texts with as many labels for as
against are left out. Needs scikit-learn and scipy (extra `dev`), which the model itself does not.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score

from bench.labelled import Labelled, read_semeval, read_tweeteval
from headrace.models.sentiment import BUCKETS, FAMILIES, Features, bucket, features, hashed, parts
from headrace.text import decode

VERSION = "vader-lr-2"
OUT = Path("headrace/models/data")
C = 1.0
MIN_TEXTS = 3  # a feature seen in fewer is forgotten
# How much each family may say, beside the 31 dense numbers.
WEIGHT = {"word": 1.0, "pair": 0.5, "negated": 0.7, "part": 0.2}


def normal(text: str) -> str:
    """A text without what differs between copies: people, addresses, signs, case."""
    text = re.sub(r"https?://\S+|\bhttp\b|@\w+|\brt\b", " ", decode(text).lower())
    return re.sub(r"[^a-z0-9]+", "", text)


def training_set(data: Path) -> tuple[list[Labelled], dict[str, int]]:
    rows = read_semeval(data / "sentiment")
    held_out = [row.text for row in read_tweeteval(data / "sentiment")]
    copies = {normal(text) for text in held_out}
    by_text: dict[str, list[Labelled]] = defaultdict(list)
    for row in rows:
        by_text[normal(row.text)].append(row)
    kept: list[Labelled] = []
    excluded = undecided = 0
    for text, same in by_text.items():
        votes = Counter(row.label for row in same).most_common()
        if text in copies:
            excluded += 1
        elif len(votes) > 1 and votes[0][1] == votes[1][1]:
            undecided += 1
        else:
            kept.append(Labelled(same[0].text, votes[0][0]))
    near = near_copies([row.text for row in kept], held_out)
    kept = [row for number, row in enumerate(kept) if number not in near]
    return kept, {
        "rows": len(rows),
        "distinct": len(by_text),
        "held_out_copies_excluded": excluded,
        "held_out_near_copies_excluded": len(near),
        "held_out_texts_with_a_copy": sum(normal(text) in by_text for text in held_out),
        "held_out_texts": len(held_out),
        "undecided_excluded": undecided,
        "used": len(kept),
    }


def near_copies(texts: Sequence[str], held_out: Iterable[str]) -> set[int]:
    """Numbers of the texts that share six in ten of their words with a held-out one."""

    def words(text: str) -> frozenset[str]:
        plain = re.sub(r"@\w+|http\S*", " ", decode(text).lower())
        return frozenset(re.findall(r"[a-z0-9]{3,}", plain))

    sets = [words(text) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)
    for number, own in enumerate(sets):
        for word in own:
            holders[word].append(number)
    found: set[int] = set()
    for text in held_out:
        own = words(text)
        if len(own) < 4:
            continue
        rare = sorted(own, key=lambda word: (len(holders[word]), word))[:5]
        for number in {number for word in rare for number in holders[word][:300]}:
            if len(own & sets[number]) >= 0.6 * len(own | sets[number]):
                found.add(number)
    return found


def matrix(seen: Sequence[Features], family: str) -> Any:
    """One row a text, one column a bucket: how often a feature of the family stands there."""
    indices: list[int] = []
    ends = [0]
    for text in seen:
        if family == "part":
            numbers = [part for word in text.words for part in parts(word)]
        elif family == "word":
            numbers = [hashed(family, word) for word in text.words]
        else:
            numbers = list(text.pairs if family == "pair" else text.negated)
        indices += map(bucket, numbers)
        ends.append(len(indices))
    ones = np.ones(len(indices), dtype=np.float64)
    counts = sparse.csr_matrix((ones, indices, ends), shape=(len(seen), BUCKETS))
    counts.sum_duplicates()
    return counts


def fit(seen: Sequence[Features], labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Weights as the model's file holds them."""
    norm = sparse.diags([text.norm for text in seen])
    blocks, columns, factors = [], [], []
    for family in FAMILIES:
        counts = matrix(seen, family)
        texts = np.asarray((counts > 0).sum(axis=0)).ravel()
        kept = np.flatnonzero(texts >= MIN_TEXTS)
        rarity = np.log(len(seen) / texts[kept]) * WEIGHT[family]
        blocks.append(norm @ counts[:, kept] @ sparse.diags(rarity))
        columns.append(kept)
        factors.append(rarity)
    dense = np.array([text.dense for text in seen])
    inputs = sparse.hstack([*blocks, sparse.csr_matrix(dense)]).tocsr()
    rows, intercept = [], []
    for label in range(3):
        model = LogisticRegression(
            C=C, class_weight="balanced", solver="liblinear", tol=0.01, random_state=0
        )
        model.fit(inputs, labels == label)
        rows.append(model.coef_[0])
        intercept.append(model.intercept_[0])
    coefficients = np.array(rows).T
    table = np.zeros((BUCKETS, 3))
    scales: list[float] = []
    largest: list[tuple[Any, Any]] = []
    position = 0
    for kept, rarity in zip(columns, factors, strict=True):
        weights = coefficients[position : position + len(kept)] * rarity[:, None]
        position += len(kept)
        largest.append((kept, weights))
        scales.append(float(np.abs(weights).max()) / 127)
    # Families share the table. Where two meet in a bucket the heavier one has it.
    owner = np.full(BUCKETS, -1)
    for number, (kept, weights) in enumerate(largest):
        steps = np.rint(weights / scales[number])
        free = (owner[kept] < 0) | (np.abs(steps).max(1) > np.abs(table[kept]).max(1))
        table[kept[free]] = steps[free]
        owner[kept[free]] = number
    return {
        "table": table.astype(np.int8),
        "scales": np.array(scales),
        "dense": coefficients[position:],
        "intercept": np.array(intercept),
    }


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data/eval")
    rows, counts = training_set(data)
    seen = [features(row.text) for row in rows]
    labels = np.array([row.label for row in rows])
    from headrace.models.sentiment import LABELS, SentimentModel

    folds = np.random.RandomState(0).randint(0, 5, len(rows))
    fold_weights = fit(
        [text for text, fold in zip(seen, folds, strict=True) if fold], labels[folds > 0]
    )
    trial = SentimentModel(fold_weights, {"version": "trial"})
    own = [
        LABELS.index(trial.classify(row.text).label)
        for row, fold in zip(rows, folds, strict=True)
        if not fold
    ]
    fold_recall = recall_score(labels[folds == 0], own, average="macro")

    weights = fit(seen, labels)
    OUT.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT / "sentiment.npz", **weights)
    about = {
        "version": VERSION,
        "labels": list(LABELS),
        "trained_on": "SemEval 2013-2016 task A, without what also stands in tweeteval_val",
        "texts": counts,
        "macro_recall_on_a_fifth_left_out": round(float(fold_recall), 4),
        "settings": {"C": C, "min_texts": MIN_TEXTS, "buckets": BUCKETS, "weight": WEIGHT},
    }
    (OUT / "sentiment.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1))
    assert math.isfinite(fold_recall)


if __name__ == "__main__":
    main()
