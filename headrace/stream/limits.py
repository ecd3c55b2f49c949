"""Stops a group before it dead-letters the world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headrace.stream.faults import LimitReached
from headrace.stream.topology import DeadLetterLimits


class DeadLetterCount:
    """Records and dead letters of one worker's life, held against its group's limits."""

    def __init__(self, group: str, limits: DeadLetterLimits) -> None:
        self._group = group
        self._limits = limits
        self._records = 0
        self._dead = 0

    @property
    def room(self) -> int:
        """So many more dead letters may come before `count` is passed."""
        return max(0, self._limits.count - self._dead)

    def add(self, records: int, reasons: Iterable[str]) -> None:
        """Counts a batch. Call before its commit: on LimitReached nothing of it should stay."""
        found = list(reasons)
        self._records += records
        self._dead += len(found)
        limits = self._limits
        past_count = self._dead > limits.count
        past_share = (
            self._records >= limits.of_at_least and self._dead > limits.share * self._records
        )
        if found and (past_count or past_share):
            reason, times = Counter(found).most_common(1)[0]
            limit = f"count {limits.count}" if past_count else f"share {limits.share:g}"
            raise LimitReached(
                f"{self._dead} of {self._records} records would be dead letters, past the limit "
                f"({limit}); {times} of the last batch: {reason}. Nothing of that batch is "
                f"committed. Mend the cause, or raise dead_letters of {self._group} in "
                f"topics.yaml, and start it again"
            )
