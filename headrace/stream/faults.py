"""Which errors pass by themselves, which end a worker, and with what exit code."""

from __future__ import annotations

from enum import IntEnum

from confluent_kafka import KafkaError, KafkaException


class Exit(IntEnum):
    """How a worker's process ends; the supervisor goes by it."""

    DONE = 0
    CRASHED = 1  # started again, with growing pauses
    MISTAKE = 2  # somebody must mend something: not started again
    WAITS = 3  # `--until-caught-up`: some groups have work left that they may not do
    LIMIT = 4  # too many dead letters: not started again
    FENCED = 5  # another took over: started again as a newcomer
    STUCK = 6  # a step hung past its deadline: started again
    RESTS = 7  # a scheduled group: nothing is due, or something else than before


class Fenced(Exception):
    """Another worker holds our transactional id or our partitions; this process is of no use."""


class LimitReached(Exception):
    """More dead letters than the group's limits allow; says how many and of what."""


_PASSING = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._WAIT_COORD,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._STATE,
        KafkaError._NO_OFFSET,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._IN_PROGRESS,
        KafkaError._CONFLICT,
        # The group moved on without us; the next poll joins it again.
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        # The broker was restarted, or the leader moved.
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.CONCURRENT_TRANSACTIONS,
    }
)
_FENCING = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.FENCED_INSTANCE_ID,
    }
)


def kafka_error(error: BaseException) -> KafkaError | None:
    first = error.args[0] if isinstance(error, KafkaException) and error.args else None
    return first if isinstance(first, KafkaError) else None


def passes(error: BaseException) -> bool:
    """Worth trying again after a pause: the broker is away, busy, or about to hear of us."""
    found = kafka_error(error)
    if found is None or found.fatal():
        return False
    return bool(found.retriable() or found.txn_requires_abort()) or found.code() in _PASSING


def fences(error: BaseException) -> bool:
    found = kafka_error(error)
    return found is not None and (found.code() in _FENCING or bool(found.fatal()))
