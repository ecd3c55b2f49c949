"""Kills its own worker, once at each moment of a commit.

options:
  moments   some of MOMENTS, in the order in which they come
  folder    where each moment leaves a file when it has come
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
    folder = Path(context.options["folder"])
    moments = list(context.options["moments"])

    def reached(moment: str) -> None:
        for number, name in enumerate(moments):
            marker = folder / f"moment-{number}"
            if not marker.exists():
                if name == moment:
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return

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
