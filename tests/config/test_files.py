"""YAML files, platforms and schedules: what is read, and how a mistake is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace import config, platforms, schedule, yamlfile
from headrace.errors import ConfigError, HeadraceError
from headrace.schedule import DAY_MS
from headrace.stream import topology


def test_yaml_says_what_it_looks_like_and_knows_its_lines(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# a\non: no\ndate: 2026-01-02\nyes: true\nlist:\n  - a: 1\n  - b: 2\n")
    document = yamlfile.read(path)
    assert document.value == {
        "on": "no",
        "date": "2026-01-02",
        "yes": True,
        "list": [{"a": 1}, {"b": 2}],
    }
    assert document.where(("list", 1, "b")) == f"{path}:7"
    assert document.where(("list", 1, "c", "d")) == f"{path}:7"


def test_merge_keys_may_be_overridden_but_not_doubled(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nown:\n  <<: *base\n  a: 3\n")
    assert yamlfile.read(path).value["own"] == {"a": 3, "b": 2}


def _settings(tmp_path: Path, **files: str) -> config.Settings:
    folder = tmp_path / "config" / "platforms"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    (tmp_path / "config" / "headrace.yaml").write_text("")
    return config.load({"config": tmp_path / "config" / "headrace.yaml"})


def test_a_platform_is_one_file(tmp_path):
    settings = _settings(
        tmp_path,
        forum="""
title: Our forum
required: [author]
processing:
  mode: fast
  fast_mode: {skip_sentiment: true, conservative_entities_only: true}
  batch_processing:
    sentiment: {schedule: 'cron "0 2 * * *"', batch_size: 500, min_new_records: 100}
mappings: {anything: [goes, here]}
""",
        plain="",
    )
    found = platforms.load(settings)
    assert list(found) == ["forum", "plain"] == list(platforms.names(settings))
    assert found["forum"].title == "Our forum"
    assert found["forum"].mappings == {"anything": ["goes", "here"]}
    assert (found["forum"].mode(settings), found["plain"].mode(settings)) == ("fast", "full")
    forced = settings.model_copy(
        update={"processing": settings.processing.model_copy(update={"mode": "full"})}
    )
    assert found["forum"].mode(forced) == "full"
    with pytest.raises(HeadraceError, match=r"platform reddit is not known; .* forum, plain"):
        platforms.get(settings, "reddit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: other", "a.yaml:1: name: should be a,"),
        ("processing: {mode: quick}", "a.yaml:1: processing.mode: should be 'fast' or 'full'"),
        ("processing:\n  fast_mode: {skip_all: true}", "a.yaml:2: .*skip_all: unknown key"),
        (
            "processing:\n  batch_processing:\n    text: {schedule: often}",
            'a.yaml:3: processing.batch_processing.text.schedule: "often" is no schedule',
        ),
        ("processing:\n  batch_processing:\n    text: {enable: false}", "did you mean enabled"),
    ],
)
def test_a_wrong_platform_file_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        platforms.load(_settings(tmp_path, a=text))


def test_a_platform_may_not_name_a_group_that_is_none(tmp_path):
    settings = _settings(tmp_path, a="processing:\n  batch_processing:\n    sentimet: {}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:3: .*sentimet: there is no such group"):
        topology.load(settings).check_platforms(platforms.load(settings))


def test_a_platforms_name_makes_a_topic(tmp_path):
    with pytest.raises(ConfigError, match=r"My-Forum\.yaml: a platform's name"):
        platforms.names(_settings(tmp_path, **{"My-Forum": ""}))


def test_the_shipped_platforms_are_right():
    settings = config.load({"config": "/dev/null"})
    topology.load(settings).check_platforms(platforms.load(settings))


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("always", 0),
        ('cron "0 2 * * *"', 2),
        ("0 2 * * 1", 8),
        ("cron '30 4 1 * *'", 32),
        ("0 0 29 2 *", 1462),
        ("* * 31 1,12 *", 336),
        ("0 9 1 * mon", 8),  # either of the two days, as cron does
        ("lag >= 1000 or 7 days", 7),
        ("lag >= 5 or 12 hours", 0.5),
    ],
)
def test_the_longest_rest_of_a_schedule(text, days):
    assert schedule.parse(text).longest_ms == days * DAY_MS


def test_a_schedule_by_lag_alone_may_rest_for_ever():
    assert schedule.parse("lag >= 1_000") == schedule.Schedule("lag >= 1_000", lag=1000)
    assert schedule.parse("lag >= 1_000").longest_ms is None


@pytest.mark.parametrize("text", ["", "often", "cron 1 2 3", "99 * * * *", "lag >= 3 or 7 moons"])
def test_what_is_no_schedule_is_said(text):
    with pytest.raises(ValueError, match="is no "):
        schedule.parse(text)
