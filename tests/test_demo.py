"""`headrace demo` on real servers, as a person without a terminal sees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_the_demo_shows_the_whole_way(kafka: str, postgres: str, tmp_path: Path) -> None:
    servers = {"HEADRACE_KAFKA__BOOTSTRAP_SERVERS": kafka, "HEADRACE_POSTGRES__DSN": postgres}
    run = subprocess.run(
        [sys.executable, "-m", "headrace", "demo"],
        env={**os.environ, **servers, "HEADRACE_DATA_DIR": str(tmp_path / "data")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = run.stdout
    assert run.returncode == 0, said + run.stderr
    heads = [line.split()[0] for line in said.splitlines() if re.match(r"[A-Z]\w+( |$)", line)]
    assert heads == ["Servers", "Publish", "Enrich", "Ask", "The", "Go"]
    assert "files" in said and "1 row rejected: text is missing" in said
    assert "first analysed record: " in said
    last = [line for line in said.splitlines() if " lag: " in line][-1]
    assert last.endswith("lag: text 0, entities 0, sentiment 0, postgres 0")
    assert re.search(r"reddit +43 .* fast ", said) and re.search(r"youtube +38 .* fast ", said)
    assert "{" not in said + run.stderr, "a person reads no log lines"
    assert not (tmp_path / "rejects").exists()
