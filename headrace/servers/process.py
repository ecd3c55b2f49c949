"""Processes that outlive the one that started them: start, recognise, end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# A log that has grown past this is put aside (one generation) when its server starts.
LOG_BYTES = 20 * 2**20

# The start time is read back from the kernel's clock ticks and the boot time, which a
# clock adjustment moves a little.
SAME_START_SECONDS = 2.0

# Children of this very process have to be waited for, or they stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process id that a reused id is never taken for."""

    pid: int
    started: float  # seconds since 1970

    def alive(self) -> bool:
        return self._find() is not None

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process is gone."""
        if found := self._find():
            with suppress(psutil.NoSuchProcess):
                found.send_signal(number)

    def end(self, number: int, patience: float) -> None:
        """Ask with a signal, wait up to `patience` seconds, then kill it and its children."""
        self.signal(number)
        if not self._gone_within(patience):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and all its children; returns when none is left."""
        found = self._find()
        if found is None:
            return
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            children = found.children(recursive=True)
        family = [self]
        for child in children:
            with suppress(psutil.NoSuchProcess):
                family.append(Process(child.pid, child.create_time()))
        for member in family:
            member.signal(signal.SIGKILL)
        for member in family:
            member._gone_within(30.0)

    def _gone_within(self, seconds: float) -> bool:
        # Not psutil's wait: to that one a zombie that its parent has not yet reaped is alive.
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _find(self) -> psutil.Process | None:
        self._reap()
        try:
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.started) > SAME_START_SECONDS:
                return None
            return None if found.status() == psutil.STATUS_ZOMBIE else found
        except psutil.NoSuchProcess:
            return None

    def _reap(self) -> None:
        child = _children.get(self.pid)
        if child is not None and child.poll() is not None:
            del _children[self.pid]


@dataclass(frozen=True)
class Launch:
    """How a server is started: its command line, environment and (as root) OS user."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


def spawn(launch: Launch, folder: Path, log: Path) -> Process:
    """Start a server in a session of its own, with its output appended to `log`."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".old.log"))
    with log.open("ab") as output:
        child = subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **launch.environment},
            start_new_session=True,
            user=launch.user,
            group=launch.user,
            extra_groups=[] if launch.user else None,
        )
    _children[child.pid] = child
    return Process(child.pid, psutil.Process(child.pid).create_time())
