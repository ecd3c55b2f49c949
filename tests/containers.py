"""Servers for tests as containers, where a Docker engine runs and nothing is installed yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.errors import ServerUnavailable
from headrace.servers import docker
from headrace.servers.kafka import SETTINGS
from headrace.servers.local import kind_of
from headrace.servers.ports import free_port

INSIDE = {"kafka": {"client": 9092}, "postgres": {"client": 5432}}
INSIDE["weaviate"] = {"client": 8080, "grpc": 50051}


def environment(name: str, ports: dict[str, int]) -> dict[str, str]:
    """What a container is told so that it is like our local server."""
    if name == "postgres":
        return {
            "POSTGRES_USER": "headrace",
            "POSTGRES_DB": "headrace",
            "POSTGRES_HOST_AUTH_METHOD": "trust",
        }
    if name == "weaviate":
        return {
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
            "DEFAULT_VECTORIZER_MODULE": "none",
            "DISABLE_TELEMETRY": "true",
            "CLUSTER_HOSTNAME": "node1",
        }
    listeners = {
        "listeners": "CLIENT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"CLIENT://127.0.0.1:{ports['client']}",
        "controller.quorum.voters": "1@localhost:9093",
    }
    settings = SETTINGS | listeners
    return {"KAFKA_" + key.upper().replace(".", "_"): value for key, value in settings.items()}


@contextmanager
def started(name: str) -> Iterator[str]:
    """One server in a container of its own; its address."""
    from testcontainers.core.container import DockerContainer

    kind = kind_of(name)
    ports = {}
    for use in INSIDE[name]:
        ports[use] = free_port(set(ports.values()))
    container = DockerContainer(docker.IMAGES[name])
    for use, inside in INSIDE[name].items():
        container = container.with_bind_ports(inside, ("127.0.0.1", ports[use]))
    for key, value in environment(name, ports).items():
        container = container.with_env(key, value)
    with container:
        value = kind.value(ports)
        deadline = time.monotonic() + kind.patience
        while not kind.ready(value):
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"{name} in a container did not answer")
            time.sleep(0.2)
        yield value
