"""Which files a person means, and what tells their contents apart."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from headrace.errors import HeadraceError
from producers.formats import is_readable_name

STDIN = "-"
_REJECTS = ".rejects.jsonl"
_CHUNK = 2**20


def expand(paths: Iterable[str]) -> list[str]:
    """Files for paths: a file is itself, a folder all readable files in it, a pattern what it
    matches. Each file once, in the order named; a folder's and a pattern's by name.

    Raises HeadraceError for a path that means nothing.
    """
    found: dict[str, str] = {}  # by real path
    for path in paths:
        if path == STDIN:
            found.setdefault(STDIN, STDIN)
            continue
        for file in _files(path):
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _files(path: str) -> list[str]:
    if Path(path).is_dir():
        files = [str(file) for file in sorted(Path(path).rglob("*")) if _is_wanted(file, path)]
        if not files:
            raise HeadraceError(f"{path}: there is no file in this folder that can be read by name")
        return files
    if os.path.lexists(path):
        return [path]
    if glob.has_magic(path):
        matched = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute ones)
        files = [file for file in matched if not Path(file).is_dir()]
        files += [
            file
            for folder in matched
            if Path(folder).is_dir() and "**" not in path
            for file in _files(folder)
        ]
        if not files:
            raise HeadraceError(f"{path}: no file matches this pattern")
        return files
    raise HeadraceError(f"{path}: there is no such file or folder")


def _is_wanted(file: Path, folder: str) -> bool:
    parts = file.relative_to(folder).parts
    return (
        not any(part.startswith(".") for part in parts)
        and not file.name.endswith(_REJECTS)
        and is_readable_name(file)
        and file.is_file()
    )


def fingerprint(path: str) -> str:
    """A hash of the file's content as it stands on disk. Raises OSError."""
    digest = hashlib.blake2b(digest_size=20)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        buffer = bytearray(_CHUNK)
        view = memoryview(buffer)
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


def stamp(path: str) -> tuple[int, int]:
    """Size and time of the last change. Raises OSError."""
    state = os.stat(path)  # noqa: PTH116
    return state.st_size, state.st_mtime_ns
