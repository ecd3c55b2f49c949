"""Worlds of the groups that are always on; those with a schedule have tests of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.whole import running
from tests.world import World


@pytest.fixture
def worlds(worlds: Callable[..., World]) -> Callable[..., World]:
    def make(*, change: Callable[[dict[str, Any]], None] | None = None, **options: Any) -> World:
        def both(content: dict[str, Any]) -> None:
            running.always_on(content)
            if change is not None:
                change(content)

        return worlds(change=both, **options)

    return make
