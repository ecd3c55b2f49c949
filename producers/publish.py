"""Many files to Kafka: which, by whom, and the receipt of it all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from headrace.config import Settings
from headrace.log import get
from headrace.stream import topics
from producers import crew
from producers.display import Quiet
from producers.receipts import FileEntry, Receipt, merge_ends, merge_starts, now
from producers.sources import STDIN, fingerprint, stamp
from producers.transfer import COMMUNITIES, Advanced, Job, Opened, Order, Outcome, Transfer, hire

log = get(__name__)

_RECEIPT_EVERY = 2.0  # seconds between receipts on the way


class Publish:
    """One run: publishes files and keeps its receipt."""

    def __init__(
        self,
        settings: Settings,
        order: Order,
        files: Sequence[str],
        display: Quiet,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._order = order
        self._display = display
        self._stopping = stopping
        # Communities are counted over all files together, so they are one job.
        together = order.kind == COMMUNITIES
        self._parts = [tuple(files)] if together else [(path,) for path in files]
        self.receipt = Receipt(
            order.run,
            order.kind,
            order.platform,
            files=[FileEntry(Job(0, paths, (), ()).path) for paths in self._parts],
        )
        self._transfer: Transfer | None = None
        self._written_at = 0.0
        self._began = time.monotonic()
        self._busy: set[str] = set()  # contents that are on their way

    def go(self) -> Receipt:
        """Publish everything; the receipt that is returned stands on topic `runs`.

        Raises HeadraceError where nothing can be published at all.
        """
        topics.ensure(self._settings)
        size = self._crew_size()
        alone = size == 1 < self._settings.publishing.workers
        self._transfer = transfer = hire(self._settings, self._order, alone=alone)
        try:
            self._write()
            self._display.started(self._order.run, len(self.receipt.files))
            if size > 1:
                self._by_crew(size)
            else:
                for job in self._jobs():
                    assert job is not None
                    outcome = transfer(job, partial(self._hear, job), self._stopping)
                    self._finish(job, outcome)
                    if self._stopping():
                        break
            self._end()
        finally:
            self._display.close()
            transfer.close()
        return self.receipt

    def _crew_size(self) -> int:
        if any(STDIN in paths for paths in self._parts):
            return 1  # other processes do not have our standard input
        return min(self._settings.publishing.workers, len(self._parts))

    def _by_crew(self, size: int) -> None:
        heard = crew.work_along(
            self._jobs(), size, hire, (self._settings, self._order), self._stopping
        )
        for news in heard:
            match news:
                case crew.Told(job, event):
                    self._hear(job, event)
                case crew.Finished(job, outcome):
                    self._finish(job, outcome)
                case crew.Died(job, reason):
                    entry = self.receipt.files[job.index]
                    entry.state, entry.message = "failed", f"{reason}; publish it again to go on"
                    self._finish(job, Outcome(entry))

    def _jobs(self) -> Iterator[Job | None]:
        """Files with their fingerprints. Of two with the same content the second comes when the
        first is done, and is recognised then; None while only such are left."""
        waiting = deque(enumerate(self._parts))
        held: deque[Job] = deque()
        while waiting or held:
            for job in [job for job in held if job.fingerprint not in self._busy]:
                held.remove(job)
                self._busy.add(job.fingerprint)
                yield job
            if not waiting:
                if held:
                    yield None
                continue
            index, paths = waiting.popleft()
            try:
                job = _job(index, paths, self._order.run)
            except OSError as error:
                entry = self.receipt.files[index]
                entry.state, entry.message = "failed", f"cannot be read: {error.strerror}"
                self._display.finished(Job(index, paths, (), ()), Outcome(entry))
                continue
            if job.fingerprint in self._busy:
                held.append(job)
            else:
                self._busy.add(job.fingerprint)
                yield job

    def _hear(self, job: Job, event: Any) -> None:
        match event:
            case Opened():
                self.receipt.files[job.index].state = "running"
                self._display.opened(job, event)
            case Advanced():
                self.receipt.files[job.index] = event.entry
                self._add(event.starts, event.ends)
                self._display.advanced(job, event)
                if time.monotonic() - self._written_at > _RECEIPT_EVERY:
                    self._write()

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._busy.discard(job.fingerprint)
        self.receipt.files[job.index] = outcome.entry
        if outcome.superseded_by is not None:
            self.receipt.superseded = outcome.superseded_by
        self._add(outcome.starts, outcome.ends)
        self._display.finished(job, outcome)

    def _add(self, starts: dict[str, dict[int, int]], ends: dict[str, dict[int, int]]) -> None:
        merge_starts(self.receipt.starts, starts)
        merge_ends(self.receipt.ends, ends)

    def _end(self) -> None:
        receipt = self.receipt
        states = {file.state for file in receipt.files}
        if states & {"failed", "superseded"}:
            receipt.state = "failed"
        elif states & {"waiting", "stopped", "running"}:
            receipt.state = "stopped"
        else:
            receipt.state = "done"
        receipt.ended_at = now()
        self._write()
        self._display.ended(receipt, time.monotonic() - self._began)

    def _write(self) -> None:
        assert self._transfer is not None
        self._transfer.ledger.write_receipt(self.receipt.value())
        self._written_at = time.monotonic()


def _job(index: int, paths: tuple[str, ...], run: str) -> Job:
    """Raises OSError for what cannot be read."""
    stamps: list[tuple[int, int] | None] = []
    fingerprints = []
    for path in paths:
        if path == STDIN:
            stamps.append(None)
            fingerprints.append(f"standard input of {run}")
            continue
        stamps.append(stamp(path))
        fingerprints.append(fingerprint(path))
    return Job(index, paths, tuple(fingerprints), tuple(stamps))
