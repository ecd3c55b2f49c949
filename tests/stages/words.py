"""Counts words, and does what a text that begins with "!" tells it.

options:
  wait    a file: while it exists a batch says "retry" or "pause", as it holds
  hold    a folder: while `hold` is in it, a batch that has come writes `reached` there and waits
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from headrace.stream.stage import (
    Context,
    Outcome,
    Pause,
    Process,
    Record,
    Retry,
    dead,
    deferred,
    drop,
    ok,
)


def build(context: Context) -> Process:
    wait, hold = context.options.get("wait"), context.options.get("hold")

    def process(batch: Sequence[Record]) -> list[Outcome]:
        if wait and Path(wait).exists():
            if Path(wait).read_text() == "pause":
                raise Pause("the budget is spent")
            raise Retry(0.2, "the service is busy")
        if hold and (Path(hold) / "hold").exists():
            (Path(hold) / "reached").touch()
            while (Path(hold) / "hold").exists():
                time.sleep(0.02)
        outcomes = [answer(record) for record in batch]
        few = any(record.text == "!few" for record in batch)
        return outcomes[1:] if few else outcomes

    process.version = "test"  # type: ignore[attr-defined]
    return process


def answer(record: Record) -> Outcome:
    match record.text:
        case "!raise":
            raise ValueError(f"cannot read {record.id}")
        case "!dead":
            return dead("Unreadable: it says so")
        case "!drop":
            return drop("language: ms")
        case "!defer":
            return deferred("asked for later")
        case "!object":
            return ok({"words": object()})
        case "!list":
            return ok([1])  # type: ignore[arg-type]
        case "!large":
            return ok({"words": "x" * 5_000_000})
        case "!none":
            return None  # type: ignore[return-value]
    return ok({"words": len(record.text.split()), "text": record.text})
