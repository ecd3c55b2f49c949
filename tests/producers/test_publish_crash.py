"""A publish that is killed anywhere, or whose broker is, ends as an undisturbed one would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import orjson
import pytest

from headrace import servers
from headrace.stream import topics
from headrace.stream.clients import Admin
from tests.producers.publishing import TOPIC, expected, ids, jsonl, publish, receipt, row, run_of
from tests.world import World, wait_for

pytestmark = pytest.mark.crash

# Small transactions, so that there are many moments to be killed at.
SMALL = {"HEADRACE_PUBLISHING__TRANSACTION_RECORDS": "20"}


def written(world: World) -> int:
    """How far the topic's partitions have grown, open transactions and markers included."""
    topic = world.topology.topic(TOPIC)
    partitions = [(topic.name, number) for number in range(topic.partitions)]
    return sum(world.admin.ends(partitions, stable=False).values())


def kill(process: subprocess.Popen[bytes]) -> None:
    """The parent alone: its workers have to notice by themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.mark.parametrize(("files", "ahead_bytes"), [(1, "1"), (1, "100000000"), (3, "1")])
def test_killed_again_and_again_nothing_is_missing_or_doubled(
    world: World, files: int, ahead_bytes: str
) -> None:
    """One file is published in the process itself, a large one read by a second, several by
    workers."""
    world.apply()
    rows, paths = 30_000 // files, []
    wanted = expected([])
    for number in range(files):
        prefix = "abc"[number]
        content = [row(n, prefix, title="" if n % 1000 == 7 else "T") for n in range(rows)]
        paths.append(str(jsonl(world.home / f"{prefix}.jsonl", content)))
        wanted += expected([n for n in range(rows) if n % 1000 != 7], prefix)
    runs = []
    for _ in range(4):
        before = written(world)
        process = world.start(
            "publish", *paths, **SMALL, HEADRACE_PUBLISHING__AHEAD_BYTES=ahead_bytes
        )
        wait_for(
            lambda before=before, process=process: (
                written(world) > before + 300 or process.poll() is not None
            ),
            message=lambda process=process: world.log_of(process),
        )
        assert process.poll() is None, "it ended before it could be killed: publish more rows"
        kill(process)
        runs.append(run_of(world.log_of(process)))
    told = publish(world, *paths)
    assert told["state"] == "done"
    assert ids(world) == wanted
    assert sum(file["resumed_at"] for file in told["files"]) > 0
    rejects = list((world.home / "rejects").iterdir())
    lines = [line for path in rejects for line in path.read_bytes().splitlines()]
    assert len(lines) == len(set(lines)) == sum(1 for n in range(rows) if n % 1000 == 7) * files

    # the broken-off runs are closed, and their successor's end lies behind all rows
    last = receipt(world, told["run"])
    killed = receipt(world, runs[-1])
    assert (killed["state"], killed["superseded"]) == ("stopped", told["run"])
    ends = last["offsets"][world.topology.topic(TOPIC).name]
    for message in world.read(TOPIC):
        assert (message.offset() or 0) < ends[str(message.partition())]
    assert {file["state"] for file in publish(world, *paths)["files"]} == {"known"}


def test_a_publisher_that_was_stopped_finds_itself_taken_over(world: World) -> None:
    """SIGSTOP, a second publish of the same file, SIGCONT: the first ends with one clear line."""
    world.apply()
    path = jsonl(world.home / "a.jsonl", [row(n) for n in range(30_000)])
    first = world.start("publish", str(path), **SMALL)
    wait_for(lambda: written(world) > 1_000, message=lambda: world.log_of(first))
    os.kill(first.pid, signal.SIGSTOP)
    try:
        assert first.poll() is None
        second = publish(world, path)
        assert second["files"][0]["resumed_at"] > 0
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait(60) == 1
    log = world.log_of(first)
    assert f"run {second['run']} has taken over this file, this run stops behind row" in log
    assert "Traceback" not in log
    assert "FATAL" not in log
    assert ids(world) == expected(range(30_000))


def test_interrupted_it_stops_at_a_commit_and_goes_on_later(world: World) -> None:
    world.apply()
    path = jsonl(world.home / "a.jsonl", [row(n) for n in range(30_000)])
    process = world.start("publish", str(path), **SMALL)
    wait_for(lambda: written(world) > 1_000, message=lambda: world.log_of(process))
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    log = world.log_of(process)
    assert "stopped; publish it again to go on" in log
    assert receipt(world, run_of(log))["state"] == "stopped"
    publish(world, path)
    assert ids(world) == expected(range(30_000))


def test_a_broker_that_is_killed_and_restarted_under_a_publish(
    local_server: Callable[..., servers.LocalServer], worlds: Callable[..., World]
) -> None:
    """The rows come through a pipe, so that the publish cannot be over before the broker dies."""
    server = local_server("kafka")
    world = worlds(platforms=("reddit",), flags={"kafka.bootstrap_servers": str(server.address)})
    topics.ensure(world.settings)
    log = world.home / "publish.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "publish", "-"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=world.home,
            env=world.env(HEADRACE_PUBLISHING__TRANSACTION_RECORDS="50"),
        )
    assert process.stdin is not None
    try:
        for part in range(3):
            before = end(world)
            for number in range(part * 2_000, (part + 1) * 2_000):
                process.stdin.write(orjson.dumps(row(number)) + b"\n")
            process.stdin.flush()
            if part == 2:
                break
            # At work again, and in the midst of it: a broker that is killed while it still starts
            # up may lose the markers of transactions (Kafka 4.3.1), which no client can mend.
            wait_for(
                lambda before=before: end(world) > before + 200,
                timeout=120,
                message=lambda: log.read_text(),
            )
            server.kill()
            server.start()
        process.stdin.close()
        assert process.wait(150) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(30)
    said = log.read_text()
    assert "6,000 records published" in said
    assert "Traceback" not in said
    assert ids(world) == expected(range(6_000))


def end(world: World) -> int:
    """As `written`, by a client that has not seen the broker before."""
    topic = world.topology.topic(TOPIC)
    partitions = [(topic.name, number) for number in range(topic.partitions)]
    with Admin(world.settings) as admin:
        return sum(admin.ends(partitions, stable=False).values())
