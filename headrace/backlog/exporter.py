"""Lag as Prometheus metrics, under the names that kafka_exporter and kafka-lag-exporter use."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

from headrace.backlog.lag import Reader
from headrace.backlog.model import GroupLag, State
from headrace.errors import ServerUnavailable
from headrace.log import get

log = get(__name__)

PARTITION = ("consumergroup", "topic", "partition")


def text(groups: Sequence[GroupLag]) -> str:
    """One exposition of the groups as they stand."""
    registry = CollectorRegistry()
    registry.register(_Fixed(groups))
    return generate_latest(registry).decode()


def serve(reader: Reader, groups: Sequence[str], port: int) -> tuple[WSGIServer, threading.Thread]:
    """Serve /metrics on loopback, reading anew for each scrape; shut the server down to end it.

    Raises OSError where the port is taken. Port 0 takes a free one (`server.server_port`).
    """
    registry = CollectorRegistry()
    registry.register(_Live(reader, groups))
    return start_http_server(port, addr="127.0.0.1", registry=registry)


def families(groups: Sequence[GroupLag]) -> list[Metric]:
    def gauge(name: str, help_: str, labels: Sequence[str]) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, help_, labels=labels)

    # kafka_exporter
    lag = gauge("kafka_consumergroup_lag", "Offsets that the group has yet to read", PARTITION)
    offset = gauge("kafka_consumergroup_current_offset", "Where the group goes on", PARTITION)
    by_topic = ("consumergroup", "topic")
    lag_sum = gauge("kafka_consumergroup_lag_sum", "Lag of a topic's partitions together", by_topic)
    members = gauge("kafka_consumergroup_members", "Members of the group", ["consumergroup"])
    ends = gauge(
        "kafka_topic_partition_current_offset", "Last stable offset", ("topic", "partition")
    )
    starts = gauge(
        "kafka_topic_partition_oldest_offset", "First offset that is there", ("topic", "partition")
    )
    # kafka-lag-exporter
    seconds = gauge(
        "kafka_consumergroup_group_lag_seconds", "Age of the oldest unread message", PARTITION
    )
    most = gauge(
        "kafka_consumergroup_group_max_lag_seconds",
        "Age of the group's oldest unread message",
        ["consumergroup"],
    )
    # ours
    backlog = gauge("headrace_group_backlog", "Lag and redo of a group", ["consumergroup"])
    state = gauge("headrace_group_state", "1 for the state it is in", ("consumergroup", "state"))
    eta = gauge(
        "headrace_group_eta_seconds", "Until nothing is left; +Inf is never", ["consumergroup"]
    )
    requests = gauge(
        "headrace_group_batch_requests",
        "Requests to language models in batches",
        ("consumergroup", "state"),
    )
    oldest = gauge(
        "headrace_group_batch_oldest_seconds", "Age of the oldest of them", ["consumergroup"]
    )
    places: dict[tuple[str, int], tuple[int, int]] = {}
    for group in groups:
        for topic, parts in group.topics():
            lag_sum.add_metric([group.name, topic], sum(p.lag for p in parts))
            for p in parts:
                labels = [group.name, topic, str(p.partition)]
                lag.add_metric(labels, p.lag)
                if p.committed is not None:
                    offset.add_metric(labels, p.committed)
                if p.lag == 0:
                    seconds.add_metric(labels, 0)
                elif p.oldest_ms is not None:
                    seconds.add_metric(labels, max(group.at_ms - p.oldest_ms, 0) / 1000)
                if group.kind not in ("projector", "job"):  # they read no topic
                    places[topic, p.partition] = (p.start, p.end)
        if group.members is not None:
            members.add_metric([group.name], group.members)
        if group.seconds_behind is not None:
            most.add_metric([group.name], group.seconds_behind)
        backlog.add_metric([group.name], group.backlog)
        for one in State:
            state.add_metric([group.name, str(one)], 1 if one is group.state else 0)
        if group.requests:
            requests.add_metric([group.name, "waiting"], group.requests.waiting)
            requests.add_metric([group.name, "sent"], group.requests.sent)
            oldest.add_metric([group.name], group.requests.seconds)
        left = group.eta()
        if left is not None:
            eta.add_metric([group.name], math.inf if math.isinf(left) else left)
    for (topic, partition), (start, end) in sorted(places.items()):
        starts.add_metric([topic, str(partition)], start)
        ends.add_metric([topic, str(partition)], end)
    own = [backlog, state, eta, requests, oldest]
    return [lag, offset, lag_sum, members, ends, starts, seconds, most, *own]


class _Fixed:
    def __init__(self, groups: Sequence[GroupLag]) -> None:
        self._groups = groups

    def collect(self) -> Iterable[Metric]:
        return families(self._groups)


class _Live:
    """Reads at each scrape; the rates behind the estimate are those since the last one."""

    def __init__(self, reader: Reader, groups: Sequence[str]) -> None:
        self._reader = reader
        self._groups = list(groups)
        self._before: list[GroupLag] = []
        self._lock = threading.Lock()  # a Reader is not for two scrapes at once

    def describe(self) -> Iterable[Metric]:
        return []  # or registering would read lag

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("headrace_lag_up", "Whether Kafka told the lag")
        with self._lock:
            try:
                now = self._reader.read(self._groups or None, times=True, projectors=True)
            except ServerUnavailable as error:
                log.warning("no lag to tell", reason=str(error))
                up.add_metric([], 0)
                return [up]
            rated = self._reader.rated(self._before, now)
            self._before = now
        up.add_metric([], 1)
        return [up, *families(rated)]
