"""Status as it can be had where the status group does not run: from the web views of one that does,
else from the topics themselves, for the last hour."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.backlog.lag import Reader
from headrace.config import Settings
from headrace.errors import ServerUnavailable
from headrace.log import get
from headrace.status import view
from headrace.status.fold import OPEN_MS, Fold, parse
from headrace.stream import clients, topology

log = get(__name__)

_WEB_SECONDS = 5.0
_READ_SECONDS = 30.0  # without any message
_ENDS = (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET)


def ask(settings: Settings, path: str = "/status/") -> Any | None:
    """A web view of this project's status group; None where it does not answer."""
    host = settings.status.host
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.status.port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=_WEB_SECONDS) as answer:
            found = orjson.loads(answer.read())
    except (OSError, ValueError):
        return None
    # The port may be another project's.
    return found if isinstance(found, dict) and found.get("project") == settings.project else None


def overview(settings: Settings) -> dict[str, Any]:
    """The overview without a status group. Raises ServerUnavailable where Kafka is away."""
    now = int(time.time() * 1000)
    fold = Fold(now=lambda: now)
    for value in _messages(settings, "status", now - OPEN_MS):
        try:
            fold.add(parse(value))
        except ValueError as error:
            log.debug(str(error))
    alerts = [orjson.loads(value) for value in _messages(settings, "alerts", 0) if value]
    with Reader(settings) as reader:
        lags = reader.read(times=True, projectors=True)
    return view.overview(settings.project, fold, lags, view.newest(alerts), now)


def _messages(settings: Settings, short: str, since: int) -> Iterator[bytes | None]:
    """The values of what is committed on a topic since a time (ms), up to its end now."""
    topic = topology.load(settings).topic(short)
    with clients.admin(settings) as admin:
        count = admin.topics().get(topic.name, 0)
        places = [(topic.name, partition) for partition in range(count)]
        ends = admin.ends(places)
        starts = admin.at_time(places, since) if since else admin.starts(places)
    open_ = {at: ends[at] for at in places if 0 <= starts[at] < ends[at]}
    if not open_:
        return
    consumer = Consumer(
        clients.consumer_conf(
            settings,
            f"{settings.project}.status-reader",
            **{"group.protocol": "classic", "enable.partition.eof": True},
        )
    )
    try:
        consumer.assign([TopicPartition(*at, starts[at]) for at in open_])
        deadline = time.monotonic() + _READ_SECONDS
        while open_ and time.monotonic() < deadline:
            for message in consumer.consume(1000, 0.2):
                deadline = time.monotonic() + _READ_SECONDS
                at = (message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is None:
                    yield message.value()
                    if (message.offset() or 0) + 1 >= open_.get(at, 0):
                        open_.pop(at, None)
                elif error.code() in _ENDS:
                    open_.pop(at, None)
                elif not error.retriable():
                    raise KafkaException(error)
    finally:
        consumer.close()
    if open_:
        raise ServerUnavailable(f"Kafka does not show {topic.name}")
