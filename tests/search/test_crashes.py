"""Kills at any moment: in the end PostgreSQL and Weaviate are equal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from headrace import servers
from headrace.backlog import lag
from headrace.search import marks
from headrace.stores import weaviate as stores
from tests.search.conftest import Search
from tests.world import World, wait_for


def test_a_killed_projector_leaves_its_marks(search: Search):
    world = search.world
    world.post(n=600)
    world.run("postgres")
    for _ in range(3):
        left = search.waiting()
        worker = world.start_worker("search", HEADRACE_PROCESSING__BATCH_SIZE="5")
        wait_for(lambda left=left: search.waiting() < left, message="the projector works")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(30)
    world.delete("post:reddit:7")
    world.run("postgres")
    world.run("search")
    assert search.waiting() == 0
    assert len(search.objects()) == 599
    compared = search.compare()
    assert (compared.records, compared.apart, compared.unknown) == (600, 0, 0)


def test_without_weaviate_marks_wait_and_nothing_else_stops(
    worlds: Callable[..., World], local_server: Callable[..., servers.LocalServer]
):
    server = local_server("weaviate")
    address = server.address
    assert address is not None
    flags = {"weaviate.url": str(address), "weaviate.grpc_port": address.ports["grpc"]}
    world = worlds(flags={**flags, "processing.retry_max_seconds": 2.0})
    worker = world.start_worker("search")
    world.post(n=50)
    world.run("postgres")
    wait_for(lambda: marks.left(world.settings) == 0, message=lambda: world.log_of(worker))
    assert lag.read(world.settings, ["search"])[0].members == 1
    server.kill()
    world.post(ids=[f"b{number}" for number in range(50)])
    world.run("text")  # with its store
    assert marks.left(world.settings) > 0
    ended = world.command("run", "search", "--until-caught-up", check=False)
    assert ended.returncode == 3 and "waiting: search: paused: Weaviate at" in ended.stdout
    server.start()
    wait_for(lambda: marks.left(world.settings) == 0, message=lambda: world.log_of(worker))
    assert worker.poll() is None
    with stores.connect(world.settings) as client:
        alias = f"{world.project[0].upper()}{world.project[1:]}_RedditPost"
        assert client.collections.use(alias).aggregate.over_all().total_count == 100
    told = world.command("doctor", check=False).stdout
    assert "search:" not in told, told
