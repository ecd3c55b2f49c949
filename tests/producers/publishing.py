"""What the tests of publishing share: files of posts, and what became of them."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from headrace.stream import schemas
from tests.world import World

TOPIC = "raw.posts.reddit"


def row(number: int, prefix: str = "a", **over: Any) -> dict[str, Any]:
    return {
        "id": f"{prefix}{number}",
        "title": f"Title {number}",
        "selftext": f"Body of {number}: fine 🎉 שלום",
        "permalink": f"/r/{'cooking' if number % 3 else 'apple'}/comments/{prefix}{number}/",
        "author": f"author{number % 7}",
        "score": number,
        "created_utc": 1_354_123_731 + number,
    } | over


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSON lines; a string stands as it is."""
    lines = [one.encode() if isinstance(one, str) else orjson.dumps(one) for one in rows]
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def publish(world: World, *arguments: Any, status: int = 0, **options: Any) -> dict[str, Any]:
    """`headrace publish --json …`: its JSON, once its exit status is the expected one."""
    result = world.command("publish", "--json", *arguments, check=False, **options)
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    value = orjson.loads(result.stdout)
    assert isinstance(value, dict)
    for file in value["files"]:
        assert file["rows"] == file["published"] + file["rejected"] or file["communities"]
    return value


def said(result: subprocess.CompletedProcess[str]) -> str:
    return result.stdout + result.stderr


def ids(world: World, short: str = TOPIC) -> Counter[str]:
    """How often each record id stands on a topic, committed."""
    return Counter((message.key() or b"").decode() for message in world.read(short))


def expected(numbers: Sequence[int], prefix: str = "a") -> Counter[str]:
    return Counter(f"post:reddit:{prefix}{number}" for number in numbers)


def receipt(world: World, run: str) -> dict[str, Any]:
    """The run's receipt; everything on topic `runs` is held to its schema."""
    validator = schemas.validator(world.settings, "run.v1")
    found: dict[str, Any] = {}
    for message in world.read("runs"):
        value = orjson.loads(message.value() or b"null")
        assert schemas.complaint(validator, value) is None, value
        if message.key() == run.encode():
            found = value
    assert found, f"no receipt of {run}"
    return found


def run_of(text: str) -> str:
    found = re.search(r"run (\d{8}-\d{6}-[0-9a-f]{6})", text)
    assert found, text
    return found[1]
