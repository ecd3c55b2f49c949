"""Kafka clients made from the settings, and questions to the broker that no member need ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.log import get

log = get(__name__)

T = TypeVar("T")

Partition = tuple[str, int]  # full name of the topic, partition

TIMEOUT = 30.0  # seconds for one question to the broker
_MAX_MESSAGE_BYTES = 16 * 2**20  # topics.yaml limits messages; the client itself does not
_CLASSIC_ONLY = (
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
)
# The broker's own default gives a member whole topics: of the posts of one platform, most workers
# would get none. By range every topic is spread over all of them.
_ASSIGNOR = {"group.remote.assignor": "range"}
_AWAY = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError.REQUEST_TIMED_OUT,
    }
)
_MOVED = frozenset(
    {
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    }
)

# A broker that has just come back has yet to read what groups committed.
_COORDINATOR_COMES = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)


class KafkaUnavailable(ServerUnavailable, KafkaException):
    """The broker does not answer: one line for people, and still the KafkaException it was."""

    def __init__(self, error: KafkaError, address: str) -> None:
        super().__init__(error)
        self.address = address

    def __str__(self) -> str:
        return (
            f"Kafka does not answer at {self.address} ({self.args[0].str()}); "
            "see `headrace servers status`, or set kafka.bootstrap_servers"
        )


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a consumer group and what it reads."""

    id: str
    client: str
    host: str
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A topic to be made."""

    name: str
    partitions: int
    config: Mapping[str, str]


def bootstrap(settings: Settings) -> str:
    """Kafka's address: the configured one, else that of the local server.

    Raises ServerUnavailable where neither exists.
    """
    if settings.kafka.bootstrap_servers:
        return settings.kafka.bootstrap_servers
    from headrace import servers

    address = servers.running().get("kafka")
    if address is None:
        raise ServerUnavailable(
            "Kafka is not running: start it with `headrace up`, or set kafka.bootstrap_servers"
        )
    return str(address)


def base_conf(settings: Settings) -> dict[str, Any]:
    """What every client needs: address, security, patience, and `kafka.client` as it is."""
    kafka = settings.kafka
    conf: dict[str, Any] = {
        "bootstrap.servers": bootstrap(settings),
        "client.id": settings.project,
        "security.protocol": kafka.security_protocol,
        "socket.keepalive.enable": True,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 2_000,
        "enable.metrics.push": False,
        # Its way of starting over, once every broker is away, forgets brokers that open requests
        # still wait for: after a restart of a broker, commits of a transaction hung for ever.
        "metadata.recovery.strategy": "none",
        "log_level": 2,  # what matters comes through error_cb
        "error_cb": _say_error,
    }
    optional = {
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password and kafka.sasl_password.get_secret_value(),
        "ssl.ca.location": kafka.ssl_ca_location,
        "ssl.certificate.location": kafka.ssl_certificate_location,
        "ssl.key.location": kafka.ssl_key_location,
        "ssl.key.password": kafka.ssl_key_password and kafka.ssl_key_password.get_secret_value(),
    }
    for name, value in optional.items():
        if value:
            conf[name] = str(value)
    return conf | dict(kafka.client)


def producer_conf(settings: Settings, **over: Any) -> dict[str, Any]:
    """An idempotent producer that partitions keys as Java clients do."""
    conf = base_conf(settings) | {
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "linger.ms": 5,
        "message.max.bytes": _MAX_MESSAGE_BYTES,
        "transaction.timeout.ms": settings.kafka.transaction_timeout_ms,
    }
    return conf | dict(settings.kafka.client) | over


def consumer_conf(settings: Settings, group: str, **over: Any) -> dict[str, Any]:
    """A member of `group` that reads committed messages only and commits by itself.

    Where nothing is committed yet the caller says where to start: `auto.offset.reset` is error, so
    that lost data is seen.
    """
    kafka = settings.kafka
    conf = base_conf(settings) | {
        "group.id": group,
        "group.protocol": kafka.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "max.poll.interval.ms": kafka.max_poll_interval_ms,
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": 20,
        "queued.max.messages.kbytes": 8_192,
    }
    conf = conf | _ASSIGNOR | dict(kafka.client) | over
    if conf["group.protocol"] == "classic":
        del conf["group.remote.assignor"]
        conf.setdefault("session.timeout.ms", kafka.session_timeout_ms)
        conf["max.poll.interval.ms"] = max(conf["max.poll.interval.ms"], conf["session.timeout.ms"])
    else:  # KIP-848 leaves these to the broker and refuses them here
        for name in _CLASSIC_ONLY:
            conf.pop(name, None)
    return conf


def named(group: str, rank: int, version: str) -> str:
    """How a stage's members call themselves: so anyone can ask the broker which version runs."""
    return f"{group}/{rank}/{version}"


