"""Where snapshots lie: <snapshots.dir>/<project>/<name>/, one file a table and manifest.json.

Whoever makes, changes, deletes or restores one holds the folder's lock. A snapshot that is being
made lies in `<name>.partial` and gets its name when it is whole; a change of one writes new files
beside the old ones and then replaces the manifest: so what has a name is whole at any moment, and
files that no manifest names are remains, to be swept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zstandard

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.snapshots import manifest as manifests
from headrace.snapshots.manifest import File, Manifest

MANIFEST = "manifest.json"
PARTIAL = ".partial"
_LOCK = ".lock"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
_PIECE = 1 << 20  # bytes in memory at a time
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Listed:
    """What lies in the folder; without a manifest `fault` says why."""

    name: str
    manifest: Manifest | None
    fault: str = ""


def root(settings: Settings) -> Path:
    return settings.under(settings.snapshots.dir) / settings.project


@contextmanager
def locked(settings: Settings, say: Callable[[str], object] = lambda line: None) -> Iterator[Path]:
    """The folder of the project's snapshots, to oneself; waits for whoever is at work in it."""
    place = root(settings)
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another command works on the snapshots: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield place
    finally:
        os.close(lock)


def check_name(name: str) -> str:
    if not _NAME.match(name) or name.endswith(PARTIAL):
        raise HeadraceError(
            f"{name!r} cannot be a snapshot's name: write letters, digits, dots, dashes and"
            " underscores (up to 100)"
        )
    return name


def listed(settings: Settings) -> list[Listed]:
    """Every snapshot, the oldest first; then what is none."""
    place = root(settings)
    whole: list[Listed] = []
    rest: list[Listed] = []
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if not path.is_dir():
            continue
        if path.name.endswith(PARTIAL):
            rest.append(Listed(path.name, None, "being made, or left half-made"))
            continue
        try:
            whole.append(Listed(path.name, read(path)))
        except HeadraceError as error:
            rest.append(Listed(path.name, None, str(error)))
    return sorted(whole, key=lambda each: each.manifest.created_at if each.manifest else "") + rest


def find(settings: Settings, name: str) -> Path:
    """The folder of a snapshot. Raises HeadraceError naming those that there are."""
    path = root(settings) / name
    if not name.endswith(PARTIAL) and _NAME.match(name) and path.is_dir():
        return path
    known = ", ".join(each.name for each in listed(settings) if each.manifest) or "none"
    raise HeadraceError(f"there is no snapshot {name} in {root(settings)}; there are: {known}")


def read(path: Path) -> Manifest:
    """The manifest of the snapshot in this folder."""
    try:
        return manifests.load((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise HeadraceError(f"{path} is no snapshot: it has no {MANIFEST}") from None
    except ValueError as error:
        raise HeadraceError(f"{path / MANIFEST} cannot be read: {error}") from None


def write(path: Path, manifest: Manifest) -> None:
    """The manifest at once, after everything that it names."""
    sync(path)
    new = path / f"{MANIFEST}.new"
    with new.open("wb") as file:
        file.write(manifest.dump())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path / MANIFEST)
    sync(path)


def sweep(place: Path) -> list[str]:
    """Throw away what killed commands left behind; the caller holds the lock. Returns names."""
    swept = []
    for path in list(place.iterdir()):
        if not path.is_dir():
            continue
        if path.name.endswith(PARTIAL):
            shutil.rmtree(path)
            swept.append(path.name)
        elif (path / MANIFEST).exists():
            try:
                known = {file.name for file in read(path).files.values()} | {MANIFEST}
            except HeadraceError:
                continue
            for file in path.iterdir():
                if file.name not in known:
                    file.unlink()
                    swept.append(f"{path.name}/{file.name}")
    return swept


def delete(settings: Settings, name: str) -> None:
    """A snapshot, or what is left of one."""
    with locked(settings) as place:
        path = place / name
        if not name.endswith(PARTIAL):
            path = find(settings, name)
        elif not _NAME.match(name) or not path.is_dir():
            raise HeadraceError(f"there is nothing named {name} in {place}")
        else:
            shutil.rmtree(path)
            return
        # Not half of it under its name, whenever we are killed.
        going = place / f"{name}{PARTIAL}"
        if going.exists():
            shutil.rmtree(going)
        path.rename(going)
        shutil.rmtree(going)


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- files


def pack(path: Path, blocks: Iterable[bytes], columns: tuple[str, ...]) -> File:
    """Write rows (COPY's text format, in pieces of any size) to a new file, safely on disk."""
    rows = size = 0
    digest = hashlib.sha256()
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    with path.open("xb") as file:

        def put(packed: bytes) -> None:
            nonlocal size
            digest.update(packed)
            size += file.write(packed)

        for block in blocks:
            rows += block.count(b"\n")  # one inside a value is escaped
            put(packer.compress(block))
        put(packer.flush())
        file.flush()
        os.fsync(file.fileno())
    return File(path.name, columns, rows, size, digest.hexdigest())


def unpack(path: Path) -> Iterator[bytes]:
    """The rows of a file in pieces. Raises HeadraceError where the file is damaged."""
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            while piece := reader.read(_PIECE):
                yield piece
    except FileNotFoundError:
        raise HeadraceError(f"{path} is missing") from None
    except zstandard.ZstdError as error:
        raise HeadraceError(f"{path} is damaged: {error}") from None


def fault(path: Path, file: File, *, rows: bool = False) -> str | None:
    """What is wrong with a file, or None; `rows`: unpack and count them too."""
    digest = hashlib.sha256()
    size = 0
    try:
        with (path / file.name).open("rb") as opened:
            while piece := opened.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return f"{file.name} is missing"
    if size != file.bytes:
        return f"{file.name} has {size:,} bytes instead of {file.bytes:,}"
    if digest.hexdigest() != file.sha256:
        return f"{file.name} is damaged: its checksum is another"
    if rows:
        try:
            found = sum(piece.count(b"\n") for piece in unpack(path / file.name))
        except HeadraceError as error:
            return str(error)
        if found != file.rows:
            return f"{file.name} has {found:,} rows instead of {file.rows:,}"
    return None
