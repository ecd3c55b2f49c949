"""Weaviate: one node, built by go from the published module."""

from __future__ import annotations

import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import orjson

from headrace.errors import ServerUnavailable
from headrace.servers import install
from headrace.servers.kind import Tuning
from headrace.servers.ports import HOST
from headrace.servers.process import Launch
from headrace.servers.say import Say

VERSION = "1.39.0"
MODULE = "github.com/weaviate/weaviate"
PROGRAM = "./cmd/weaviate-server"
# These listen on every interface, and no setting changes that; we build them for loopback.
LISTENERS = (
    "adapters/handlers/grpc/server.go",
    "adapters/handlers/rest/clusterapi/grpc/server.go",
    "adapters/handlers/rest/clusterapi/serve.go",
)

# A proxy in the environment is not for loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Weaviate:
    name = "weaviate"
    version = VERSION
    data_version = ".".join(VERSION.split(".")[:2])
    ports: tuple[str, ...] = ("client", "grpc", "gossip", "data", "raft", "raft_rpc")
    patience = 180.0
    stop_signal: int = signal.SIGTERM

    def _folder(self) -> str:
        return f"weaviate-{VERSION}"

    def installed(self) -> bool:
        return install.folder(self._folder()).exists()

    def install(self, say: Say) -> None:
        def build(into: Path) -> None:
            go = install.go()
            source = into / "source"

            def run(cwd: Path, *words: str) -> None:
                environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
                install.run("weaviate", [go, *words], environment, cwd, say)

            say(f"weaviate: building {VERSION} with go (about 4 min, once for this user)")
            run(into, "mod", "download", f"{MODULE}@v{VERSION}")
            shutil.copytree(_module(go, into), source, ignore=_UNUSED)
            _on_loopback(source)
            run(
                source, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
                "-o", str(into / "weaviate-server"), PROGRAM,
            )  # fmt: skip
            shutil.rmtree(source)

        install.make(self._folder(), build, say)

    def prepare(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> None:
        (folder / "data").mkdir(exist_ok=True)

    def launch(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> Launch:
        program = install.folder(self._folder()) / "weaviate-server"
        environment = {
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
            "PERSISTENCE_DATA_PATH": str(folder / "data"),
            "DEFAULT_VECTORIZER_MODULE": "none",
            "ENABLE_MODULES": "",
            "API_BASED_MODULES_DISABLED": "true",
            "DISABLE_TELEMETRY": "true",
            "GO_PROFILING_DISABLE": "true",
            "LOG_LEVEL": "warning",
            # CLUSTER_IN_LOCALHOST stays unset: it wants raft_rpc to be raft + 1.
            "CLUSTER_HOSTNAME": "node1",
            "CLUSTER_BIND_ADDR": HOST,
            "CLUSTER_ADVERTISE_ADDR": HOST,
            "CLUSTER_GOSSIP_BIND_PORT": str(ports["gossip"]),
            "CLUSTER_DATA_BIND_PORT": str(ports["data"]),
            "RAFT_PORT": str(ports["raft"]),
            "RAFT_INTERNAL_RPC_PORT": str(ports["raft_rpc"]),
            "RAFT_JOIN": f"node1:{ports['raft']}",
            "RAFT_BOOTSTRAP_EXPECT": "1",
            "RAFT_TIMEOUTS_MULTIPLIER": "1",
            "GRPC_PORT": str(ports["grpc"]),
        }
        command = [str(program), "--host", HOST, "--port", str(ports["client"]), "--scheme", "http"]
        return Launch(command, environment)

    def value(self, ports: dict[str, int]) -> str:
        return f"http://{HOST}:{ports['client']}"

    def ready(self, value: str) -> bool:
        try:
            with _direct.open(f"{value}/v1/.well-known/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


_UNUSED = shutil.ignore_patterns("*_test.go", "test", "docs", ".github")


def _module(go: str, cwd: Path) -> Path:
    """Where go unpacked the module."""
    said = subprocess.run(
        [go, "mod", "download", "-json", f"{MODULE}@v{VERSION}"],
        cwd=cwd,
        capture_output=True,
        check=True,
    )
    return Path(orjson.loads(said.stdout)["Dir"])


def _on_loopback(source: Path) -> None:
    for folder in (source, *(path for path in source.rglob("*") if path.is_dir())):
        folder.chmod(0o755)  # go unpacks modules read-only
    for name in LISTENERS:
        file = source / name
        text = file.read_text("utf-8")
        if '":%d"' not in text:
            raise ServerUnavailable(f"Weaviate {VERSION} does not listen in {name} as expected")
        file.chmod(0o644)
        file.write_text(text.replace('":%d"', f'"{HOST}:%d"'), "utf-8")
