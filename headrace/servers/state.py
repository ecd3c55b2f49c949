"""What runs in a data folder: one JSON file, replaced as a whole, and one lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from headrace.errors import HeadraceError
from headrace.servers.say import Say

How = Literal["local", "docker"]


@dataclass(frozen=True)
class Entry:
    """One server as last started. Its ports stay noted while it is down."""

    server: str
    how: How
    version: str
    ports: dict[str, int] = field(default_factory=dict)
    pid: int | None = None
    started: float | None = None
    log: str = ""


def read(data_dir: Path) -> dict[str, Entry]:
    """What is noted about each server; empty when nothing ever ran here."""
    path = data_dir / "servers.json"
    try:
        noted = json.loads(path.read_text("utf-8"))
        return {name: Entry(**entry) for name, entry in noted["servers"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeadraceError(
            f"{path} is not readable as server state ({error}); "
            "end its servers by hand and delete the file"
        ) from error


def note(data_dir: Path, entry: Entry) -> None:
    """Write one server's entry. Only under `locked`."""
    servers = read(data_dir) | {entry.server: entry}
    path = data_dir / "servers.json"
    temporary = path.with_suffix(".tmp")
    text = json.dumps({"servers": {k: asdict(v) for k, v in servers.items()}}, indent=2)
    temporary.write_text(text + "\n", "utf-8")
    temporary.replace(path)


@contextmanager
def locked(data_dir: Path, say: Say) -> Iterator[None]:
    """One process at a time starts and stops servers of a data folder."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadraceError(f"the data folder {data_dir} cannot be made: {error}") from error
    with exclusively(
        data_dir / "servers.lock", say, f"another process works on the servers in {data_dir}"
    ):
        yield


@contextmanager
def exclusively(path: Path, say: Say, waiting: str) -> Iterator[None]:
    """Hold a lock file; says once what it waits for."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{waiting}; waiting for it")
        lock.acquire()
    except OSError as error:
        raise HeadraceError(f"no lock on {path}: {error}; is the folder yours?") from error
    try:
        yield
    finally:
        lock.release()
