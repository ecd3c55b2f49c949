"""How the servers tell what takes long: a function that takes one line."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def quiet(line: str) -> None:
    """Say nothing."""
