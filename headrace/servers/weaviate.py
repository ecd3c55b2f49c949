"""Weaviate: one node, built by go from the published module."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

from headrace.errors import ServerUnavailable
from headrace.servers import install
from headrace.servers.kind import Tuning
from headrace.servers.ports import HOST
from headrace.servers.process import Launch
from headrace.servers.say import Say

VERSION = "1.39.0"
MODULE = "github.com/weaviate/weaviate/cmd/weaviate-server"

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
            say(f"weaviate: building {VERSION} with go (about 4 min, once for this user)")
            install.run(
                "install-weaviate",
                [go, "install", "-trimpath", "-ldflags=-s -w", f"{MODULE}@v{VERSION}"],
                {"GOBIN": str(into), "CGO_ENABLED": "0", "GOFLAGS": ""},
                into,
                say,
            )
            if not (into / "weaviate-server").exists():
                raise ServerUnavailable("go ended without an error but built no Weaviate")

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
