"""The commands on real servers."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Producer
from pydantic import SecretStr

from headrace import cli, config
from headrace.backlog import doctor, lag, receipts
from headrace.backlog.model import GroupLag, State
from headrace.stream import clients
from tests.world import World, wait_for


def with_quick_stages(content: dict[str, Any]) -> None:
    """The always-on groups, with stages that take no time."""
    for name in content["modes"]["batch"]:
        content["topics"].pop(content["groups"].pop(name).get("writes"), None)
    content["modes"]["batch"] = []
    for group in content["groups"].values():
        if group["kind"] == "stage":
            group["module"] = "tests.backlog.answers"


class Told(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Say = Callable[..., Told]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Say]:
    """`say(world, "lag", …)`: the command as `headrace` runs it, without a new process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(world: World, *arguments: str, **env: str) -> Told:
        with monkeypatch.context() as patch:
            for name, value in (config.as_environment(world.settings) | env).items():
                patch.setenv(name, value)
            capsys.readouterr()
            status = cli.main(arguments)
        return Told(status, *capsys.readouterr())

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def lags(world: World) -> dict[str, GroupLag]:
    return {group.group: group for group in lag.read(world.settings)}


def leave_receipt(world: World, run: str, records: int, **more: object) -> None:
    """What publish leaves: the run's offsets on the raw topics, as they are now."""
    there = [
        (topic.name, number)
        for topic in world.topology.raw_topics()
        for number in range(topic.partitions)
    ]
    ends: dict[str, dict[str, int]] = {}
    for (topic, partition), end in world.admin.ends(there).items():
        if end:
            ends.setdefault(topic, {})[str(partition)] = end
    value = {
        "type": "run",
        "run": run,
        "state": "done",
        "started_at": f"2026-01-01T00:00:00Z-{run}",
        "kind": "posts",
        "platform": "reddit",
        "files": [],
        "records": records,
        "rejected": 0,
        "starts": {topic: dict.fromkeys(parts, 0) for topic, parts in ends.items()},
        "offsets": ends,
        **more,
    }
    world.send("runs", run, json.dumps(value).encode())


def test_a_run_s_life(worlds: Callable[..., World], say: Say) -> None:
    world = worlds(change=with_quick_stages)
    world.post("reddit", n=40, texts=["fine"] * 39 + ["dead"], run="r1")
    leave_receipt(world, "r1", 40)

    before = lags(world)
    assert {g.state for g in before.values()} == {State.NOT_STARTED}
    assert {short: before[short].lag for short in ("text", "entities", "sentiment")} == {
        "text": 40,
        "entities": 40,
        "sentiment": 40,
    }
    late = say(world, "wait", "r1", "--timeout", "0", "--json")
    assert late.status == 3
    assert any("text: 40 left" in line for line in late.json["waits"])
    assert "Progress: 0/40" in say(world, "progress").out
    unknown = say(world, "trace", "post:reddit:7")
    assert unknown.status == 2 and len(unknown.err.strip().splitlines()) == 1
    assert "not known" in unknown.err

    world.run()

    wait_for(lambda: {g.state for g in lags(world).values()} == {State.DONE})
    assert all(g.caught_up for g in lags(world).values())
    arrived = say(world, "wait", "r1", "--timeout", "60")
    assert "has arrived: 40 records" in arrived.out
    told = say(world, "progress", "r1", "--json").json
    assert (told["passed"], told["done"], told["superseded"]) == (40, True, 0)

    coverage = say(world, "coverage", "--json").json
    assert {row["stage"] for row in coverage} == {"text", "entities", "sentiment"}
    assert all((row["records"], row["ok"], row["dead"]) == (40, 39, 1) for row in coverage)

    traced = say(world, "trace", "post:reddit:7", "--json").json
    assert traced["record"]["topic"] == f"{world.project}.raw.posts.reddit"
    assert {o["stage"]: o["current"] for o in traced["outcomes"]} == dict.fromkeys(
        ["text", "entities", "sentiment"], True
    )
    assert "text: ok, version" in say(world, "trace", "post:reddit:7").out
    assert "dead letter of text: cannot be read" in say(world, "trace", "post:reddit:39").out

    healthy = doctor.examine(world.settings)
    wrong = [one for one in healthy.findings if one.level == "finding"]
    assert [one for one in wrong if one.check != "retention"] == []  # that is the broker's own
    assert [s.stage for s in healthy.sums if s.balanced] == ["text", "entities", "sentiment"]
    assert say(world, "doctor").status == (1 if wrong else 0)

    # A repeat of a record is a newer revision, of which nothing is known yet.
    world.post("reddit", ids=["7"], run="r2")
    leave_receipt(world, "r2", 1)
    assert receipts.read(world.settings, "latest").run == "r2"
    assert lags(world)["text"].lag == 1
    assert say(world, "progress", "r1", "--json").json["done"]


