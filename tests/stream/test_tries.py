"""A batch that is tried again counts once."""

import pytest

from headrace.stream import stage_worker
from headrace.stream.commands import subscription
from headrace.stream.faults import LimitReached
from headrace.stream.metrics import Metrics
from headrace.stream.watchdog import Watchdog
from headrace.stream.worker import Place
from tests.stages import groups
from tests.world import wait_for


def test_dead_letters_count_when_they_are_committed(worlds):
    world = worlds(
        change=groups(words={"dead_letters": {"count": 3, "share": 1.0}}),
        platforms=("reddit",),
        partitions=1,
    ).apply()
    group = world.topology.group("words")
    place = Place(
        world.settings,
        slot=0,
        metrics=Metrics(world.settings, group.name),
        watchdog=Watchdog(),
        stopping=lambda: False,
        topology=world.topology,
        group=group,
        topics=subscription(world.settings, world.topology, group),
        admin=world.admin,
    )
    loop = stage_worker.build(place)
    loop.open()
    try:
        world.post(n=2, texts=["!dead"])
        commit, loop._commit = loop._commit, lambda cut, outgoing: fail(outgoing)

        def fail(outgoing):
            list(outgoing)
            raise ConnectionError("as if the broker went away")

        for _ in range(3):
            with pytest.raises(ConnectionError):
                wait_for(loop.work)
        loop._commit = commit
        assert wait_for(loop.work)
        world.post(n=2, texts=["!dead"])
        with pytest.raises(LimitReached):
            wait_for(loop.work)
    finally:
        loop.close()
