"""SIGTERM and SIGINT: the first asks to drain, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from headrace.log import get

log = get(__name__)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def hold() -> None:
    """Signals wait from now on, also for the program that takes this process over, until it
    listens for them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


class Signals:
    """Python runs handlers in the main thread, which may sit in a call into librdkafka. So the
    signal's number goes through a pipe to a thread of its own, which calls `on_first` and
    `on_second`; then the process ends."""

    def __init__(self) -> None:
        self.on_first: Callable[[], object] = lambda: None
        self.on_second: Callable[[], object] = lambda: None
        self._stop = threading.Event()
        self._listens = False

    def stopping(self) -> bool:
        return self._stop.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits so long, or until a first signal; whether there was one."""
        return self._stop.wait(seconds)

    def stop(self) -> None:
        """As a first signal would."""
        self._stop.set()
        self.on_first()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread() and not self._listens:
            self._listens = True
            read, write = os.pipe()
            os.set_blocking(write, False)
            for number in _SIGNALS:
                signal.signal(number, lambda *_: None)
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(read,), name="signals", daemon=True).start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # see `hold`
        return self

    def __exit__(self, *_: object) -> None:
        """The handlers stay: a process that leaves this block is about to end."""

    def _listen(self, pipe: int) -> None:
        while number := os.read(pipe, 1):
            if number[0] not in _SIGNALS:
                continue
            if self._stop.is_set():
                self.on_second()
                os._exit(128 + number[0])
            log.info("draining; a second signal ends at once")
            self.stop()
