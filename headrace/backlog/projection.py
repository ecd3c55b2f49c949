"""The backlog of projectors: marks in PostgreSQL, told as the lag of a group is."""

from __future__ import annotations

import time
from dataclasses import replace

import psycopg

from headrace.backlog import database
from headrace.backlog.model import GroupLag, PartitionLag, State
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.search import collections, marks
from headrace.stream.topology import Projector

QUEUE = "search_dirty"  # stands where a group of Kafka's has its topic


def read(settings: Settings, projector: Projector) -> GroupLag:
    """Marks waiting as the lag of one partition whose offsets are the marks' numbers; no partition
    where PostgreSQL cannot be asked. Its state is judged with the other groups'."""
    lag = GroupLag(
        projector.short, projector.name, "projector", "always", (), at_ms=int(time.time() * 1000)
    )
    try:
        with database.reading(settings) as connection:
            waiting = marks.waiting(connection)
            members = marks.projectors(connection, projector.application)
            started = bool(collections.read(connection))
    except (ServerUnavailable, psycopg.Error):
        return lag
    except HeadraceError:  # it has no tables yet
        return replace(lag, members=0)
    done = waiting.ever - waiting.marks
    queue = PartitionLag(
        topic=QUEUE,
        partition=0,
        start=0 if started else done,
        end=waiting.ever,
        high=waiting.ever,
        committed=done if started else None,
        oldest_ms=int(waiting.oldest.timestamp() * 1000) if waiting.oldest else None,
    )
    return replace(lag, partitions=(queue,), members=members)


def told(settings: Settings, lag: GroupLag) -> GroupLag:
    """With what the numbers do not say: that nothing could be asked, or that records failed."""
    if lag.members is None:
        return replace(lag, state=State.WAITING, reason="PostgreSQL cannot be asked")
    try:
        with database.reading(settings) as connection:
            refused = marks.errors(connection)
    except (HeadraceError, psycopg.Error):
        return lag
    if not refused:
        return lag
    said = f"{refused:,} records refused (`headrace search errors`)"
    return replace(lag, reason=f"{lag.reason}; {said}" if lag.reason else said)
