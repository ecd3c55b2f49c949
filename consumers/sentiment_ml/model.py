"""Negative, neutral or positive, from a text's vector and what the fast model says of its words.

Logistic regression on two things that are there already: the 384 numbers of the vector and the
three sums of `headrace.models.sentiment`. bench/train_sentiment_ml.py trains it; its figures stand
in headrace/models/data/METRICS.md.
"""

from __future__ import annotations

import math
from importlib import resources

import numpy as np
import orjson

from headrace.errors import HeadraceError
from headrace.models.embedding import Vectors
from headrace.models.sentiment import LABELS, Sentiment, SentimentModel, features, verdict


class VectorSentiment:
    """The trained model, with the fast model that it asks first. Read-only after loading.

    space      of the vectors that it can read
    weights    (labels, numbers of a vector); `of_sums` (labels, labels); `intercept` (labels)
    """

    def __init__(self, about: dict[str, object], fast: SentimentModel) -> None:
        self.space = str(about["space"])
        self.version = str(about["version"])
        self._weights = np.array(about["weights"], dtype=np.float64)
        self._of_sums = np.array(about["of_sums"], dtype=np.float64)
        self._intercept = np.array(about["intercept"], dtype=np.float64)
        self._fast = fast
        if about["fast"] != fast.version or len(self._weights) != len(LABELS):
            raise HeadraceError(
                f"sentiment_ml was trained beside {about['fast']}, not {fast.version}: run "
                "bench/train_sentiment_ml.py"
            )

    @classmethod
    def load(cls) -> VectorSentiment:
        """The model that the package ships."""
        file = resources.files("consumers.sentiment_ml") / "weights.json"
        try:
            about = orjson.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise HeadraceError(
                f"the model of sentiment_ml cannot be read ({error}); reinstall headrace"
            ) from None
        return cls(about, SentimentModel.load())

    def classify(self, text: str, vector: Vectors) -> Sentiment:
        """Label, score and confidence of one English text and its vector.

        One text at a time: a product of matrices may round by how many rows it has.
        """
        sums = self._fast.sums([features(text)])[0]
        found = self._weights @ vector.astype(np.float64) + self._of_sums @ sums + self._intercept
        odds = [math.exp(value) for value in (found - found.max()).tolist()]
        total = sum(odds)
        return verdict([value / total for value in odds])