def test_lag_in_kafka_s_odd_moments(world: World) -> None:
    world.apply()
    topic = world.topology.topic("raw.posts.reddit").name
    producer = Producer(
        clients.producer_conf(
            world.settings,
            **{"transactional.id": f"{world.project}.test", "transaction.timeout.ms": 300_000},
        )
    )
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(10):
        producer.produce(topic, b"{}", str(number), partition=0)
    producer.flush()
    opened = lags(world)["text"]
    assert (opened.lag, opened.open, opened.caught_up) == (0, 10, False)

    producer.commit_transaction()
    with lag.Reader(world.settings) as reader:
        wait_for(lambda: reader.read(["text"])[0].lag == 11)  # the marker is an offset too
        (group,) = reader.read(["text"], times=True)
        assert group.seconds_behind is not None and group.seconds_behind >= 0
        assert reader.rated([group], [replace(group, at_ms=group.at_ms + 1000)])[0].rate_out == 0

        # At the marker there is nothing to read, though the offset says one.
        world.admin.alter_offsets(f"{world.project}.text", {(topic, 0): 10})
        (group,) = reader.read(["text"], times=True)
        assert (group.state, group.lag) == (State.STOPPED, 1)
        assert group.seconds_behind is None
        world.admin.alter_offsets(f"{world.project}.text", {(topic, 0): 11})
        (group,) = reader.read(["text"], times=True)
        assert (group.state, group.caught_up, group.seconds_behind) == (State.DONE, True, 0.0)

        world.admin.alter_offsets(f"{world.project}.text", {(topic, 0): 99})
        (group,) = reader.read(["text"])
        assert group.state is State.DATA_LOSS
    assert {g.group for g in lag.read(world.settings, ["postgres"])} == {"postgres"}


def test_watch_and_serve(world: World, say: Say) -> None:
    world.post("reddit", n=3)
    watching = world.start("lag", "text", "--watch", "--every", "0.2")
    wait_for(lambda: world.log_of(watching).count("lag=3") >= 2, message=world.log_of(watching))
    assert "out=0/s" in world.log_of(watching)

    serving = world.start("lag", "--serve", "0")
    url = wait_for(lambda: world.log_of(serving).strip())
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    name = f"{world.project}.text"
    topic = f"{world.project}.raw.posts.reddit"
    assert f'kafka_consumergroup_lag_sum{{consumergroup="{name}",topic="{topic}"}} 3.0' in text
    assert f'headrace_group_state{{consumergroup="{name}",state="NOT_STARTED"}} 1.0' in text
    once = say(world, "lag", "--prometheus").out
    assert f'kafka_consumergroup_members{{consumergroup="{name}"}} 0.0' in once


def test_the_doctor_says_what_is_wrong_and_what_to_do(world: World) -> None:
    world.apply()
    settings = world.settings

    def said(*words: str) -> list[str]:
        found = [
            str(one)
            for one in doctor.examine(settings).findings
            if one.level == "finding" and one.check != "retention"
        ]
        assert all("→" in one for one in found)
        return [one for one in found if all(word in one for word in words)]

    assert said() == []
    retention = {f"{world.project}.enriched.text": {"retention.ms": "1000"}}
    world.admin.alter_configs(retention)
    wait_for(lambda: said("enriched.text", "retention.ms", "topics apply"))
    world.admin.alter_configs({next(iter(retention)): {"retention.ms": str(30 * 86_400_000)}})
    wait_for(lambda: said() == [])

    # A record whose stages have nothing left to read and no outcome.
    topic = f"{world.project}.raw.posts.reddit"
    world.sql("INSERT INTO dim_platform (name) VALUES ('reddit') ON CONFLICT DO NOTHING")
    world.sql(
        'INSERT INTO records (id, kind, platform_id, topic, topic_id, partition, "offset",'
        " appended) SELECT 'post:reddit:x', 'post', id, %s, 'x', 0, 0, 0 FROM dim_platform",
        [topic],
    )
    assert said("text: 1 records are pending", "requeue text --missing")
    world.sql("DELETE FROM records")

    # A store's offsets are PostgreSQL's; Kafka has a copy.
    ident = world.admin.topic_ids([topic])[topic]
    world.sql(
        'INSERT INTO offsets ("group", topic, partition, topic_id, next) VALUES'
        " ('postgres', %s, 0, %s, 5), ('postgres', %s, 1, 'an earlier incarnation', 7)",
        [topic, ident, topic],
    )
    assert said("postgres", "mirror is behind", "on 1 partitions")

    settings = settings.model_copy(
        update={
            "postgres": settings.postgres.model_copy(
                update={"dsn": SecretStr("postgresql://x:hidden@127.0.0.1:1/x")}
            )
        }
    )
    assert said("servers", "127.0.0.1:1") and not said("hidden")


def test_a_mistake_is_one_line(world: World, say: Say) -> None:
    world.apply()
    for command, told in (
        (("lag", "nosuch"), "group nosuch is not known"),
        (("progress", "nosuch"), "nothing has been published yet"),
        (("wait", "nosuch"), "nothing has been published yet"),
    ):
        result = say(world, *command)
        assert result.status == 2
        assert told in result.err and len(result.err.strip().splitlines()) == 1
    leave_receipt(world, "r1", 0)
    assert "run nosuch is not known; the latest is r1" in say(world, "progress", "nosuch").err


@pytest.mark.parametrize("command", ["lag", "progress", "wait", "doctor"])
def test_without_kafka_the_answer_names_it(world: World, say: Say, command: str) -> None:
    result = say(world, command, HEADRACE_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert result.status in (1, 2)
    assert "127.0.0.1:1" in result.out + result.err
    assert "Traceback" not in result.err
