"""Messages about a community and its personas, as Kafka brings them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Message

from headrace.graph import persona_id
from headrace.stream.wire import Lineage, Position, Revision
from headrace.vectors import packed
from tests.stores.conftest import Database

COMMUNITY = "community:reddit:technology"


def raw(database: Database, offset: int, community: str = COMMUNITY, **fields: Any) -> Message:
    value: dict[str, Any] = {"id": community, "kind": "community", "platform": "reddit", **fields}
    if not fields.get("deleted"):
        slug = community.rpartition(":")[2]
        value = {"name": f"r/{slug}", "slug": slug, "posts": 3, "best_posts": []} | value
    return database.message("raw.communities", community, value, (), offset, offset)


def vector(number: int, dimensions: int) -> str:
    """Of length 1, another one for each number below `dimensions`."""
    found = [float(place == number % dimensions) for place in range(dimensions)]
    return packed(struct.pack(f"<{dimensions}f", *found))


def result(
    community: str = COMMUNITY,
    set: int = 1,
    say: str = "",
    ids: Sequence[str] = (),
    count: int = 2,
    space: tuple[str, int] = ("m", 2),
) -> dict[str, Any]:
    """As the stage makes it; `say` stands in every name."""
    names = ids or [persona_id(community, set, place) for place in range(1, count + 1)]
    model, dimensions = space
    return {
        "set": set,
        "changed": False,
        "model": "gpt-test",
        "community": {
            "name": "r/technology", "about": f"gadgets {say}", "tone": "dry",
            "themes": ["phones", "law"], "vector": vector(0, dimensions),
        },
        "vectors": {"model": model, "dimensions": dimensions},
        "personas": [
            {
                "id": name, "name": f"Ann {say}", "age_range": "25-34", "occupation": "Nurse",
                "interests": ["phones"], "goals": ["a good one"], "frustrations": ["prices"],
                "tone_of_voice": "warm", "typical_posts": ["Which one?"],
                "evidence": ["post:reddit:1"], "vector": vector(place, dimensions),
            }
            for place, name in enumerate(names, 1)
        ],
        "kept": [],
    }  # fmt: skip


def outcome(
    database: Database,
    root: int,
    found: Any = None,
    *,
    community: str = COMMUNITY,
    what: str = "ok",
    rank: int = 1,
    offset: int | None = None,
    parts: tuple[str, ...] = (),
) -> Message:
    """An outcome of the revision at offset `root` of raw.communities."""
    topic = f"{database.project}.raw.communities"
    revision = Revision(database.topic_id(topic), 0, root, 1_700_000_000_000 + root)
    lineage = Lineage(revision, "r1", 0, rank, parts, Position(topic, 0, root))
    value: dict[str, Any] = {
        "id": community, "kind": "community", "platform": "reddit", "stage": "personas",
        "outcome": what, "version": "1", "at": "2026-11-21T09:00:00.123Z",
    }  # fmt: skip
    if what == "ok":
        value["result"] = found or result(community)
    elif what != "deleted":
        value["reason"] = "because"
    header = [("hr", lineage.pack())]
    return database.message("enriched.personas", community, value, header, offset)


def decision(
    database: Database, subject: str, action: str, value: Any, offset: int | None = None
) -> Message:
    said = {
        "subject": subject, "action": action, "value": value, "at": "2026-11-21T10:00:00Z",
        "by": "ann",
    }  # fmt: skip
    return database.message("decisions", f"{subject}/{action}", said, (), offset)
