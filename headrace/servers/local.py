"""A server that runs on this machine, from its data folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from headrace.errors import HeadraceError, ServerUnavailable
from headrace.servers import install, state
from headrace.servers.kafka import Kafka
from headrace.servers.kind import Address, Kind, Tuning
from headrace.servers.llm import LLM
from headrace.servers.ports import comes_free, free_port, is_free
from headrace.servers.postgres import Postgres
from headrace.servers.process import Process, spawn
from headrace.servers.say import Say, quiet
from headrace.servers.weaviate import Weaviate

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Kafka(), Postgres(), Weaviate(), LLM())}
PORT_ATTEMPTS = 5


class LocalServer:
    """One local server: `start` it, `stop` it, `kill` it, start it again.

    It keeps its port and its data. Several processes may work on the same one: what runs is
    noted in the data folder, and `start` of a running server returns its address.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        *,
        port: int = 0,
        tuning: Tuning | None = None,
        say: Say = quiet,
    ) -> None:
        self.kind = kind_of(name)
        self.data_dir = data_dir
        self.folder = data_dir / name
        self.log = self.folder / f"{name}.log"
        self.port = port
        self.tuning = tuning or Tuning()
        self.say = say

    @property
    def entry(self) -> state.Entry | None:
        entry = state.read(self.data_dir).get(self.kind.name)
        return entry if entry and entry.how == "local" else None

    @property
    def process(self) -> Process | None:
        """The server's process, if it lives."""
        entry = self.entry
        if entry is None or entry.pid is None or entry.started is None:
            return None
        process = Process(entry.pid, entry.started)
        return process if process.alive() else None

    @property
    def address(self) -> Address:
        """Its address, which it keeps while it is down; an error before its first start."""
        entry = self.entry
        if entry is None:
            raise ServerUnavailable(f"{self.kind.name} has never run in {self.data_dir}")
        return Address(self.kind.value(entry.ports), self.kind.name, "local", entry.ports)

    def start(self) -> Address:
        """Start it if it does not run, and wait until it answers."""
        if not self.kind.installed():
            self.kind.install(self.say)
        with state.locked(self.data_dir, self.say):
            self.launch()
            return self.settle()

    def stop(self, patience: float = 60.0) -> None:
        """Shut it down cleanly; after `patience` seconds kill it."""
        with state.locked(self.data_dir, self.say):
            if process := self.process:
                process.end(self.kind.stop_signal, patience)

    def kill(self) -> None:
        """kill -9, it and its children; returns when they are gone."""
        if process := self.process:
            process.kill()

    def launch(self) -> None:
        """First half of `start`, under the lock and with an install: the process."""
        if self.process:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_version()
            ports = self._ports()
            self.kind.prepare(self.folder, ports, self.tuning)
            (self.folder / "VERSION").write_text(self.kind.data_version + "\n", "utf-8")
            process = spawn(
                self.kind.launch(self.folder, ports, self.tuning), self.folder, self.log
            )
        except OSError as error:
            raise ServerUnavailable(f"{self.kind.name} cannot be started: {error}") from error
        state.note(
            self.data_dir,
            state.Entry(
                server=self.kind.name,
                how="local",
                version=self.kind.version,
                ports=ports,
                pid=process.pid,
                started=process.started,
                log=str(self.log),
            ),
        )

    def settle(self) -> Address:
        """Second half of `start`: wait until it answers, on another port if ours was taken."""
        for attempt in range(PORT_ATTEMPTS):
            if self._answers_in_time():
                return self.address
            words = install.last_words(self.log)
            if self.port or attempt + 1 == PORT_ATTEMPTS or not _port_was_taken(words):
                break
            self._forget_ports()
            self.launch()
        raise ServerUnavailable(f"{self.kind.name} did not start: {words} (log: {self.log})")

    def _answers_in_time(self) -> bool:
        deadline = time.monotonic() + self.kind.patience
        address = self.address
        while time.monotonic() < deadline:
            if self.process is None:
                return False
            if self.kind.ready(address):
                return True
            time.sleep(0.1)
        if process := self.process:
            process.end(self.kind.stop_signal, 10.0)
        return False

    def _check_version(self) -> None:
        note = self.folder / "VERSION"
        found = note.read_text("utf-8").strip() if note.exists() else self.kind.data_version
        if found != self.kind.data_version:
            raise HeadraceError(
                f"{self.folder} holds data of {self.kind.name} {found}, and this is "
                f"{self.kind.data_version}: move the folder away, or use another with --data-dir"
            )

    def _ports(self) -> dict[str, int]:
        """Configured, else those of the last start, else free ones."""
        name = self.kind.name
        if self.port and not is_free(self.port):
            raise ServerUnavailable(
                f"port {self.port}, configured as servers.{name}_port, is taken by another program"
            )
        last = dict(self.entry.ports) if self.entry else {}
        if self.port:
            last[self.kind.ports[0]] = self.port
        ports: dict[str, int] = {}
        for use in self.kind.ports:
            port = last.get(use, 0)
            if port and not comes_free(port):
                self.say(f"{name}: port {port} is taken by another program, so it gets a new one")
                port = 0
            ports[use] = port or free_port(set(ports.values()) | set(last.values()))
        return ports

    def _forget_ports(self) -> None:
        if entry := self.entry:
            state.note(self.data_dir, replace(entry, ports={}, pid=None, started=None))


def kind_of(name: str) -> Kind:
    try:
        return KINDS[name]
    except KeyError:
        raise HeadraceError(f"no server is called {name!r}: there are {', '.join(KINDS)}") from None


def _port_was_taken(words: str) -> bool:
    return "already in use" in words.lower() or "could not bind" in words.lower()