def running(member: Member) -> tuple[int, str] | None:
    """Rank and version of a stage's member; None where it does not tell."""
    parts = member.client.split("/", 2)
    return (int(parts[1]), parts[2]) if len(parts) == 3 and parts[1].isdigit() else None


def admin(settings: Settings) -> Admin:
    return Admin(settings)


class Admin:
    """Questions and orders to the broker. Safe to share between threads; `close` it, or use `with`.

    Raises KafkaUnavailable where the broker does not answer, else KafkaException.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = bootstrap(settings)
        conf = base_conf(settings)
        try:
            self._client = AdminClient(conf)
        except KafkaException as error:
            raise HeadraceError(f"kafka: {error.args[0].str()}") from None
        self._lookers: dict[str, Consumer] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            for consumer in self._lookers.values():
                consumer.close()
            self._lookers.clear()

    def topics(self) -> dict[str, int]:
        """Every topic there is, with its number of partitions."""
        with self._asking():
            found = self._client.list_topics(timeout=TIMEOUT).topics
        return {name: len(topic.partitions) for name, topic in found.items()}

    def topic_ids(self, topics: Iterable[str] | None = None) -> dict[str, str]:
        """Kafka's UUID of each topic (22 characters); one that is not there is left out.

        No names: all topics of the project.
        """
        if topics is None:
            topics = [name for name in self.topics() if self._is_ours(name)]
        names = list(topics)
        if not names:
            return {}
        with self._asking():
            futures = self._client.describe_topics(TopicCollection(names), request_timeout=TIMEOUT)
            answers = {name: _unless_unknown(future.result) for name, future in futures.items()}
        return {name: str(found.topic_id) for name, found in answers.items() if found is not None}

    def configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """The settings in force of topics that exist."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        if not resources:
            return {}
        with self._asking():
            futures = self._client.describe_configs(resources, request_timeout=TIMEOUT)
            return {
                resource.name: {name: entry.value for name, entry in future.result().items()}
                for resource, future in futures.items()
            }

    def broker_configs(self) -> dict[str, str]:
        """The settings of one broker."""
        with self._asking():
            brokers = self._client.list_topics(timeout=TIMEOUT).brokers
            resource = ConfigResource(ResourceType.BROKER, str(min(brokers)))
            futures = self._client.describe_configs([resource], request_timeout=TIMEOUT)
            found = futures[resource].result()
        return {name: entry.value for name, entry in found.items()}

    def create(self, topics: Iterable[Wanted]) -> None:
        """Make topics and wait until every one of them can be written to. One that exists is left
        as it is."""
        wanted = {topic.name: topic for topic in topics}
        if not wanted:
            return
        new = [
            NewTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=self.settings.kafka.replication_factor,
                config=dict(topic.config),
            )
            for topic in wanted.values()
        ]
        with self._asking():
            for future in self._client.create_topics(new, request_timeout=TIMEOUT).values():
                try:
                    future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
            self._await_leaders(set(wanted))

    def delete(self, names: Iterable[str]) -> None:
        """Delete topics with all that is in them, and what groups have committed there."""
        wanted = list(names)
        if not wanted:
            return
        with self._asking():
            for future in self._client.delete_topics(wanted, request_timeout=TIMEOUT).values():
                future.result()
            deadline = time.monotonic() + TIMEOUT
            while set(wanted) & set(self.topics()) and time.monotonic() < deadline:
                time.sleep(0.05)

    def alter_configs(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Set single settings of topics; the others stay."""
        if not changes:
            return
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                    for key, value in config.items()
                ],
            )
            for name, config in changes.items()
        ]
        with self._asking():
            futures = self._client.incremental_alter_configs(resources, request_timeout=TIMEOUT)
            for future in futures.values():
                future.result()

    def own_configs(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """The settings that topics have of their own; the others are the broker's."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        if not resources:
            return {}
        own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        with self._asking():
            futures = self._client.describe_configs(resources, request_timeout=TIMEOUT)
            return {
                resource.name: {
                    name: entry.value
                    for name, entry in future.result().items()
                    if getattr(entry.source, "value", entry.source) == own
                }
                for resource, future in futures.items()
            }

    def restore_configs(self, before: Mapping[str, Mapping[str, str | None]]) -> None:
        """Set single settings of topics to what they were; None: the topic had none of its own."""
        if not before:
            return
        put, drop = AlterConfigOpType.SET, AlterConfigOpType.DELETE
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=drop if value is None else put)
                    for key, value in config.items()
                ],
            )
            for name, config in before.items()
        ]
        with self._asking():
            futures = self._client.incremental_alter_configs(resources, request_timeout=TIMEOUT)
            for future in futures.values():
                future.result()

    def delete_records(self, upto: Mapping[Partition, int]) -> None:
        """Remove what stands before these offsets."""
        if not upto:
            return
        wanted = [TopicPartition(*partition, offset) for partition, offset in upto.items()]
        with self._asking():
            futures = self._client.delete_records(wanted, request_timeout=TIMEOUT)
            for future in futures.values():
                future.result()

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """First offset that is still there."""
        return self._offsets(partitions, OffsetSpec.earliest())

    def ends(self, partitions: Iterable[Partition], stable: bool = True) -> dict[Partition, int]:
        """Next offset: the last stable one, or the one behind open transactions too."""
        return self._offsets(partitions, OffsetSpec.latest(), stable)

    def at_time(self, partitions: Iterable[Partition], milliseconds: int) -> dict[Partition, int]:
        """First offset of that time or later; -1 where there is none."""
        return self._offsets(partitions, OffsetSpec.for_timestamp(milliseconds))

    def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """A group's commits; a partition without one is left out. What stands in an open
        transaction does not count."""
        asked = [TopicPartition(*partition) for partition in partitions]
        if not asked:
            return {}

        def ask() -> dict[Partition, int]:
            with self._lock:
                return self._committed(group, asked)

        return self._of_coordinator(ask)

    def _of_coordinator(self, ask: Callable[[], T]) -> T:
        """An answer of a group's coordinator, which may have to come first."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                with self._asking():
                    return ask()
            except KafkaException as error:
                code = error.args[0].code() if error.args else None
                if code not in _COORDINATOR_COMES or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _committed(self, group: str, asked: list[TopicPartition]) -> dict[Partition, int]:
        # Not AdminClient.list_consumer_group_offsets: it crashes when a coordinator moves.
        answers = self._looker(group).committed(asked, timeout=TIMEOUT)
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {
            (answer.topic, answer.partition): answer.offset
            for answer in answers
            if answer.offset >= 0
        }

    def alter_offsets(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Set the commits of a group that has no members."""
        if not offsets:
            return
        wanted = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        with self._asking(), self._lock:
            answers = self._looker(group).commit(offsets=wanted, asynchronous=False)
        for answer in answers or ():
            if answer.error is not None:
                raise KafkaException(answer.error)

    def members(self, group: str) -> tuple[Member, ...]:
        """Who is in a group now; nobody where it does not exist."""

        def ask() -> Any:
            asked = self._client.describe_consumer_groups([group], request_timeout=TIMEOUT)
            return _unless_unknown(asked[group].result)

        found = self._of_coordinator(ask)
        return tuple(
            Member(
                id=member.member_id,
                client=member.client_id,
                host=member.host,
                partitions=tuple(
                    (partition.topic, partition.partition)
                    for partition in member.assignment.topic_partitions
                ),
            )
            for member in (found.members if found is not None else ())
        )

    def _offsets(
        self, partitions: Iterable[Partition], spec: OffsetSpec, stable: bool = False
    ) -> dict[Partition, int]:
        asked = {TopicPartition(*partition): spec for partition in partitions}
        if not asked:
            return {}
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        deadline = time.monotonic() + TIMEOUT
        with self._asking():
            while True:
                futures = self._client.list_offsets(
                    asked, isolation_level=level, request_timeout=TIMEOUT
                )
                try:
                    return {
                        (partition.topic, partition.partition): future.result().offset
                        for partition, future in futures.items()
                    }
                except KafkaException as error:
                    # What we know of the leaders is older than a broker's restart: ask anew.
                    if error.args[0].code() not in _MOVED or time.monotonic() > deadline:
                        raise
                    self._client.list_topics(timeout=TIMEOUT)
                    time.sleep(0.1)

    def _looker(self, group: str) -> Consumer:
        """A consumer that never joins its group, kept for the next question."""
        if group not in self._lookers:
            conf = base_conf(self.settings) | {
                "group.id": group,
                "enable.auto.commit": False,
                # Else an answer waits until the group's open transaction has ended.
                "isolation.level": "read_uncommitted",
            }
            self._lookers[group] = Consumer(conf)
        return self._lookers[group]

    def _await_leaders(self, names: set[str]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while names:
            found = self._client.list_topics(timeout=TIMEOUT).topics
            names = {
                name
                for name in names
                if name not in found
                or found[name].error is not None
                or not found[name].partitions
                or any(part.leader < 0 for part in found[name].partitions.values())
            }
            if names and time.monotonic() > deadline:
                raise HeadraceError(f"Kafka made {', '.join(sorted(names))} but does not show them")
            if names:
                time.sleep(0.02)

    def _is_ours(self, name: str) -> bool:
        return name.startswith(f"{self.settings.project}.")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            if error.args and error.args[0].code() in _AWAY:
                raise KafkaUnavailable(error.args[0], self.address) from None
            raise


def _unless_unknown(result: Callable[..., Any]) -> Any:
    try:
        return result()
    except KafkaException as error:
        if error.args[0].code() in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError.GROUP_ID_NOT_FOUND,
        ):
            return None
        raise


_QUIET: Sequence[int] = (KafkaError._TRANSPORT, KafkaError._RESOLVE)
_SAY_SECONDS = 60.0


class Troubles:
    """librdkafka's own troubles; single lost connections are everyday. What comes again and again,
    as during an outage, is said at once, and then once a minute with how often it came."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[int, tuple[float, int]] = {}  # by code: when, and how often since
        self._lock = threading.Lock()  # clients call from threads of their own

    def __call__(self, error: KafkaError) -> None:
        if error.code() in _QUIET:
            log.debug("kafka: %s", error.str())
            return
        with self._lock:
            now = self._clock()
            at, since = self._said.get(error.code(), (-_SAY_SECONDS, 0))
            due = now - at >= _SAY_SECONDS
            self._said[error.code()] = (now, 0) if due else (at, since + 1)
        if due:
            more = f" (and {since} times before)" if since else ""
            log.warning("kafka: %s%s", error.str(), more)


_say_error = Troubles()
