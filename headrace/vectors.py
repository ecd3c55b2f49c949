"""How vectors travel and lie: base64 of little-endian float32 in messages, the bytes in tables."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any


def space(model: str, dimensions: int) -> str:
    """The name of what vectors of one model and dimension count share: they can be compared."""
    return f"{model}-{dimensions}"


def packed(numbers: bytes) -> str:
    """Little-endian float32 as a result carries it."""
    return b64encode(numbers).decode()


def unpacked(text: str, dimensions: int) -> bytes:
    """Little-endian float32 out of a result. Raises ValueError where it is not that many."""
    numbers = b64decode(text, validate=True)
    if len(numbers) != 4 * dimensions:
        raise ValueError(f"it does not hold {dimensions} numbers")
    return numbers


def as_published(result: Mapping[str, Any], numbers: bytes) -> dict[str, Any]:
    """An embedding's result as its message had it, from its rows in outcomes and vectors."""
    return {**result, "vector": packed(numbers)}
