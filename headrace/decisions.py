"""What people decide about what stages made: topic `decisions`, the newest of each key is kept.

A decision holds until it is taken back, whatever the stage answers later: a store keeps them beside
its rows, and views lay them over.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, get_args

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.stores import postgres
from headrace.stream import clients, schemas, topics, topology, whole
from headrace.stream.clients import Partition

TOPIC = "decisions"
FLUSH_SECONDS = 60.0

_TURN = "SELECT pg_advisory_lock(hashtext('headrace decisions ' || current_schema()))"

Action = Literal["edit", "lock", "hide"]
Key = tuple[str, str]  # subject, action


class Decision(NamedTuple):
    """`value`: of an edit the fields and what they shall be, else true."""

    value: Any
    at: str
    by: str | None


def key_of(subject: str, action: str) -> bytes:
    return f"{subject}/{action}".encode()


def parted(key: bytes) -> Key | None:
    """(subject, action) of a message's key; None where it is none of ours."""
    try:
        subject, _, action = key.decode().rpartition("/")
    except UnicodeDecodeError:
        return None
    usable = subject and action in get_args(Action) and "\0" not in subject
    return (subject, action) if usable else None


def decide(
    settings: Settings,
    subjects: str | Collection[str],
    action: Action,
    value: Any,
    by: str | None = None,
) -> None:
    """Write a decision about each subject, and return once the broker has them; None takes it back.
    It replaces the one that stands of this subject and action as a whole.

    Raises HeadraceError for what is no decision, ServerUnavailable where Kafka does not take it.
    """
    decided = {
        "action": action,
        "value": value,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "by": by or getpass.getuser(),
    }
    wanted = topology.load(settings)
    topic = wanted.topic(TOPIC)
    validator = schemas.validator(settings, topic.schema) if topic.schema is not None else None
    values: dict[bytes, bytes | None] = {}
    for subject in [subjects] if isinstance(subjects, str) else subjects:
        one = {"subject": subject, **decided}
        if validator is not None and not validator.is_valid(one):
            raise HeadraceError(f"no decision: {schemas.complaint(validator, one)}")
        values[key_of(subject, action)] = orjson.dumps(one)
    topics.ensure(settings, wanted)
    write(settings, topic.name, values)


def change(
    settings: Settings,
    subject: str,
    action: Action,
    changed: Callable[[Any], Any],
    by: str | None = None,
) -> Any:
    """Decide what `changed` makes of what stands (None: nothing); returns it. Of two who do so at
    once the second sees what the first decided."""
    with postgres.connect(settings, autocommit=True, application="headrace decisions") as turn:
        turn.execute(_TURN)
        stands = standing(settings).get((subject, action))
        value = changed(stands.value if stands else None)
        decide(settings, subject, action, value, by)
    return value


def write(
    settings: Settings, topic: str, values: Mapping[bytes, bytes | None]
) -> dict[Partition, int]:
    """Values by key (None: as if there had never been one). Returns once all of them stand: where
    the last of them ends."""
    failures: list[KafkaError] = []
    ends: dict[Partition, int] = {}
    if not values:
        return ends

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(error)
            return
        where = (topic, message.partition() or 0)
        ends[where] = max(ends.get(where, 0), (message.offset() or 0) + 1)

    producer = Producer(clients.producer_conf(settings))
    try:
        for key, value in values.items():
            producer.produce(topic, value, key, on_delivery=delivered)
        left = producer.flush(FLUSH_SECONDS)
    except (BufferError, KafkaException) as error:
        raise ServerUnavailable(f"Kafka does not take the decision: {error}") from None
    if left or failures:
        why = failures[0].str() if failures else f"no answer for {FLUSH_SECONDS:.0f} s"
        raise ServerUnavailable(f"Kafka does not take the decision: {why}")
    return ends


def standing(settings: Settings) -> dict[Key, Decision]:
    """Every decision that holds, read from the topic: what was decided a moment ago is there,
    whether or not a store has read it."""
    found: dict[Key, Decision] = {}
    for message in whole.read(settings, topology.load(settings).topic(TOPIC).name):
        key = message.key()
        about = parted(key if isinstance(key, bytes) else (key or "").encode())
        if about is None:
            continue  # a foreign message
        found.pop(about, None)
        try:
            value = orjson.loads(message.value() or b"null")
            if value is not None and value["value"] is not None:
                found[about] = Decision(value["value"], value["at"], value.get("by"))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found
