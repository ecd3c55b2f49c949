"""Servers that must not outlive the process which started them: a watchdog on a pipe.

    python -m headrace.servers.guard DATA_DIR PARENT

It waits for the end of its standard input, which comes when the parent closes it or dies in
whatever way; then it kills the folder's servers and removes the folder. Since a process forked
by the parent may hold the pipe open, it also looks whether the parent is still there.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace import servers
from headrace.servers.say import quiet


class Guard:
    """Ends the servers of a throwaway data folder with this process, or at `close`."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", __name__, str(data_dir), str(os.getpid())],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent.parent,
            start_new_session=True,
        )

    def close(self) -> None:
        """End the servers and remove their data; returns when that is done."""
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait(120)


@contextmanager
def throwaway_folder() -> Iterator[Path]:
    """A temporary data folder; its servers end, and it goes, at the end or with this process."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    guard = Guard(folder)
    try:
        yield folder
    finally:
        guard.close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    data_dir, parent = Path(sys.argv[1]), int(sys.argv[2])
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 2.0)[0]:
        pass
    servers.down(data_dir=data_dir, kill=True, say=quiet)
    shutil.rmtree(data_dir, ignore_errors=True)


if __name__ == "__main__":
    main()
