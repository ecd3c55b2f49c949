"""Ends the process when a step takes longer than it may.

A call into librdkafka can hang for ever when a broker vanishes, and no exception reaches a thread
that sits in it. What was in work is then not committed, and whoever comes next does it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.log import get
from headrace.stream.faults import Exit

log = get(__name__)

_TICK = 0.5


class Watchdog:
    """Counts only time that it saw pass, so that a process that was frozen is not ended for it."""

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._steps: dict[str, tuple[float, int]] = {}  # seconds left, exit code
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def step(self, name: str, seconds: float, code: int = Exit.STUCK) -> Iterator[None]:
        """`name` says what went on ("commit"), for the log line of the end."""
        self._steps[name] = (seconds, code)
        try:
            yield
        finally:
            self._steps.pop(name, None)

    def begin(self, name: str, seconds: float, code: int = Exit.STUCK) -> None:
        """A step that only the end of the process ends."""
        self._steps[name] = (seconds, code)

    def _watch(self) -> None:
        seen = time.monotonic()
        while True:
            time.sleep(_TICK)
            now = time.monotonic()
            passed, seen = min(now - seen, 4 * _TICK), now
            for name, (left, code) in list(self._steps.items()):
                if name not in self._steps:
                    continue
                if left <= passed:
                    log.error("hung; ending. Unfinished work will be done again", step=name)
                    self._end(code)
                self._steps[name] = (left - passed, code)
