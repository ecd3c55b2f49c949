"""topics.yaml as objects, and what is wrong with one that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace import config, platforms
from headrace.config import Settings
from headrace.errors import ConfigError, HeadraceError
from headrace.stream import topics, topology

CLONE = Path(__file__).resolve().parents[2]


def settings_with(tmp_path: Path, change: Any = None, flags: Any = None, **files: str) -> Settings:
    content = yaml.safe_load((CLONE / "topics.yaml").read_text())
    if change is not None:
        change(content)
    (tmp_path / "topics.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    folder = tmp_path / "config" / "platforms"
    folder.mkdir(parents=True)
    for name, text in (files or {"reddit": "", "youtube": ""}).items():
        (folder / f"{name}.yaml").write_text(text)
    (tmp_path / "config" / "headrace.yaml").write_text("project: acme\n")
    return config.load({"config": tmp_path / "config" / "headrace.yaml", **(flags or {})})


def shorts(found: Any) -> list[str]:
    return [item.short for item in found]


def test_the_map_is_read_whole(tmp_path):
    map_ = topology.load(settings_with(tmp_path))
    text, store = map_.group("text"), map_.group("acme.postgres")
    assert (text.name, text.rank, text.outputs[0].short) == ("acme.text", 1, "enriched.text")
    assert shorts(text.reads) == ["raw.posts.reddit", "raw.posts.youtube"]
    assert (text.redo.name, text.dlt.name) == ("acme.text.redo", "acme.text.dlt")
    assert store.dlt is None
    assert "text.dlt" in shorts(store.reads)
    assert "enriched.sentiment" in shorts(store.reads)
    assert not any(topic.short.endswith(".redo") for topic in store.reads)
    assert text.batch.records == 2000
    raw = map_.by_name("acme.raw.posts.reddit")
    assert (raw.platform, raw.cleanup, raw.timestamps, raw.is_raw) == (
        "reddit",
        "compact",
        "append",
        True,
    )
    assert map_.stage_of(map_.topic("enriched.text")) is text
    assert map_.group_of(map_.topic("text.dlt")) is text
    readers = shorts(map_.readers_of(raw))
    assert readers == ["text", "entities", "sentiment", "embeddings", "scores", "postgres"]
    assert map_.by_name("else.raw.posts.reddit") is None
    assert shorts(map_.mode(None)) == list(map_.groups)
    with pytest.raises(HeadraceError, match="group txt is not known; there are: text, entities"):
        map_.group("txt")


def test_a_templated_output_follows_the_inputs_platform(tmp_path):
    map_ = topology.load(settings_with(tmp_path))
    vectors, text = map_.group("embeddings"), map_.group("text")
    assert shorts(vectors.outputs) == [
        "enriched.embeddings.reddit",
        "enriched.embeddings.youtube",
    ]
    raw = map_.topic("raw.posts.youtube")
    assert vectors.output(raw) == map_.topic("enriched.embeddings.youtube")
    assert vectors.output(map_.topic("raw.communities")) is None
    assert text.output(map_.topic("raw.communities")) == map_.topic("enriched.text")
    assert map_.stage_of(map_.topic("enriched.embeddings.reddit")) is vectors
    assert map_.group("sentiment_ml").reads == vectors.outputs
    assert set(vectors.outputs) < set(map_.group("postgres").reads)


def test_fast_mode_takes_vectors_out_by_platform(tmp_path):
    fast = "processing: {mode: fast, fast_mode: {skip_vectorization: true}}"
    settings = settings_with(tmp_path, reddit=fast, youtube="")
    map_, found = topology.load(settings), platforms.load(settings)
    assert map_.left_out("embeddings", settings, found) == {"raw.posts.reddit": "SCHEDULED"}
    assert map_.left_out("sentiment", settings, found) == {}


@pytest.mark.parametrize(
    ("writes", "reads", "message"),
    [
        ("enriched.embeddings.{platform}", "raw.communities", "only where it reads such topics"),
        ("enriched.nothing.{platform}", "raw.posts.{platform}", "there is no topic enriched.noth"),
        ("enriched.embeddings.{platform}", "raw.posts.{platform}", "is written by text already"),
    ],
)
def test_a_templated_output_that_cannot_be_is_named(tmp_path, writes, reads, message):
    def change(content):
        content["groups"]["text"] |= {"writes": writes, "reads": [reads]}

    with pytest.raises(ConfigError, match=message):
        topology.load(settings_with(tmp_path, change))


def test_own_numbers_of_a_group_win_one_by_one(tmp_path):
    def change(content):
        content["groups"]["text"] |= {"batch": {"records": 7}, "dead_letters": {"share": 0.1}}
        content["groups"]["entities"] |= {"nice": 0}
        content["group_defaults"] |= {"nice": 4}

    map_ = topology.load(settings_with(tmp_path, change))
    assert [map_.group(name).nice for name in ("text", "entities", "sentiment")] == [4, 0, 5]
    group = map_.group("text")
    assert (group.batch.records, group.batch.bytes) == (7, 4 * 2**20)
    assert (group.dead_letters.share, group.dead_letters.count) == (0.1, 1000)


def test_a_batchs_size_is_the_settings_else_the_platforms_else_the_groups(tmp_path):
    small = "processing: {batch_processing: {text: {batch_size: 50}}}"
    settings = settings_with(tmp_path, reddit=small, youtube="")
    map_, found = topology.load(settings), platforms.load(settings)
    assert map_.batch("text", settings, found).records == 50
    assert map_.batch("entities", settings, found).records == 2000
    file = settings.home / "config" / "headrace.yaml"
    flagged = config.load({"config": file, "processing.batch_size": 9})
    assert map_.batch("text", flagged, found).records == 9


FAST = "processing: {mode: fast, fast_mode: {skip_sentiment: true, skip_semantic: true}}"
DISABLED = "processing: {batch_processing: {text: {enabled: false}}}"


def test_what_a_platform_leaves_for_later_is_not_read(tmp_path):
    settings = settings_with(tmp_path, reddit=FAST, youtube=DISABLED)
    map_, found = topology.load(settings), platforms.load(settings)
    assert shorts(map_.subscription("sentiment", settings, found)) == ["raw.posts.youtube"]
    assert map_.left_out("sentiment", settings, found) == {"raw.posts.reddit": "SCHEDULED"}
    # Entities are conservative as they are: fast mode runs them.
    assert shorts(map_.subscription("entities", settings, found)) == [
        "raw.posts.reddit",
        "raw.posts.youtube",
    ]
    assert map_.left_out("text", settings, found) == {"raw.posts.youtube": "DISABLED"}
    assert map_.left_out("postgres", settings, found) == {}


def test_the_modes_flag_overrides_the_platforms_but_not_what_is_disabled(tmp_path):
    settings = settings_with(
        tmp_path, flags={"processing.mode": "full"}, reddit=FAST, youtube=DISABLED
    )
    map_, found = topology.load(settings), platforms.load(settings)
    assert map_.left_out("sentiment", settings, found) == {}
    assert map_.left_out("text", settings, found) == {"raw.posts.youtube": "DISABLED"}


def _sleeping(schedule: str) -> Any:
    def change(content):
        content["groups"]["postgres"]["when"] = schedule

    return change


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ('cron "0 0 1 * *"', r"enriched.text: retention 30 days is shorter than the 33 days"),
        ("lag >= 10", r"retention 30 days is shorter than the forever that group postgres"),
        ("lag >= 10 or 60 days", "61 days"),
    ],
)
def test_nothing_expires_before_its_reader_comes_round(tmp_path, schedule, message):
    settings = settings_with(tmp_path, _sleeping(schedule))
    with pytest.raises(ConfigError, match=message):
        topics.check(topology.load(settings), platforms.load(settings))


def test_a_platforms_own_schedule_counts_too(tmp_path):
    slow = "processing: {batch_processing: {postgres: {schedule: 0 0 1 1 *}}}"
    settings = settings_with(tmp_path, reddit=slow)
    with pytest.raises(ConfigError, match=r"group postgres \(0 0 1 1 \* on reddit\)"):
        topics.check(topology.load(settings), platforms.load(settings))


def test_what_a_removed_stage_has_left_is_not_read(tmp_path):
    def change(content):
        del content["groups"]["sentiment"]
        content["modes"] = {}

    map_ = topology.load(settings_with(tmp_path, change))
    assert "enriched.sentiment" in map_.topics
    read = shorts(map_.group("postgres").reads)
    assert "enriched.sentiment" not in read
    assert {"enriched.text", "enriched.embeddings.reddit", "text.dlt", "runs"} <= set(read)


def test_a_weekly_reader_of_raw_topics_is_fine(tmp_path):
    weekly = "processing: {batch_processing: {sentiment: {schedule: lag >= 9 or 7 days}}}"
    settings = settings_with(tmp_path, reddit=weekly)
    topics.check(topology.load(settings), platforms.load(settings))


def _set(*path: Any) -> Any:
    *keys, last, value = path

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("groups", "text", "reads", ["raw.post.{platform}"]), r"reads\.0: there is no topic"),
        (_set("groups", "text", "writes", "enriched.txt"), "writes: there is no topic"),
        (_set("groups", "text", "writes", "enriched.entities"), "is written by text already"),
        (_set("groups", "text", "reads", ["enriched.sentiment"]), None),
        (_set("groups", "text", "when", "often"), 'text.when: "often" is no schedule'),
        (_set("groups", "text", "batch", {"record": 1}), r"batch\.record: unknown key; did you"),
        (_set("groups", "text", "rank", 0), "rank: should be greater than or equal to 1, not 0"),
        (_set("topics", "status", "retention", "a week"), "is no duration"),
        (_set("topics", "x.{y}", {"description": "", "key": "", "cleanup": "delete"}), "can stand"),
        (_set("modes", "fast", ["txt"]), "there is no group txt"),
        (_set("topics", "raw.communities", "cleanup", "no"), r"raw\.communities\.cleanup: should"),
    ],
)
def test_a_wrong_map_is_named_with_its_line(tmp_path, change, message):
    settings = settings_with(tmp_path, change)
    if message is None:
        assert topology.load(settings)
        return
    with pytest.raises(ConfigError, match=rf"topics\.yaml:\d+: .*{message}"):
        topology.load(settings)


def test_groups_may_not_read_in_a_circle(tmp_path):
    def change(content):
        content["groups"]["text"]["reads"] = ["enriched.sentiment"]
        content["groups"]["sentiment"]["reads"] = ["enriched.text"]

    with pytest.raises(ConfigError, match=r"groups read in a circle: .*text"):
        topology.load(settings_with(tmp_path, change))
