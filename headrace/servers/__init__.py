"""Kafka, PostgreSQL, Weaviate and a small language model for one machine, on loopback.

A server is looked for in this order: a configured address; a local install that is already
cached; a Docker engine, through docker-compose.yml; a local install made now. Data that a
server has already stay where they are: what began in Docker goes on there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace import home
from headrace.servers import docker, state
from headrace.servers.kind import Address, Tuning
from headrace.servers.local import KINDS, LocalServer, kind_of
from headrace.servers.process import Process
from headrace.servers.say import Say

__all__ = [
    "DEFAULT",
    "NAMES",
    "Address",
    "LocalServer",
    "Status",
    "Tuning",
    "down",
    "running",
    "status",
    "up",
]

NAMES = tuple(KINDS)
# Weaviate takes minutes to build and is needed for search only; few need the embedded language
# model, which starts when it is first asked: both are there by name.
DEFAULT = ("kafka", "postgres")


@dataclass(frozen=True)
class Status:
    """What is known of one server."""

    server: str
    state: str  # running, not answering, stopped, absent
    how: str | None = None
    version: str | None = None
    address: str | None = None
    pid: int | None = None
    log: str | None = None


def up(
    names: Iterable[str] = DEFAULT,
    *,
    data_dir: Path | None = None,
    ports: Mapping[str, int] | None = None,
    tuning: Tuning | None = None,
    say: Say = print,
) -> dict[str, Address]:
    """Start what does not run yet and wait until it answers; addresses by name.

    `ports` fixes a server's port; else it keeps the one it had, or gets a free one. Raises
    ServerUnavailable with what is missing, HeadraceError for data of another version.
    """
    wanted = list(dict.fromkeys(names))
    folder = data_dir or home.data_dir()
    servers = {
        name: LocalServer(name, folder, port=(ports or {}).get(name, 0), tuning=tuning, say=say)
        for name in wanted
    }
    # What takes minutes happens before the lock is taken.
    in_docker = {name for name, server in servers.items() if not _local(server, folder, say)}
    addresses: dict[str, Address] = {}
    with state.locked(folder, say):
        begun = [name for name in wanted if name not in in_docker and not servers[name].process]
        for name in wanted:
            if name in in_docker:
                addresses[name] = docker.start(name, folder, servers[name].port, say)
            else:
                servers[name].launch()
        for name in wanted:
            if name not in in_docker:
                addresses[name] = servers[name].settle()
            verb = "started" if name in begun or name in in_docker else "runs already"
            say(f"{name}: {verb}, {addresses[name]}")
    return {name: addresses[name] for name in wanted}


def _local(server: LocalServer, data_dir: Path, say: Say) -> bool:
    """Whether the server is to run here, installed if need be; False: in Docker."""
    name = server.kind.name
    last = state.read(data_dir).get(name)
    if last is not None and last.how == "docker":
        return False
    if server.process or server.kind.installed():
        return True
    in_docker = name in docker.IMAGES and last is None
    if in_docker and docker.compose_file() is not None and docker.engine_available():
        return False
    server.kind.install(say)
    return True


def down(
    names: Iterable[str] = NAMES,
    *,
    data_dir: Path | None = None,
    kill: bool = False,
    say: Say = print,
) -> None:
    """Stop what runs; data and ports stay. `kill` is for data that nobody needs any more."""
    folder = data_dir or home.data_dir()
    wanted = [kind_of(name).name for name in names]
    if not folder.exists():
        say("nothing runs")
        return
    with state.locked(folder, say):
        noted = state.read(folder)
        stopped = [name for name in wanted if name in noted and _stop(noted[name], folder, kill)]
    for name in stopped:
        say(f"{name}: stopped")
    if not stopped:
        say("nothing runs")


def _stop(entry: state.Entry, data_dir: Path, kill: bool) -> bool:
    if entry.how == "docker":
        if not docker.running(entry):
            return False
        docker.stop(entry, data_dir)
        return True
    if entry.pid is None or entry.started is None:
        return False
    process = Process(entry.pid, entry.started)
    if not process.alive():
        return False
    if kill:
        process.kill()
    else:
        process.end(kind_of(entry.server).stop_signal, patience=60.0)
    return True


def status(
    names: Iterable[str] = NAMES,
    *,
    data_dir: Path | None = None,
) -> list[Status]:
    """Each server's state, asked of the server itself."""
    folder = data_dir or home.data_dir()
    noted = state.read(folder)
    return [_status(kind_of(name).name, noted.get(name)) for name in names]


def _status(name: str, entry: state.Entry | None) -> Status:
    if entry is None:
        return Status(name, "absent")
    kind = kind_of(name)
    value = kind.value(entry.ports) if entry.ports else None
    lives = _lives(entry)
    answers = lives and value is not None and kind.ready(value)
    return Status(
        server=name,
        state="running" if answers else "not answering" if lives else "stopped",
        how=entry.how,
        version=entry.version,
        address=value,
        pid=entry.pid if lives else None,
        log=entry.log or None,
    )


def running(data_dir: Path | None = None) -> dict[str, Address]:
    """Addresses of the local servers that run now, without asking them; quick."""
    folder = data_dir or home.data_dir()
    return {
        name: Address(kind_of(name).value(entry.ports), name, entry.how, entry.ports)
        for name, entry in state.read(folder).items()
        if name in KINDS and entry.ports and _lives(entry)
    }


def _lives(entry: state.Entry) -> bool:
    if entry.how == "docker":
        return docker.running(entry)
    if entry.pid is None or entry.started is None:
        return False
    return Process(entry.pid, entry.started).alive()
