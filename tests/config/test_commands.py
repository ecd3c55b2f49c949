"""The command line: one line for a mistake, its exit status, and what `config` and `init` do."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import cli, config, log


@pytest.fixture(autouse=True)
def _bare(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("HEADRACE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _root_logger():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(arguments)
    out, err = capfd.readouterr()
    return status, out, err


def test_get_and_show(capfd, monkeypatch):
    monkeypatch.setenv("HEADRACE_POSTGRES__DSN", "postgresql://me:geheim@db:5432/x")
    monkeypatch.setenv("HEADRACE_KAFKA__SASL_PASSWORD", "geheim")
    assert run(capfd, "config", "get", "processing.batch_size")[:2] == (0, "2000\n")
    assert run(capfd, "config", "get", "processing.batch_size", "--default", "7")[1] == "7\n"
    assert run(capfd, "config", "get", "sentiment.languages")[1].split() == ["[", '"en"', "]"]
    status, out, _ = run(capfd, "--project", "acme", "config", "show", "--json")
    shown = json.loads(out)
    assert (status, shown["project"]) == (0, "acme")
    assert shown["postgres"]["dsn"] == "postgresql://me:***@db:5432/x"
    assert shown["kafka"]["sasl_password"] == "***"
    assert "geheim" not in out + run(capfd, "config", "show")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "get", "procesing.mode"], "did you mean processing.mode"),
        (["--config", "gone.yaml", "config", "show"], "gone.yaml: there is no such"),
        (["--project", "A B", "config", "show"], "flag project"),
        (["nonsense"], "No such command"),
        (["pubish"], "did you mean publish?"),
        (["publish"], "name at least one file"),
        (["topics", "asyncapi", "--output", "gone/x.json"], "gone/x.json: No such file"),
        (["topics", "apply", "--nonsense"], "No such option"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_2(capfd, arguments, message):
    status, out, err = run(capfd, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_broker_that_is_away_is_one_line(capfd, monkeypatch):
    from headrace.stream import clients

    monkeypatch.setattr(clients, "TIMEOUT", 0.5)
    monkeypatch.setenv("HEADRACE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    status, _, err = run(capfd, "topics", "apply", "--dry-run")
    assert status == 2
    assert "headrace: Kafka does not answer at 127.0.0.1:1" in err
    assert "Traceback" not in err


def test_a_reader_that_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "headrace", "config", "show"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


def test_help_names_every_command_without_importing_them(capfd):
    status, out, _ = run(capfd, "--help")
    assert status == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_init_makes_a_folder_that_works(capfd, monkeypatch):
    status, _, _ = run(capfd, "init", "clients/Acme & Co")
    assert status == 0
    folder = Path("clients/Acme & Co")
    assert (folder / "config" / "platforms" / "reddit.yaml").is_file()
    assert (folder / ".gitignore").is_file()
    monkeypatch.chdir(folder)
    settings = config.load()
    assert (settings.project, settings.home) == ("acme_co", Path.cwd())
    assert settings.path("platforms") == Path.cwd() / "config" / "platforms"
    status, _, err = run(capfd, "init", ".")
    assert status == 2
    assert "is a working folder already" in err


def test_init_refuses_a_project_that_cannot_be(capfd):
    status, _, err = run(capfd, "init", "x", "--project", "A-B")
    assert status == 2
    assert "lower-case letters" in err
    assert not Path("x").exists()


def _lines(monkeypatch, style: str, stream: io.StringIO) -> log.Logger:
    monkeypatch.setenv("HEADRACE_KAFKA__SASL_PASSWORD", "geheim")
    log.setup(config.load({"log.format": style}), stream, group="text")
    return log.get("headrace.test")


def test_a_log_line_is_json_with_fields_and_without_secrets(monkeypatch):
    stream = io.StringIO()
    logger = _lines(monkeypatch, "json", stream)
    logger.info("went to %s", "postgresql://me:pw@db", at_offset=5, token="geheim!")
    logger.debug("not shown")
    line = json.loads(stream.getvalue())
    assert line["message"] == "went to postgresql://me:***@db"
    assert (line["group"], line["at_offset"], line["level"]) == ("text", 5, "info")
    assert "geheim" not in stream.getvalue()


def test_a_text_line_shows_the_same(monkeypatch):
    stream = io.StringIO()
    logger = _lines(monkeypatch, "text", stream)
    try:
        raise ValueError("geheim")
    except ValueError:
        logger.exception("broken", lag=3)
    text = stream.getvalue()
    assert "error   broken group=text lag=3" in text
    assert "ValueError" in text
    assert "geheim" not in text
