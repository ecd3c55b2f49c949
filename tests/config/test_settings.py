"""Settings: what wins over what, what is refused and how, what a child process gets."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
import yaml

from headrace import config
from headrace.errors import ConfigError

CLONE = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _bare(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("HEADRACE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()


def write(text: str) -> Path:
    path = Path("config/headrace.yaml")
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file_over_defaults(monkeypatch):
    write("project: acme\nprocessing: {batch_size: 1, drain_seconds: 1, retry_seconds: 1}\n")
    monkeypatch.setenv("HEADRACE_PROCESSING__BATCH_SIZE", "2")
    monkeypatch.setenv("HEADRACE_PROCESSING__DRAIN_SECONDS", "2")
    settings = config.load({"processing.batch_size": 3, "log": {"level": None}})
    assert settings.project == "acme"
    processing = settings.processing
    assert (processing.batch_size, processing.drain_seconds, processing.retry_seconds) == (3, 2, 1)
    assert processing.retry_max_seconds == 30
    assert settings.home == Path.cwd()


def test_another_file_brings_its_own_home(monkeypatch, tmp_path):
    other = tmp_path / "elsewhere" / "config" / "headrace.yaml"
    other.parent.mkdir(parents=True)
    other.write_text("project: other\n")
    monkeypatch.setenv("HEADRACE_CONFIG", str(other))
    settings = config.load()
    assert (settings.project, settings.home) == ("other", tmp_path / "elsewhere")


def test_paths_are_our_own_or_as_shipped(tmp_path):
    assert config.load().path("topics") == CLONE / "topics.yaml"
    (tmp_path / "topics.yaml").write_text("")
    assert config.load().path("topics") == tmp_path / "topics.yaml"
    with pytest.raises(ConfigError, match=r"topics: .*nowhere\.yaml does not exist"):
        config.load({"topics": "nowhere.yaml"}).path("topics")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kafka:\n  bootstrap_server: x", "headrace.yaml:2: kafka.bootstrap_server: unknown key"),
        ("kafka:\n  bootstrap_server: x", "did you mean bootstrap_servers"),
        (
            "processing:\n  mode: quick",
            "headrace.yaml:2: processing.mode: should be 'fast'",
        ),
        ("servers: {kafka_port: x}", "headrace.yaml:1: servers.kafka_port: should be .* integer"),
        ("kafka: 5", "headrace.yaml:1: kafka: should be keys and values"),
        ("project: Acme Corp", "headrace.yaml:1: project: "),
        ("project: a\nproject: b", "headrace.yaml:2: project: the key stands here twice"),
        ("project: [a", "headrace.yaml:1: "),
        ("- a", "headrace.yaml:1: should be keys and values"),
    ],
)
def test_a_wrong_file_is_named_with_line_and_key(text, message):
    write(text)
    with pytest.raises(ConfigError, match=message):
        config.load()


def test_a_file_that_is_no_text_or_not_there_is_named(monkeypatch):
    Path("config/headrace.yaml").write_bytes(b"project: \xff\xfe")
    with pytest.raises(ConfigError, match=r"headrace\.yaml: cannot be read: it is not UTF-8"):
        config.load()
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such configuration file"):
        config.load({"config": "gone.yaml"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HEADRACE_PROCESSING__BATCH_SIZE", "many", "BATCH_SIZE .processing.batch_size.: should"),
        ("HEADRACE_PROCESSING__BATCH_SIZE", "0", "batch_size.*greater than or equal to 1"),
        ("HEADRACE_PROCESSING__BATCHSIZE", "5", "BATCHSIZE .*did you mean batch_size"),
        ("HEADRACE_PROJECT__X", "5", "HEADRACE_PROJECT__X"),
        ("HEADRACE_SENTIMENT__LANGUAGES", "[en", "HEADRACE_SENTIMENT__LANGUAGES"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        config.load()


def test_empty_and_foreign_variables_are_not_settings(monkeypatch):
    monkeypatch.setenv("HEADRACE_POSTGRES__DSN", "")
    monkeypatch.setenv("HEADRACE_DATA_DIR", "/somewhere")
    assert config.load().postgres.dsn is None


def test_a_wrong_secret_is_not_repeated():
    write("kafka:\n  sasl_password: [geheim]\n")
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert "kafka.sasl_password" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_child_process_gets_the_very_same_settings(monkeypatch, tmp_path):
    write("project: acme\nkafka: {sasl_password: 's e'}\nsentiment: {languages: [en, de]}\n")
    flags = {"kafka.client": {"client.rack": "a", "retries": 3}, "entities.threshold": 1 / 3}
    settings = config.load(flags)
    for name, value in config.as_environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "config")
    assert config.load() == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert "s e" not in repr(settings)


def test_the_shipped_file_names_every_setting_with_its_default():
    text = (CLONE / "config" / "headrace.yaml").read_text()
    assert yaml.safe_load(text) == dict.fromkeys(yaml.safe_load(text))  # all of it is commented out
    values = yaml.safe_load(re.sub(r"(?m)^( *)#(?=(?:  )*[a-z])", r"\1", text))
    shown = config.Settings.model_validate(values)
    default = config.Settings()
    named = {
        (section, key) for section, keys in values.items() if isinstance(keys, dict) for key in keys
    } | {(key,) for key in values if not isinstance(values[key], dict)}
    for location, value in config.leaves(default):
        if location == ("home",):
            continue
        assert location in named, f"{location} is not in config/headrace.yaml"
        if value is not None:
            section = shown
            for key in location:
                section = getattr(section, key)
            assert section == value, f"{location} is shown as {section}, is {value}"
