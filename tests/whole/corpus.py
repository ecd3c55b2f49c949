"""Records for whole worlds: several languages, named things, revisions, deletions and bad messages.

The same seed gives the same messages in the same order, and with the same number of partitions the
same offsets, so that two worlds that were told the same can be compared row by row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from tests.world import World

TEXTS = (
    "I love my new phone from Samsung, the camera is great! #photo",
    "Terrible service again, I will never fly with Lufthansa. @lufthansa",
    "The meeting in Amsterdam was moved to Tuesday, see https://example.org/a?b=1",
    "Microsoft and Google opened new offices in Berlin and Tokyo this year",
    "Das Essen war wirklich hervorragend und die Bedienung sehr freundlich",
    "Saya sangat suka produk ini kerana kualitinya sangat bagus dan murah",
    "This is the worst update ever, everything is broken and slow 😡😡",
    "שלום לכולם, זה יום יפה מאוד היום",
    "ok",
    "",
    "👍👍👍",
    "Toyota\tcars\nare \\ \"reliable\" ' and that's fine; 100% of them \u2028 \u202eright\u202c",
)
BAD: tuple[tuple[bytes | None, bytes | None], ...] = (
    (b"post:reddit:broken", b'{"id": "post:reddit:broken", '),
    (b"user-17", b'{"user": 17, "action": "login"}'),
    (b"\xff\xfe", b"\x00\x01\x02"),
    (None, b'{"id": "post:reddit:keyless", "kind": "post", "platform": "reddit", "text": "a"}'),
)


def waves(count: int, size: int, seed: int = 7) -> list[list[dict[str, Any]]]:
    """`count` lists of about `size` revisions of posts on reddit and youtube. Most are new; some
    come again with another text, some are deleted, and of those some come back."""
    chance = random.Random(seed)
    known: list[tuple[str, str]] = []
    made = []
    for _ in range(count):
        wave: list[dict[str, Any]] = []
        while len(wave) < size:
            if known and chance.random() < 0.15:
                platform, native = chance.choice(known)
            else:
                platform, native = chance.choice(["reddit", "youtube"]), f"n{len(known)}"
                known.append((platform, native))
            identity = {"id": f"post:{platform}:{native}", "kind": "post", "platform": platform}
            if chance.random() < 0.05:
                wave.append(identity | {"deleted": True})
            else:
                wave.append(identity | _content(chance, native))
        made.append(wave)
    return made


def _content(chance: random.Random, native: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "native_id": native,
        "text": f"{chance.choice(TEXTS)} {chance.choice(TEXTS)}".strip(),
        "author": f"author {chance.randrange(30)}",
        "community": chance.choice(["Technology", "r/technology", "Food", "食べ物"]),
        "created_at": f"2026-0{chance.randrange(1, 10)}-1{chance.randrange(10)}T12:00:00Z",
        "metrics": {"score": chance.randrange(-5, 100), "likes": chance.randrange(1000)},
    }
    if chance.random() < 0.3:
        content["title"] = "A title"
    return content


def publish(world: World, wave: Sequence[dict[str, Any]], number: int) -> None:
    """A wave as run r<number>, and some bad messages behind it."""
    world.publish(wave, run=f"r{number}")
    for key, value in BAD:
        world.send("raw.posts.reddit", key or b"", value, flush=False)
    world.flush()


def write_file(path: Path, rows: int, seed: int = 8) -> Path:
    """So many rows of posts on reddit for `headrace publish`; some come again with another text."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        for number in range(rows):
            native = f"f{chance.randrange(rows)}"
            row = {
                "id": native,
                "title": f"Title {number}",
                "selftext": chance.choice(TEXTS),
                "permalink": f"/r/{chance.choice(['Food', 'apple'])}/comments/{native}/",
                "author": f"author {chance.randrange(30)}",
                "score": number,
                "created_utc": 1_354_123_731 + number,
            }
            file.write(orjson.dumps(row) + b"\n")
    return path


def revisions(made: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """All of them in their order."""
    for wave in made:
        yield from wave
