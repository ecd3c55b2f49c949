"""Personas for tests: whole, each its own, and told apart by a vector of their kind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.personas import making


def persona(kind: int, name: str | None = None, evidence: Sequence[str] = ("a",)) -> dict[str, Any]:
    """Two of one kind say the same under two names."""
    return {
        "evidence": list(evidence),
        "name": name or f"Name{kind} N.",
        "age_range": making.AGES[kind % len(making.AGES)],
        "occupation": f"kind{kind}.",
        "interests": ["batteries", "shifts"],
        "goals": ["a phone that lasts"],
        "frustrations": ["sealed cases"],
        "tone_of_voice": "Dry.",
        "typical_posts": ["anyone else?"],
    }


PROFILE = {"about": "Devices.", "tone": "Doubtful.", "themes": ["batteries", "cases"]}


class Kinds:
    """An embedder: texts of one kind have one vector, of two kinds hardly anything in common."""

    name = "kinds"
    dimensions = 64
    version = "kinds-1"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(len(texts))
        return np.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> NDArray[np.float32]:
        found = re.match(r"kind\d+", text)
        seed = hashlib.blake2b((found[0] if found else text).encode(), digest_size=8).digest()
        vector = np.random.default_rng(int.from_bytes(seed, "big")).normal(size=self.dimensions)
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)
