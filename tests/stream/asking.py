"""What tests of running groups ask again and again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from headrace.stream.remaining import remaining
from tests.world import World

QUICK = {"processing.retry_seconds": 0.1, "processing.retry_max_seconds": 0.2}


def outcomes(world: World, short: str = "words") -> Counter[str]:
    """How many outcomes each record has in a stage."""
    return Counter(value["id"] for value in world.values(f"enriched.{short}"))


def posted(*ids: object) -> Counter[str]:
    """One outcome for each of these posts."""
    return Counter({f"post:reddit:{native}": 1 for native in ids})


def lag(world: World, short: str = "words") -> int:
    group = world.topology.group(short)
    topics = {short: (*group.reads, group.redo)}
    return remaining(world.admin, [group], topics)[short]


def readers(world: World, short: str = "words") -> list[str]:
    """Members that read something."""
    members = world.admin.members(world.topology.group(short).name)
    return [member.id for member in members if member.partitions]


def state(pid: int) -> str | None:
    """The letter that the kernel has for a process (T: stopped); None where it has ended."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
    return None if found == "Z" else found
