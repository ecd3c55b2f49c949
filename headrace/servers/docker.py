"""The servers as containers, where a Docker engine runs: docker-compose.yml's services."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from headrace.errors import ServerUnavailable
from headrace.servers import state
from headrace.servers.kind import Address
from headrace.servers.local import kind_of
from headrace.servers.ports import answers, free_port, is_free
from headrace.servers.say import Say

COMPOSE_FILE = "docker-compose.yml"

# The images that docker-compose.yml names too; a test holds them equal.
IMAGES = {
    "kafka": "apache/kafka:4.3.1",
    "postgres": "pgvector/pgvector:0.8.1-pg18",
    "weaviate": "cr.weaviate.io/semitechnologies/weaviate:1.39.0",
}


def compose_file() -> Path | None:
    """The project's docker-compose.yml: beside the working folder's config, or the clone's."""
    clone = Path(__file__).resolve().parent.parent.parent
    for folder in (Path.cwd(), clone):
        if (folder / COMPOSE_FILE).exists() and (folder / "topics.yaml").exists():
            return folder / COMPOSE_FILE
    return None


def engine_available() -> bool:
    """Whether an engine answers and the compose plugin is there."""
    if shutil.which("docker") is None:
        return False
    return all(
        _docker(words, timeout=20.0).returncode == 0
        for words in (["compose", "version"], ["version", "--format", "{{.Server.Version}}"])
    )


def start(name: str, data_dir: Path, port: int, say: Say) -> Address:
    """`docker compose up --wait` of one service, on loopback. Under the data folder's lock."""
    kind = kind_of(name)
    last = state.read(data_dir).get(name)
    ports = dict(last.ports) if last and last.how == "docker" else {}
    if port:
        ports["client"] = port
    for use in [use for use in kind.ports if use in ("client", "grpc")]:
        if not ports.get(use):
            ports[use] = free_port(set(ports.values()))
    if not (last and last.how == "docker") and not is_free(ports["client"]):
        raise ServerUnavailable(f"port {ports['client']} for {name} is taken by another program")
    say(f"{name}: starting {kind.version} in Docker (its image is pulled if it is not here)")
    done = _compose(data_dir, ["up", "--detach", "--wait", name], _variables(name, ports))
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ServerUnavailable(f"docker compose could not start {name}: {words[-1]}")
    state.note(data_dir, state.Entry(name, "docker", kind.version, ports))
    return address(state.read(data_dir)[name])


def stop(entry: state.Entry, data_dir: Path) -> None:
    done = _compose(data_dir, ["stop", entry.server], _variables(entry.server, entry.ports))
    if done.returncode:
        raise ServerUnavailable(f"docker compose could not stop {entry.server}: {done.stderr}")


def remove(data_dir: Path) -> None:
    """Containers and volumes of a data folder, for good."""
    done = _compose(data_dir, ["down", "--volumes", "--timeout", "20"], {})
    if done.returncode:
        raise ServerUnavailable(f"docker compose could not remove its servers: {done.stderr}")


def running(entry: state.Entry) -> bool:
    return answers(entry.ports["client"])


def address(entry: state.Entry) -> Address:
    value = kind_of(entry.server).value(entry.ports)
    return Address(value, entry.server, "docker", entry.ports)


def _variables(name: str, ports: dict[str, int]) -> dict[str, str]:
    """The variables under which docker-compose.yml publishes a service's ports."""
    suffix = {"client": "PORT", "grpc": "GRPC_PORT"}
    return {
        f"HEADRACE_SERVERS__{name.upper()}_{suffix[use]}": str(number)
        for use, number in ports.items()
    }


def _compose(
    data_dir: Path, words: list[str], variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    file = compose_file()
    if file is None:
        raise ServerUnavailable(f"no {COMPOSE_FILE} here; run in the clone")
    # A data folder has containers and volumes of its own.
    project = "headrace-" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:8]
    return _docker(
        ["compose", "--file", str(file), "--project-name", project, *words],
        timeout=900.0,
        variables=variables,
    )


def _docker(
    words: list[str], timeout: float, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *words],
            env=os.environ | (variables or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
