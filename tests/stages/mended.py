"""Counts words as `words` does, until it is mended; says which model it had, and names two things.

options:
  mended  a file: once it is there, a text that begins with "!" is a text like any other
  model   the version's own part, told in each result
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.stream.stage import Context, Outcome, Process, Record, ok
from tests.stages import words


def build(context: Context) -> Process:
    options: Any = context.options
    mended, model = Path(options["mended"]), str(options.get("model", "a"))

    def answer(record: Record) -> Outcome:
        if record.text.startswith("!") and not mended.exists():
            return words.answer(record)
        named = [
            {
                "text": record.text[:1], "name": f"{model}{start}", "type": "brand",
                "start": start, "end": start + 1, "method": "dictionary", "confidence": 0.9,
            }
            for start in (0, 1)
        ]  # fmt: skip
        sure = 0.3 if record.id.endswith(("0", "2", "4", "6", "8")) else 0.9
        return ok({"model": model, "confidence": sure, "entities": named})

    def process(batch: Sequence[Record]) -> list[Outcome]:
        return [answer(record) for record in batch]

    process.version = model  # type: ignore[attr-defined]
    return process
