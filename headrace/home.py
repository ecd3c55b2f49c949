"""Where Headrace keeps what it makes on this machine, outside the clone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Installed servers; HEADRACE_CACHE_DIR overrides. May be deleted at any time."""
    return _folder("HEADRACE_CACHE_DIR", platformdirs.user_cache_path("headrace"))


def data_dir() -> Path:
    """Data, ports and logs of the local servers; HEADRACE_DATA_DIR overrides."""
    return _folder("HEADRACE_DATA_DIR", platformdirs.user_data_path("headrace"))


def data_id() -> str:
    """A short name of the data folder, the same in each process that uses it."""
    return hashlib.blake2b(os.fsencode(data_dir()), digest_size=4).hexdigest()


def _folder(variable: str, default: Path) -> Path:
    named = os.environ.get(variable)
    return Path(named).expanduser().absolute() if named else default
