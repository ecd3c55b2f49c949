"""What a person who watches is told, in the worker's log and by `headrace personas progress`."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple

from headrace.words import count

_PREFIXES = {"reddit": "r/"}


class Standing(NamedTuple):
    """How far the sets in force are, all communities together. `left`: until the last call, None
    where nothing tells how long a call takes now."""

    communities: int
    begun: int
    personas: int
    planned: int
    calls: int
    calls_planned: int
    cost: Decimal | None
    left: timedelta | None

    @property
    def done(self) -> bool:
        return self.personas >= self.planned and self.begun >= self.communities

    def __str__(self) -> str:
        parts = [
            f"{self.personas}/{self.planned} personas",
            f"{self.calls} of {self.calls_planned} calls",
        ]
        if self.cost is not None:
            parts.append(money(self.cost))
        if self.left is not None and self.calls < self.calls_planned:
            parts.append(f"{duration(self.left)} left")
        return f"Progress: {' · '.join(parts)}"


def name(platform: str, name: str) -> str:
    """r/technology; elsewhere with its platform."""
    prefix = _PREFIXES.get(platform)
    if prefix is None:
        return f"{name} ({platform})"
    return name if name.startswith(prefix) else f"{prefix}{name}"


def community(number: int, of: int, name: str) -> str:
    return f"[Community {number}/{of}] {name}"


def batch(part: str, personas: int, there: int, whole: int) -> str:
    """One answer; `part` as the ledger names it."""
    if part.startswith("again"):
        label, _, places = part.partition(":")
        what = f"in place of {count(len(places.split()), 'near-duplicate')}"
        return f"{label.capitalize()}: {count(personas, 'persona')} {what}"
    return f"Batch {part}: {count(personas, 'persona')} ({there}/{whole})"


def committed(personas: int, how: str = "committed") -> str:
    return f"✓ {how} {count(personas, 'persona')}, {count(personas, 'relationship')}"


def plain(text: object) -> str:
    """In one line, without characters that a terminal obeys."""
    flat = " ".join(str(text).split())
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in flat)


def money(amount: Decimal) -> str:
    return f"${amount:.2f}" if amount == 0 or amount >= Decimal("0.01") else f"${amount:.4f}"


def duration(span: timedelta) -> str:
    seconds = span.total_seconds()
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
