"""The trivial stage of the throughput measurement: counts characters."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.stream.stage import Context, Outcome, Process, Record, ok


def build(context: Context) -> Process:
    def process(batch: Sequence[Record]) -> list[Outcome]:
        return [ok({"characters": len(record.text)}) for record in batch]

    return process
