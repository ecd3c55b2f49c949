"""Worlds of the groups that are always on; those with a schedule have tests of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.world import World


def _always_on(content: dict[str, Any]) -> None:
    groups = content["groups"]
    later = [name for name, group in groups.items() if "when" in group]
    later += [name for name, group in groups.items() if group["kind"] == "projector"]
    for name in later:
        written = groups.pop(name).get("writes")
        content["topics"].pop(written, None)
    for mode, names in content["modes"].items():
        if names != "all":
            content["modes"][mode] = [name for name in names if name not in later]


@pytest.fixture
def worlds(worlds: Callable[..., World]) -> Callable[..., World]:
    def make(*, change: Callable[[dict[str, Any]], None] | None = None, **options: Any) -> World:
        def both(content: dict[str, Any]) -> None:
            _always_on(content)
            if change is not None:
                change(content)

        return worlds(change=both, **options)

    return make
