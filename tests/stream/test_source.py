"""A group's member by itself: where it stands after a batch that could not be committed."""

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from headrace.stream import clients
from headrace.stream.source import Cut, Source
from headrace.stream.topology import Batch
from tests.stages import groups
from tests.world import World, wait_for


@pytest.fixture(params=["consumer", "classic"])
def protocol(request) -> dict[str, str]:
    return {"kafka.group_protocol": request.param}


@pytest.fixture
def world(protocol, worlds) -> World:
    return worlds(change=groups(words={}), flags=protocol, platforms=("reddit",), partitions=1)


@pytest.fixture
def source(world: World) -> Iterator[Source]:
    world.apply()
    group, batch = world.topology.group("words"), Batch(records=1000, bytes=2**20, milliseconds=100)
    with closing(Source(world.settings, group.name, group.reads, batch, world.admin)) as source:
        source.open()
        yield source


def taken(source: Source) -> Cut:
    return wait_for(source.take)


def test_a_cut_that_is_not_committed_comes_again(world, source):
    place = (world.topology.topic("raw.posts.reddit").name, 0)
    world.post(n=5)
    for _ in range(3):
        cut = taken(source)
        source.rewind(cut)
        source.rest(0.05)
    assert (cut.before[place], cut.after[place], len(cut.messages)) == (0, 5, 5)
    source.done(taken(source))

    # What moves past an aborted transaction has no messages, and is no less to be done again.
    conf = clients.producer_conf(world.settings, **{"transactional.id": f"{world.project}.test"})
    producer = Producer(conf)
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(place[0], b"{}", b"nobody")
    producer.flush()
    producer.abort_transaction()
    for _ in range(2):
        cut = taken(source)
        source.rewind(cut)
    assert (cut.before[place], cut.after[place], cut.messages) == (5, 7, [])
    source.done(taken(source))
    assert source.take() is None


def test_nobody_goes_on_behind_a_poll_that_failed(world, source, monkeypatch):
    def refused(_):
        raise KafkaException(KafkaError(KafkaError._STATE))  # an error that passes elsewhere

    class Failing:
        """The client, but for what it is told when partitions come."""

        def __init__(self, consumer):
            self._consumer = consumer

        incremental_assign = assign = staticmethod(refused)

        def __getattr__(self, name):
            return getattr(self._consumer, name)

    world.post(n=5)
    monkeypatch.setattr(source, "_consumer", Failing(source._consumer))
    with pytest.raises(RuntimeError, match="poll failed"):
        wait_for(source.take)


def test_every_member_has_a_part_of_every_topic(protocol, worlds):
    """So that all of them work where one platform alone has anything to do."""
    platforms = ("reddit", "twitter")
    world = worlds(change=groups(words={}), flags=protocol, platforms=platforms, partitions=2)
    world.apply()
    group, batch = world.topology.group("words"), Batch(records=1000, bytes=2**20, milliseconds=100)
    raw = {world.topology.topic(f"raw.posts.{platform}").name for platform in platforms}
    with ExitStack() as opened:
        members = [
            opened.enter_context(
                closing(Source(world.settings, group.name, group.reads, batch, world.admin))
            )
            for _ in range(2)
        ]
        for member in members:
            member.open()

        def spread() -> bool:
            for member in members:
                member.take()
            held = [[topic for topic, _ in member.assigned() if topic in raw] for member in members]
            return all(sorted(topics) == sorted(raw) for topics in held)

        wait_for(spread, message=lambda: str([member.assigned() for member in members]))
