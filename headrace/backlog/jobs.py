"""The lag of a job: what the stores have read since its watermark, told as a group's lag is."""

from __future__ import annotations

import time
from dataclasses import replace

import psycopg

from headrace.backlog import database
from headrace.backlog.model import GroupLag, PartitionLag, State
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.jobs import history
from headrace.stream.topology import Job


def read(settings: Settings, job: Job) -> GroupLag:
    """A partition is one of a topic that stores read: its end is where they stand, its commit the
    job's watermark. No partition where PostgreSQL cannot be asked. Whoever runs the job is its
    member."""
    now = int(time.time() * 1000)
    lag = GroupLag(job.short, job.name, "job", job.when.text, (), at_ms=now)
    try:
        with database.reading(settings) as connection:
            how = history.standing(connection, job.short)
    except (ServerUnavailable, psycopg.Error):
        return lag
    except HeadraceError:  # it has no tables yet
        return replace(lag, members=0)
    seen, taken_ms = None, None
    if how.current is not None and how.current.watermark and how.current.taken_at:
        by_partition = how.current.watermark.by_partition()
        seen = {(topic, partition): next_ for topic, partition, next_ in by_partition}
        taken_ms = int(how.current.taken_at.timestamp() * 1000)
    rows = tuple(
        PartitionLag(
            topic=topic,
            partition=partition,
            start=0,
            end=next_,
            high=next_,
            committed=None if seen is None else seen.get((topic, partition), 0),
            oldest_ms=taken_ms,  # nothing that it has not seen is older
        )
        for topic, partition, next_ in how.now.by_partition()
    )
    reason = ""
    if how.latest is not None and how.latest.state == "failed" and not how.at_work:
        reason = f"its last run failed: {how.latest.reason}"
    return replace(lag, partitions=rows, members=int(how.at_work), reason=reason)


def told(before: GroupLag, settled: GroupLag) -> GroupLag:
    """The settled lag with what its numbers do not say."""
    if before.members is None:
        return replace(settled, state=State.WAITING, reason="PostgreSQL cannot be asked")
    if not before.reason:
        return settled
    said = "; ".join(filter(None, [settled.reason, before.reason]))
    return replace(settled, reason=said)
