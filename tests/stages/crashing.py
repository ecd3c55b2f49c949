"""Stops its own worker, once at each of several moments of its commits.

options:
  moments   some of MOMENTS, in the order in which they come; each one leaves a file of its number
  folder    where
  signal    what the worker sends itself then; KILL if left out
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from headrace.stream import stage_worker
from headrace.stream.stage import Context, Process
from tests.stages import words

MOMENTS = ("at work", "written", "offsets sent", "committed")


def build(context: Context) -> Process:
    options: Any = context.options
    folder, moments = Path(options["folder"]), list(options["moments"])
    number = signal.Signals[f"SIG{options.get('signal', 'KILL')}"]

    def reached(moment: str) -> None:
        come = sum((folder / str(number)).exists() for number in range(len(moments)))
        if come < len(moments) and moments[come] == moment:
            (folder / str(come)).write_text(str(os.getpid()))
            os.kill(os.getpid(), number)

    class Crashing(Producer):
        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            self.flush()  # so that the messages stand in the log, in an open transaction
            reached("written")
            super().send_offsets_to_transaction(*arguments)
            reached("offsets sent")

        def commit_transaction(self, *arguments: Any) -> None:
            super().commit_transaction(*arguments)
            reached("committed")

    stage_worker.Producer = Crashing  # type: ignore[misc, attr-defined]
    process = words.build(context)

    def crashing(batch: Any) -> Any:
        reached("at work")
        return process(batch)

    return crashing
