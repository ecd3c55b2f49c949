"""What the status group commits of what it has read: all of it, at once, whatever Faust counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

from faust.types import TP
from faust.types.tuples import ConsumerMessage

from consumers.status.app import _Faust

PLACE = TP("status", 0)


class Group:
    """Faust's own reading and counting, without a broker."""

    def __init__(self, committed: int | None) -> None:
        app: Any = _Faust("x", broker="kafka://127.0.0.1:1", store="memory://", web_enabled=False)
        app.topics._acking_topics.add(PLACE.topic)
        self._consumer = app.consumer
        self._committed = committed
        self._read: list[Any] = []

    async def seek(self) -> None:
        """As Faust does at its start, whether it has begun to read or not."""

        async def seek_to_committed() -> Mapping[TP, int | None]:
            return {PLACE: self._committed}

        self._consumer.seek_to_committed = seek_to_committed
        await self._consumer.perform_seek()

    async def read(self, *offsets: int) -> None:
        """The messages that stand there."""
        fetched = asyncio.Event()

        async def getmany(timeout: float) -> AsyncIterator[Any]:
            for at in offsets:
                yield PLACE, ConsumerMessage(*PLACE, at, 0.0, 0, None, b"", b"", None, tp=PLACE)
            fetched.set()

        async def keep(message: Any) -> None:
            self._read.append(message)

        self._consumer.getmany, self._consumer.callback = getmany, keep
        await self._consumer._drain_messages(SimpleNamespace(_stopped=fetched))

    def acknowledge(self) -> None:
        for message in self._read:
            self._consumer.ack(message)
        self._read = []

    def look(self) -> Mapping[TP, int]:
        """What would be committed now."""
        return self._consumer._filter_committable_offsets([PLACE])  # type: ignore[no-any-return]

    def commit(self, offsets: Mapping[TP, int]) -> None:
        self._consumer._committed_offset.update(offsets)


def test_markers_of_transactions_are_passed():
    async def steps() -> None:
        group = Group(committed=10)
        await group.seek()
        await group.read(11, 12, 14, 16, 20, 21)
        group.acknowledge()
        assert group.look() == {PLACE: 22}
        assert group.look() == {}

    asyncio.run(steps())


def test_what_was_aborted_behind_the_very_first_event_is_passed():
    async def steps() -> None:
        group = Group(committed=None)
        await group.seek()
        await group.read(0)
        group.acknowledge()
        group.commit(group.look())
        await group.read(4)
        group.acknowledge()
        assert group.look() == {PLACE: 5}

    asyncio.run(steps())


def test_what_a_start_reads_twice_holds_up_nothing():
    """Faust lets its streams go on and seeks then, so what came meanwhile comes again."""

    async def steps() -> None:
        group = Group(committed=10)
        await group.read(10, 12, 14, 16)
        group.acknowledge()
        under_way = group.look()
        await group.seek()
        await group.read(10, 12, 14, 16)
        group.commit(under_way)
        group.acknowledge()
        await group.read(18, 20)
        group.acknowledge()
        assert group.look() == {PLACE: 21}

    asyncio.run(steps())
