"""Rows of a pipe, and a word when none comes: so that they go out though more may follow later."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_AHEAD = 20_000  # items read before they are wanted
_IDLE = 0.5  # seconds


def paced(items: Iterator[T]) -> Iterator[T | None]:
    """The items as they come; None whenever none has come for half a second.

    A thread reads them; what it raises is raised here.
    """
    ready: deque[T] = deque()
    changed = threading.Event()
    wanted = threading.Semaphore(_AHEAD)
    failure: list[BaseException] = []
    ended = threading.Event()

    def read() -> None:
        try:
            for item in items:
                wanted.acquire()
                ready.append(item)
                changed.set()
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()
            changed.set()

    threading.Thread(target=read, name="pipe", daemon=True).start()
    while True:
        try:
            yield ready.popleft()
            wanted.release()
            continue
        except IndexError:
            pass
        if ended.is_set() and not ready:
            if failure:
                raise failure[0]
            return
        changed.clear()
        if not ready and not ended.is_set() and not changed.wait(_IDLE):
            yield None
