"""A large file read and mapped in a process of its own, while this one sends what came before.

Reading and mapping a row takes as long as sending it, and Python does one at a time. The rows come
in the file's order, as they would without the process, so nothing else knows of it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from headrace.config import Settings
from headrace.errors import HeadraceError
from producers.inputs import Files, Input, Told, hurry
from producers.mapping import Mapped, Rejected
from producers.sources import STDIN

_CHUNK = 500  # rows sent at once
_PIPE_BYTES = 2**20  # the most that Linux gives everybody: how far the reader may be ahead


# Rows, then how far they reach: fraction, what was left out, NULs removed; last whether the file is
# at its end, or what is wrong with it.
_Chunk = tuple[list[Any], float | None, "Counter[str]", int, bool | str]


def is_worth_it(settings: Settings, path: str) -> bool:
    """Whether a process of its own pays; a smaller file is sent before one has started."""
    return path != STDIN and Path(path).stat().st_size >= settings.publishing.ahead_bytes


class Ahead:
    """An opened file whose rows another process reads. Iterate once, then close."""

    def __init__(self, opened: Input, path: str, settings: Settings, told: Told) -> None:
        self.name = opened.name
        self.mapping = opened.mapping
        self.detected = opened.detected
        self.fraction: float | None = opened.fraction
        self.left_out: Counter[str] = Counter()
        self.nul_removed = 0
        self.origin = opened.origin
        self._opened = opened
        context = multiprocessing.get_context("spawn")  # threads of librdkafka survive no fork
        self._pipe, theirs = context.Pipe(duplex=False)
        with suppress(OSError):
            fcntl.fcntl(self._pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._process = context.Process(
            target=_read, args=(theirs, settings, told, path), daemon=True
        )
        self._process.start()
        theirs.close()

    def __iter__(self) -> Iterator[Mapped | Rejected]:
        receive, load, new = self._pipe.recv_bytes, pickle.loads, tuple.__new__
        while True:
            try:
                chunk: _Chunk = load(receive())
            except (EOFError, OSError):
                self._process.join(10)
                raise HeadraceError(
                    f"the process that read it ended with status {self._process.exitcode};"
                    " publish it again to go on"
                ) from None
            rows, self.fraction, self.left_out, self.nul_removed, end = chunk
            for row in rows:
                yield new(Mapped, (*row, None)) if type(row) is tuple else row
            if isinstance(end, str):
                raise HeadraceError(end)
            if end:
                return

    def close(self) -> None:
        self._pipe.close()  # whoever writes into it ends
        self._process.terminate()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)
        self._opened.close()


def _read(pipe: Connection, settings: Settings, told: Told, path: str) -> None:
    """The other process: chunks of rows, with how far they reach; at the end True, or what was
    wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent hears it
    hurry()
    rows: list[Any] = []
    input_: Input | None = None

    def send(end: bool | str) -> None:
        far = (input_.fraction, input_.left_out, input_.nul_removed) if input_ else _NOTHING
        pipe.send_bytes(pickle.dumps((rows, *far, end), pickle.HIGHEST_PROTOCOL))
        rows.clear()

    try:
        try:
            input_ = Files(settings, told).open(path)
            for item in input_:
                # Without the record: its JSON is all that is sent.
                rows.append(item[:3] if type(item) is Mapped else item)
                if len(rows) == _CHUNK:
                    send(False)
            send(True)
        except HeadraceError as damage:
            send(str(damage))
        except OSError as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise
            send(f"cannot be read: {error.strerror or error}")
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # nobody wants more


_NOTHING: tuple[None, Counter[str], int] = (None, Counter(), 0)
