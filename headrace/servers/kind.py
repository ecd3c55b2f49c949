"""What is particular to a server; everything else about starting one is shared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from headrace.servers.process import Launch
from headrace.servers.say import Say

How = Literal["configured", "local", "docker"]


class Address(str):
    """What a client needs: bootstrap servers, a DSN or a URL; a string with its origin."""

    server: str
    how: How
    ports: dict[str, int]

    def __new__(
        cls, value: str, server: str, how: How, ports: dict[str, int] | None = None
    ) -> Address:
        address = super().__new__(cls, value)
        address.server = server
        address.how = how
        address.ports = dict(ports or {})
        return address


@dataclass(frozen=True)
class Tuning:
    """How a local server is run."""

    heap: str = "512m"  # Kafka's
    throwaway: bool = False  # quick rather than safe against a power cut; for tests


class Kind(Protocol):
    """A server that can be installed and run here."""

    name: str
    version: str
    data_version: str  # data written by another one is refused
    ports: tuple[str, ...]  # the first one is the clients'
    patience: float  # seconds until it must be ready
    stop_signal: int

    def installed(self) -> bool:
        """Whether it could be started now, without installing anything."""
        ...

    def install(self, say: Say) -> None:
        """Make a local install; ServerUnavailable names what is missing."""
        ...

    def prepare(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> None:
        """Make the data if there are none, and write the configuration."""
        ...

    def launch(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> Launch: ...

    def value(self, ports: dict[str, int]) -> str:
        """The address that clients use."""
        ...

    def ready(self, value: str) -> bool:
        """Whether it answers a client's question now. Raises nothing."""
        ...
