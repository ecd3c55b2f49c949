"""The group `postgres`: keeps records, outcomes, receipts and dead letters as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from confluent_kafka import Message

from consumers.postgres.reading import VECTORS, Batch, Reader
from consumers.postgres.writing import Writer
from headrace.config import Settings
from headrace.stream.topology import Group, Topology


class PostgresStore:
    """See `headrace.stream.store_worker.Store`."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self.open = self._writer.open
        self.forget = self._writer.forget
        self.resolve = self._writer.resolve
        self.write = self._writer.write

    def read(self, messages: Sequence[Message]) -> Batch:
        return self._reader.read(messages)

    def bury(self, message: Message, error: str, reason: str) -> Batch:
        batch = Batch()
        self._reader.bury(batch, message, error, reason)
        return batch


def build(
    settings: Settings, topology: Topology, group: Group, topic_id: Callable[[str], str]
) -> PostgresStore:
    facets = {stage.short: stage.facet for stage in topology.stages()}
    with_vectors = {short for short, facet in facets.items() if facet == VECTORS}
    with_scores = {short for short, facet in facets.items() if facet == "scores"}
    return PostgresStore(
        Reader(settings, topology, group, topic_id),
        Writer(with_vectors, with_scores, marks=settings.search.enabled),
    )
