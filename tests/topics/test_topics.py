"""`headrace topics` on a real broker: what is made, altered and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from headrace.errors import HeadraceError
from headrace.stream import clients, topics, topology
from tests.world import World


def alter(world: World, change: Callable[[dict[str, Any]], None]) -> None:
    path = world.home / "topics.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def retain(topic: str, retention: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["topics"][topic].update(retention=retention)


def plan(world: World, **options: Any) -> topics.Plan:
    return topics.plan(world.settings, world.admin, **options)


def test_apply_makes_what_is_missing_and_then_has_nothing_to_do(world):
    world.apply()
    assert plan(world).is_empty
    assert plan(world).unchanged == len(world.topology.topics)
    assert topics.ensure(world.settings) == ()
    there = world.admin.configs([f"{world.project}.raw.posts.reddit"])
    config = there[f"{world.project}.raw.posts.reddit"]
    assert config["cleanup.policy"] == "compact"
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert config["retention.ms"] == "-1"
    redo = world.admin.configs([f"{world.project}.text.redo"])[f"{world.project}.text.redo"]
    assert (redo["cleanup.policy"], redo["retention.ms"]) == ("delete", "-1")


def test_a_topic_that_another_has_just_made_is_taken_as_it_is(world):
    one, other = (clients.admin(world.settings) for _ in range(2))
    with one, other:
        wanted = [clients.Wanted(f"{world.project}.status", 1, {})]
        one.create(wanted)
        other.create(wanted)
    world.apply()
    assert world.admin.topics()[f"{world.project}.status"] == 1


def test_a_longer_retention_is_made_a_shorter_one_refused_unless_accepted(world):
    world.apply()
    alter(world, retain("enriched.text", "60 days"))
    longer = plan(world)
    assert [str(change) for change in longer.alter] == [
        f"{world.project}.enriched.text: retention.ms 30 days → 60 days"
    ]
    topics.apply(world.settings, world.admin, longer)
    assert plan(world).is_empty

    alter(world, retain("enriched.text", "1 day"))
    alter(world, retain("status", "8 days"))
    shorter = plan(world)
    with pytest.raises(HeadraceError, match=r"nothing was changed.*older than 1 day would be lost"):
        topics.apply(world.settings, world.admin, shorter)
    status = world.admin.configs([f"{world.project}.status"])[f"{world.project}.status"]
    assert status["retention.ms"] == str(7 * 86_400_000)

    topics.apply(world.settings, world.admin, plan(world, accept_loss=True))
    assert plan(world).is_empty


def test_what_breaks_order_is_refused_whatever_is_accepted(world):
    world.apply()

    def change(content):
        content["defaults"]["partitions"] = 3
        content["topics"]["raw.communities"]["timestamps"] = "create"

    alter(world, change)
    refused = {(change.topic, change.key) for change in plan(world, accept_loss=True).refused}
    assert (f"{world.project}.raw.posts.reddit", "partitions") in refused
    assert (f"{world.project}.raw.communities", "message.timestamp.type") in refused
    assert (f"{world.project}.status", "partitions") not in refused


def test_compaction_would_lose_messages(world):
    world.apply()

    def change(content):
        content["topics"]["status"].update(cleanup="compact")
        del content["topics"]["status"]["retention"]

    alter(world, change)
    refused = [change for change in plan(world).refused if change.key == "cleanup.policy"]
    assert "newest message of each key" in str(refused[0])


def test_a_topic_that_nobody_wants_is_named_and_left(world):
    world.apply()
    (world.home / "config" / "platforms" / "youtube.yaml").unlink()
    gone = ("enriched.embeddings.youtube", "raw.posts.youtube")
    assert plan(world).unknown == tuple(f"{world.project}.{short}" for short in gone)
    assert f"{world.project}.raw.posts.youtube" in world.admin.topics()
    assert topology.load(world.settings).platforms == ("reddit",)


def test_the_command_shows_the_difference_and_a_dry_run_changes_nothing(world):
    name = f"{world.project}.raw.posts.reddit"
    dry = world.command("topics", "apply", "--dry-run").stdout
    assert f"+ {name} (2 partitions, kept: newest by key)" in dry
    assert name not in world.admin.topics()
    assert f"+ {name}" in world.command("topics", "apply").stdout
    assert name in world.admin.topics()
    assert "topics are as topics.yaml says" in world.command("topics", "apply").stdout

    listed = json.loads(world.command("topics", "list", "--json").stdout)
    raw = next(row for row in listed if row["topic"] == name)
    assert raw["readers"] == ["text", "entities", "sentiment", "embeddings", "scores", "postgres"]

    alter(world, retain("enriched.text", "1 day"))
    refused = world.command("topics", "apply", check=False)
    assert refused.returncode == 2
    assert "! " in refused.stdout
    assert "nothing was changed" in refused.stderr


def test_the_broker_is_asked_without_joining_a_group(world):
    world.post(n=10)
    name, group = f"{world.project}.raw.posts.reddit", f"{world.project}.asked"
    parts = [(name, 0), (name, 1)]
    assert world.admin.starts(parts) == {(name, 0): 0, (name, 1): 0}
    assert sum(world.admin.ends(parts).values()) == 10
    assert world.admin.committed(group, parts) == {}
    world.admin.alter_offsets(group, {(name, 0): 3})
    assert world.admin.committed(group, parts) == {(name, 0): 3}
    assert world.admin.members(group) == ()
    assert len(world.admin.topic_ids()[name]) == 22
    assert world.admin.topic_ids(["no.such.topic"]) == {}
    assert world.admin.at_time(parts, 0) == {(name, 0): 0, (name, 1): 0}
