"""docker-compose.yml runs the same servers as `headrace up`, and every group."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.servers import docker
from headrace.servers.kafka import SETTINGS

CLONE = Path(__file__).resolve().parent.parent.parent
COMPOSE = yaml.safe_load((CLONE / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]

# In a container the broker listens for its neighbours too.
LISTENING = {"listener.security.protocol.map", "inter.broker.listener.name"}


def test_images_are_those_of_the_servers() -> None:
    assert {name: SERVICES[name]["image"] for name in docker.IMAGES} == docker.IMAGES
    assert docker.IMAGES["kafka"].endswith(":4.3.1")


def test_the_broker_has_our_settings() -> None:
    told = SERVICES["kafka"]["environment"]
    for key, value in SETTINGS.items():
        if key not in LISTENING:
            assert told["KAFKA_" + key.upper().replace(".", "_")] == value, key


def test_every_group_has_a_worker() -> None:
    groups = yaml.safe_load((CLONE / "topics.yaml").read_text("utf-8"))["groups"]
    workers = {name: service for name, service in SERVICES.items() if name.startswith("worker-")}
    assert sorted(workers) == sorted(f"worker-{group}" for group in groups)
    for name, service in workers.items():
        assert service["command"] == ["worker", name.removeprefix("worker-")]
        assert service["depends_on"]["setup"]["condition"] == "service_completed_successfully"


def test_everything_is_pinned_watched_and_on_loopback() -> None:
    for name, service in SERVICES.items():
        assert ":" in service["image"] and not service["image"].endswith(":latest"), name
        assert service["healthcheck"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


@pytest.mark.docker
def test_compose_understands_it() -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker is not here")
    compose = ["docker", "compose", "--file", str(CLONE / "docker-compose.yml")]
    if subprocess.run([*compose, "version"], capture_output=True, timeout=60).returncode:
        pytest.skip("docker has no compose plugin here")
    command = [*compose, "--profile", "workers", "--profile", "search", "config", "--quiet"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr


@pytest.mark.docker
def test_servers_run_in_docker(docker_engine: None, tmp_path: Path) -> None:
    from headrace.servers.local import kind_of

    address = docker.start("kafka", tmp_path, 0, print)
    try:
        assert kind_of("kafka").ready(address)
    finally:
        docker.remove(tmp_path)
