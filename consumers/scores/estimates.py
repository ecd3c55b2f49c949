"""What it would take to ask for a dimension, in one line."""

from __future__ import annotations

from headrace.config import Settings


def text(settings: Settings, records: int, dimension: str) -> str:
    """Records, calls, and the shortest time that the rate limit allows."""
    if not records:
        return f"{dimension}: no record lacks it"
    calls = -(-records // settings.scores.together)
    said = f"{dimension}: {records:,} records lack it, {calls:,} calls"
    per_minute = settings.llm.requests_per_minute
    if per_minute:
        minutes = calls / per_minute
        said += f", {minutes:,.0f} min at the least" if minutes >= 1 else ", within a minute"
    return said
