"""Is anybody there? Asked first by commands, since a Kafka client waits long before it says no."""

from __future__ import annotations

import socket

from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.stream import clients

SECONDS = 5.0


def kafka(settings: Settings) -> None:
    """Raises ServerUnavailable where no bootstrap server takes a connection."""
    said = ""
    addresses = clients.bootstrap(settings)
    for address in addresses.split(","):
        host, _, port = address.strip().rpartition("://")[2].rpartition(":")
        try:
            if not host:  # no port: Kafka's usual one
                host, port = port, "9092"
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
            return
        except (OSError, ValueError) as error:
            said = str(getattr(error, "strerror", None) or error)
    raise ServerUnavailable(
        f"Kafka does not answer at {addresses} ({said}): start it with `headrace up`,"
        " or correct kafka.bootstrap_servers"
    )
