"""One record a community, out of its posts in one pass.

Memory grows with the communities, not with their posts: of each only counts, sketches and its best
posts are kept.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from headrace.slug import slug as plain_slug
from producers.convert import MAX_ID

_EXACT = 4_096  # so many different things are counted exactly
_REGISTERS = 4_096  # more are estimated, within about 1.6 %
_TITLE = 300  # characters of a best post's title or text
_RANKED_BY = ("score", "likes", "reactions", "views")


class Communities:
    """The communities of one platform.

    add(record) takes a post as published (raw_post.v1); records() gives raw_community.v1, by id.
    A post that comes twice counts once. A best post is ranked by its score, else its likes, its
    reactions, its views; at equality by id, so that the order of the rows does not matter.
    """

    def __init__(self, platform: str, best: int = 10) -> None:
        self.platform = platform
        self.without = 0  # posts that name no community
        self._best = best
        self._found: dict[str, _Community] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, record: dict[str, Any]) -> None:
        if "deleted" in record:
            # It does not say where it stood; what is counted cannot be taken back.
            for community in self._found.values():
                community.leave_out(record["id"])
            return
        name = record.get("community")
        slug = slug_of(name, self.platform) if name else ""
        if not slug:
            self.without += 1
            return
        found = self._found.get(slug)
        if found is None:
            found = self._found[slug] = _Community(str(name)[:1000], self._best)
        found.add(record)

    def records(self) -> Iterator[dict[str, Any]]:
        for slug in sorted(self._found):
            yield {
                "id": f"community:{self.platform}:{slug}",
                "kind": "community",
                "platform": self.platform,
                "slug": slug,
                **self._found[slug].facts(),
            }


def slug_of(name: str, platform: str = "") -> str:
    """A community's slug, short enough for an id."""
    return plain_slug(name)[: MAX_ID - len(f"community:{platform}:")]


class _Community:
    def __init__(self, name: str, best: int) -> None:
        self.name = name
        self._posts = Distinct()
        self._authors = Distinct()
        self._comments = 0
        self._counts_comments = False
        self._first: str | None = None
        self._last: str | None = None
        self._size = best
        self._heap: list[tuple[float, str]] = []  # the worst of the best in front
        self._shown: dict[str, dict[str, Any]] = {}

    def add(self, record: dict[str, Any]) -> None:
        fresh = self._posts.add(record["id"])
        if author := record.get("author"):
            self._authors.add(author)
        metrics = record.get("metrics") or {}
        if fresh and (comments := metrics.get("comments")) is not None:
            self._counts_comments = True
            self._comments += int(comments)
        if at := record.get("created_at"):
            # RFC 3339 in UTC sorts as text, but for fractions: "…05Z" against "…05.5Z".
            self._first = min(self._first or at, at, key=_moment)
            self._last = max(self._last or at, at, key=_moment)
        self._rank(record, metrics)

    def leave_out(self, record_id: str) -> None:
        """Show a post no more."""
        if self._shown.pop(record_id, None) is not None:
            self._heap = [kept for kept in self._heap if kept[1] != record_id]
            heapq.heapify(self._heap)

    def _rank(self, record: dict[str, Any], metrics: dict[str, Any]) -> None:
        score = next((metrics[name] for name in _RANKED_BY if name in metrics), 0)
        key = (score, record["id"])
        if record["id"] in self._shown:
            self._heap = [kept for kept in self._heap if kept[1] != record["id"]]
            heapq.heapify(self._heap)
        elif len(self._heap) >= self._size:
            if not self._heap or key <= self._heap[0]:
                return
            del self._shown[heapq.heappop(self._heap)[1]]
        heapq.heappush(self._heap, key)
        title = record.get("title")
        shown = ("title", title) if title else ("text", record.get("text") or "")
        self._shown[record["id"]] = {
            "id": record["id"],
            shown[0]: shown[1][:_TITLE],
            "score": score,
        }

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": self.name, "posts": len(self._posts)}
        if len(self._authors):
            facts["authors"] = len(self._authors)
        if self._counts_comments:
            facts["comments"] = max(0, self._comments)
        if self._first:
            facts |= {"first_at": self._first, "last_at": self._last}
        facts["best_posts"] = [
            self._shown[record_id] for _, record_id in sorted(self._heap, reverse=True)
        ]
        return facts


def _moment(at: str) -> str:
    return at.rstrip("Z")


class Distinct:
    """How many different strings: exact up to 4,096 of them, then estimated (HyperLogLog)."""

    def __init__(self) -> None:
        self._seen: set[int] | None = set()
        self._registers: bytearray | None = None

    def add(self, value: str) -> bool:
        """Whether it is new; once the count is an estimate, whether it may be."""
        mark = int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "big")
        if self._seen is not None:
            if mark in self._seen:
                return False
            self._seen.add(mark)
            if len(self._seen) > _EXACT:
                self._registers = bytearray(_REGISTERS)
                for earlier in self._seen:
                    self._note(self._registers, earlier)
                self._seen = None
            return True
        assert self._registers is not None
        self._note(self._registers, mark)
        return True

    @staticmethod
    def _note(registers: bytearray, mark: int) -> None:
        place, rest = mark % _REGISTERS, mark // _REGISTERS
        rank = 53 - rest.bit_length()  # of the 52 bits that are left: leading zeros and one
        if rank > registers[place]:
            registers[place] = rank

    def __len__(self) -> int:
        if self._seen is not None:
            return len(self._seen)
        assert self._registers is not None
        share = sum(2.0**-rank for rank in self._registers)
        estimate = 0.7213 / (1 + 1.079 / _REGISTERS) * _REGISTERS**2 / share
        empty = self._registers.count(0)
        if estimate <= 2.5 * _REGISTERS and empty:
            estimate = _REGISTERS * math.log(_REGISTERS / empty)
        return round(estimate)
