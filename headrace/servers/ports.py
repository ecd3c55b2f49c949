"""Ports on loopback."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

HOST = "127.0.0.1"
LOWEST = 15_000


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, or connections that a killed server left would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def comes_free(port: int, patience: float = 5.0) -> bool:
    """Whether a port is free soon: the threads of a server that was just killed hold it for a
    moment, though the process counts as gone."""
    deadline = time.monotonic() + patience
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def answers(port: int, host: str = HOST, timeout: float = 2.0) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def free_port(taken: set[int]) -> int:
    """A free port below the range that outgoing connections use.

    Within that range a client that tries to reach a killed server again may take the
    server's port itself, and the server could not come back.
    """
    highest = max(_first_ephemeral() - 1, LOWEST + 2_000)
    for _ in range(1_000):
        port = random.randint(LOWEST, highest)
        if port not in taken and is_free(port):
            return port
    raise OSError("no free port on loopback")


def _first_ephemeral() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768
