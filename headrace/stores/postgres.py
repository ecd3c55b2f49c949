"""Connections to PostgreSQL: the address, the timeouts and the project's own schema."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import conninfo

from headrace.config import Settings
from headrace.errors import ConfigError, ServerUnavailable

T = TypeVar("T")

# Two writers met; done again, the same transaction goes through.
COLLISIONS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


def address(settings: Settings) -> dict[str, str]:
    """Connection parameters: the configured address, else the local server's.

    Raises ServerUnavailable where there is none, ConfigError where it cannot be read.
    """
    if settings.postgres.dsn is not None:
        dsn = settings.postgres.dsn.get_secret_value()
    else:
        from headrace import servers

        running = servers.running().get("postgres")
        if not running:
            raise ServerUnavailable(
                "PostgreSQL is not running: start it with `headrace up`, or set postgres.dsn"
            )
        dsn = running
    try:
        found = {key: str(value) for key, value in conninfo.conninfo_to_dict(dsn).items()}
    except psycopg.Error:  # its message would repeat the DSN, password included
        raise ConfigError(
            "postgres.dsn cannot be read: write postgresql://user:password@host:5432/database"
        ) from None
    if settings.postgres.sslmode:
        found["sslmode"] = settings.postgres.sslmode
    return found


def where(settings: Settings) -> str:
    """The server's host and port for a message; never the password."""
    found = address(settings)
    return f"{found.get('host', 'localhost')}:{found.get('port', '5432')}"


def connect(
    settings: Settings,
    *,
    readonly: bool = False,
    autocommit: bool = False,
    application: str = "headrace",
) -> psycopg.Connection:
    """A connection whose search_path is the project's schema, with the configured timeouts.

    Raises ServerUnavailable (host and port, no secret) where the server does not answer.
    """
    found = address(settings)
    options = {
        "search_path": settings.project,
        "lock_timeout": settings.postgres.lock_timeout,
        "statement_timeout": settings.postgres.statement_timeout,
        "default_transaction_read_only": "on" if readonly else "off",
        "TimeZone": "UTC",
    }
    said = " ".join(f"-c {key}={_escaped(value)}" for key, value in options.items())
    found["options"] = f"{found.get('options', '')} {said}".strip()
    found.setdefault("application_name", f"{application} {settings.project}")
    found.setdefault("connect_timeout", "10")
    found["client_encoding"] = "utf8"
    try:
        return psycopg.connect(conninfo.make_conninfo("", **found), autocommit=autocommit)
    except psycopg.OperationalError as error:
        raise ServerUnavailable(
            f"PostgreSQL at {where(settings)} cannot be used: {_first_line(error)}"
        ) from None


def lost(error: BaseException) -> bool:
    """Whether the server or the connection went away, so that a new connection may do."""
    if isinstance(error, ServerUnavailable):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state.startswith(("08", "57P"))


def passing(error: BaseException) -> bool:
    """Whether the same transaction may succeed later: server away, collision, lock, no space."""
    if isinstance(error, psycopg.Error) and error.sqlstate:
        # 53: no disk, memory or connections left; 55P03: lock not to be had; 57014: timeout;
        # 25006: read-only, as after a failover; 58: an error of the system's.
        if error.sqlstate.startswith(("40", "53", "58")):
            return True
        if error.sqlstate in ("55P03", "57014", "25006"):
            return True
    return lost(error)


def again(work: Callable[[], T], *, tries: int = 6, pause: float = 0.05) -> T:
    """The work's result; when it collides with another writer it is done again, a few times.

    `work` is a whole transaction: it must leave nothing behind when it raises.
    """
    for attempt in range(1, tries):
        try:
            return work()
        except COLLISIONS:
            time.sleep(pause * attempt)
    return work()


def _escaped(value: str) -> str:
    return re.sub(r"([\\\s])", r"\\\1", value)


def _first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
