"""Servers as the settings want them: a configured address comes first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from headrace import servers
from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.servers import ports
from headrace.servers.kind import Address, Tuning
from headrace.servers.local import kind_of
from headrace.servers.say import Say


def address(settings: Settings, name: str) -> Address | None:
    """The address that configuration or environment names, if any."""
    if name == "kafka":
        value = settings.kafka.bootstrap_servers
    elif name == "postgres":
        value = settings.postgres.dsn.get_secret_value() if settings.postgres.dsn else None
    elif name == "weaviate":
        value = settings.weaviate.url
    else:
        value = None  # the embedded model is nobody else's
    return Address(value, name, "configured") if value else None


def shown(found: Address) -> str:
    """An address as it may be printed: a DSN without its secrets."""
    if found.server != "postgres":
        return found
    try:
        parts = conninfo_to_dict(found)
    except psycopg.ProgrammingError:
        return "a DSN that PostgreSQL does not understand"
    host, port = parts.get("host", "localhost"), parts.get("port", 5432)
    return f"{host}:{port}/{parts.get('dbname', '')}"


def answers(found: Address) -> bool:
    """Whether a configured server can be reached, as far as can be told without its secrets."""
    if found.server == "kafka":
        for one in found.split(","):
            host, _, port = one.strip().rpartition(":")
            if port.isdigit() and ports.answers(int(port), host.strip("[]"), timeout=5.0):
                return True
        return False
    return kind_of(found.server).ready(found)


def ensure(
    settings: Settings,
    names: Iterable[str] = servers.DEFAULT,
    *,
    data_dir: Path | None = None,
    say: Say = print,
) -> dict[str, Address]:
    """Every named server answers when this returns: configured ones, else our own, started.

    Raises ServerUnavailable for a configured one that does not answer.
    """
    wanted = list(dict.fromkeys(names))
    found = {name: address(settings, kind_of(name).name) for name in wanted}
    addresses: dict[str, Address] = {}
    for name, configured in found.items():
        if configured is None:
            continue
        if not answers(configured):
            raise ServerUnavailable(
                f"{name} is configured as {shown(configured)}, which does not answer: "
                "start it, or take the address out of configuration and environment"
            )
        say(f"{name}: configured, {shown(configured)}")
        addresses[name] = configured
    fixed = {
        "kafka": settings.servers.kafka_port,
        "postgres": settings.servers.postgres_port,
        "weaviate": settings.servers.weaviate_port,
        "llm": settings.servers.llm_port,
    }
    own = [name for name in wanted if found[name] is None]
    if own:
        addresses |= servers.up(
            own,
            data_dir=data_dir,
            ports=fixed,
            tuning=Tuning(heap=settings.servers.kafka_heap),
            say=say,
        )
    return addresses
