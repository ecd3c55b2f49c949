"""What a worker says of itself: Prometheus metrics and a health page, where a port is configured.

    /metrics   Prometheus text
    /health    {"group", "state", "reason"}; 200, or 503 while the group has stopped

Names are kafka_exporter's where it has one. No label ever holds an id.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from headrace.config import Settings
from headrace.log import get

log = get(__name__)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One worker's numbers. `state` is what it does now, and why (see `worker.run`)."""

    def __init__(self, settings: Settings, group: str) -> None:
        self.state = ("", "")
        self.on_counts: Callable[[Mapping[str, int]], object] = lambda counts: None
        self._group = group
        self._registry = CollectorRegistry()
        mine = {"consumergroup": group}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("consumergroup", *labels), registry=self._registry)

        # Records answered, by outcome: ok, dropped, dead, deleted, deferred.
        self._records = counter("headrace_records", "Records answered", "outcome")
        # Batches committed, and how long each took from the first poll's end to the commit's.
        self._batches = Histogram(
            "headrace_batch_seconds",
            "Work and commit of a batch",
            ("consumergroup",),
            registry=self._registry,
            buckets=_SECONDS,
        ).labels(**mine)
        # Batches that were rolled back and read again, whatever the reason.
        self.rollbacks = counter("headrace_rollbacks", "Batches rolled back").labels(**mine)
        # Messages that expired before the group came to them.
        self.lost = counter("headrace_lost_messages", "Messages lost unread").labels(**mine)
        by_partition = ("consumergroup", "topic", "partition")
        # kafka_exporter's names, for the partitions that this worker reads.
        self._lag = Gauge(
            "kafka_consumergroup_lag", "Messages to read", by_partition, registry=self._registry
        )
        self._offset = Gauge(
            "kafka_consumergroup_current_offset", "Committed", by_partition, registry=self._registry
        )
        self._lag_sum = Gauge(
            "kafka_consumergroup_lag_sum",
            "Messages to read, all partitions of a topic",
            ("consumergroup", "topic"),
            registry=self._registry,
        )
        self._server: ThreadingHTTPServer | None = None
        port = settings.processing.metrics_port
        if port is not None:
            self._serve(settings.processing.metrics_host, port)

    @property
    def port(self) -> int | None:
        return self._server.server_port if self._server else None

    def committed(self, counts: Mapping[str, int], seconds: float) -> None:
        """A batch is committed; `counts` by the status event's names (ok, dropped, …)."""
        for outcome, number in counts.items():
            if number:
                self._records.labels(self._group, outcome).inc(number)
        self._batches.observe(seconds)
        self.on_counts(counts)

    def positions(
        self, offsets: Mapping[tuple[str, int], int], lag: Mapping[tuple[str, int], int]
    ) -> None:
        for gauge in (self._lag, self._offset, self._lag_sum):
            gauge.clear()  # what another worker reads now
        sums: dict[str, int] = {}
        for (topic, partition), offset in offsets.items():
            behind = lag.get((topic, partition), 0)
            self._offset.labels(self._group, topic, partition).set(offset)
            self._lag.labels(self._group, topic, partition).set(behind)
            sums[topic] = sums.get(topic, 0) + behind
        for topic, behind in sums.items():
            self._lag_sum.labels(self._group, topic).set(behind)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _serve(self, host: str, port: int) -> None:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics._registry))
                elif self.path == "/health":
                    state, reason = metrics.state
                    body = {"group": metrics._group, "state": state, "reason": reason}
                    status = 503 if state == "stopped" else 200
                    self._answer(status, "application/json", orjson.dumps(body))
                else:
                    self._answer(404, "text/plain", b"/metrics or /health\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            # A worker that cannot be watched still works.
            log.warning("no metrics", address=f"{host}:{port}", reason=error.strerror)
            return
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        log.info("metrics", address=f"http://{host}:{self.port}/metrics")
