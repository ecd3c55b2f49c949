"""docs/python.md, run from top to bottom as one program."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.search.conftest import Search, search_flags, searches
from tests.world import CLONE

__all__ = ["search_flags", "searches"]  # fixtures

PAGE = CLONE / "docs" / "python.md"


def test_the_page_runs(searches: Callable[..., Search]) -> None:
    world = searches().world
    world.apply()
    (world.home / "data").mkdir()
    rows = [
        {"id": f"a{n}", "title": "A post", "selftext": text, "created_utc": 1354123731 + n,
         "subreddit": "technology", "author": "ann", "score": n, "num_comments": 0}
        for n, text in enumerate(
            ["My new Samsung phone broke after two days, I hate it",
             "I love the camera of this one", "Nike opens a shop in Amsterdam", ""]
        )
    ]  # fmt: skip
    file = world.home / "data" / "posts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S))
    (world.home / "page.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=world.home, env=world.env(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout
    assert "data/posts.jsonl done 4" in said
    assert re.search(r"\(\d, 384\)", said)
    assert "reddit A post\n\nMy new Samsung phone broke" in said
    assert "there is no feelings to read; there are: posts, text, " in said
    assert (world.home / "posts.parquet").exists()


def _columns(page: Path) -> Any:
    return re.findall(r'^\| `"(\w+)"`', page.read_text(), re.M)


def test_what_the_page_says_can_be_read() -> None:
    assert _columns(PAGE) == ["posts", "text", "entities", "embeddings"]
