"""Watching and disturbing the processes of a world."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from headrace.stores import postgres
from headrace.stream import clients
from headrace.stream.remaining import in_order, remaining
from tests.world import World

SESSION = {"consumer.session.timeout.ms": "3000", "consumer.heartbeat.interval.ms": "500"}


def always_on(content: dict[str, Any]) -> None:
    """Leaves out the groups with a schedule, and what is neither a stage nor a store."""
    groups = content["groups"]
    later = [
        name
        for name, group in groups.items()
        if "when" in group or group["kind"] not in ("stage", "store")
    ]
    for name in later:
        written = groups.pop(name).get("writes")
        content["topics"].pop(written, None)
    for mode, names in content["modes"].items():
        if names != "all":
            content["modes"][mode] = [name for name in names if name not in later]


def two_members_each(content: dict[str, Any]) -> None:
    """For `worlds(change=…)`."""
    content["group_defaults"]["workers"] = 2


def shorten_sessions(world: World) -> None:
    """A member that is silent for three seconds loses its partitions."""
    client = AdminClient(clients.base_conf(world.settings))
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in SESSION.items()
    ]
    groups = [
        ConfigResource(ResourceType.GROUP, group.name, incremental_configs=entries)
        for group in world.topology.groups.values()
    ]
    for future in client.incremental_alter_configs(groups, request_timeout=30).values():
        future.result()


def passed(world: World, short: str) -> int:
    """How many messages a group has behind it. To be asked by `wait_for`, as `left` is: a broker
    that is away is no answer yet."""
    group = world.topology.group(short)
    parts = [(topic.name, n) for topic in group.reads for n in range(topic.partitions)]
    with _not_yet():
        return sum(world.admin.committed(group.name, parts).values())


def written(world: World, short: str) -> int:
    """How far a topic's partitions have grown, open transactions included."""
    topic = world.topology.topic(short)
    parts = [(topic.name, n) for n in range(topic.partitions)]
    with _not_yet():
        return sum(world.admin.ends(parts, stable=False).values())


def left(world: World) -> dict[str, int]:
    """How many messages each group has still to read; empty where everything is done."""
    groups = in_order(world.topology, world.topology.groups.values())
    read = {group.short: (*group.reads, group.redo) for group in groups}
    with _not_yet():
        return {short: n for short, n in remaining(world.admin, groups, read).items() if n}


@contextmanager
def _not_yet() -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise AssertionError(f"Kafka does not say: {error}") from error


def workers(world: World, supervisor: subprocess.Popen[bytes]) -> dict[str, int]:
    """The supervisor's newest process of each place ("text/0"), by name."""
    found = re.findall(r"started worker=(\S+) pid=(\d+)", world.log_of(supervisor))
    return {name: int(pid) for name, pid in found}


@contextmanager
def locked(world: World, table: str) -> Iterator[None]:
    """Nobody writes to a table meanwhile; whoever tries waits inside its transaction."""
    with postgres.connect(world.settings) as connection:
        connection.execute("SET LOCAL lock_timeout = '120s'")
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        yield


def waiting(world: World, pids: Iterable[int]) -> list[int]:
    """Those of some processes that wait for a lock of PostgreSQL's inside a transaction."""
    return [pid for pid in pids if _waits(world, pid)]


def _waits(world: World, pid: int) -> bool:
    try:
        ports = [at.laddr.port for at in psutil.Process(pid).net_connections("tcp") if at.raddr]
    except psutil.NoSuchProcess:
        return False
    query = """
        SELECT 1 FROM pg_stat_activity
        WHERE client_port = ANY(%s) AND wait_event_type = 'Lock' AND backend_xid IS NOT NULL
          AND datname = current_database()"""
    return bool(world.sql(query, [ports]))


def send(what: signal.Signals, *pids: int) -> None:
    """Whoever has ended by itself needs none."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def kill(*pids: int) -> None:
    send(signal.SIGKILL, *pids)


def end(world: World, supervisor: subprocess.Popen[bytes]) -> None:
    """As a person ends it; every worker finishes its batch and leaves its group."""
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(120) == 0, world.log_of(supervisor)
