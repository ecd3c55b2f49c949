"""A world with one stage, which can be mended and upgraded, and the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.stages import groups
from tests.world import World

QUICK = {"processing.retry_seconds": 0.1, "processing.retry_max_seconds": 0.2}


class Redo:
    """`words` is the stage's name, `postgres` the store's."""

    def __init__(self, make: Callable[..., World], **flags: Any) -> None:
        def change(content: dict[str, Any]) -> None:
            store = content["groups"]["postgres"]
            for name in [name for name in content["topics"] if name.startswith("enriched.")]:
                del content["topics"][name]
            stage = {
                "module": "tests.stages.mended",
                "options": {"mended": "MENDED", "model": "a"},
                "dead_letters": {"count": 1000, "share": 1.0},
            }
            groups(words=stage)(content)
            content["groups"]["postgres"] = store
            content["modes"]["fast"] = ["words", "postgres"]

        self.world = make(platforms=("reddit", "youtube"), change=change, flags=QUICK | flags)
        self.mended = self.world.home / "mended"
        self.rewrite(options={"mended": str(self.mended), "model": "a"})

    def rewrite(self, **stage: Any) -> None:
        """Change what topics.yaml says of the stage; who starts from now on reads it."""
        path = self.world.home / "topics.yaml"
        content = yaml.safe_load(path.read_text())
        content["groups"]["words"] |= stage
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def caught_up(self) -> None:
        self.world.run("words", "postgres")

    def counts(self) -> dict[str, int]:
        """Records by what has become of them in the stage."""
        rows = self.world.sql("SELECT status, count(*) FROM stage_status GROUP BY 1")
        return {str(status): int(count) for status, count in rows}

    def states(self, group: str = "words") -> dict[str, int]:
        """Dead letters by state."""
        query = 'SELECT state, count(*) FROM letters WHERE "group" = %s GROUP BY 1'
        return {str(state): int(count) for state, count in self.world.sql(query, [group])}

    def queued(self) -> list[str]:
        """Keys on the redo topic, sorted; one may stand there several times."""
        return sorted((m.key() or b"").decode() for m in self.world.read("words.redo"))


@pytest.fixture
def redos(worlds: Callable[..., World]) -> Callable[..., Redo]:
    return lambda **flags: Redo(worlds, **flags)
