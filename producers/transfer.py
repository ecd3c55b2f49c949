"""One file to Kafka: from where an earlier publish left it to its end, or as far as it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.log import get
from headrace.stream import schemas, topology
from headrace.stream.wire import CE_ID, CE_SOURCE, CE_SPEC, CE_TYPE, source_of
from headrace.words import count
from producers import receipts
from producers.ahead import Ahead, is_worth_it
from producers.communities import Communities
from producers.formats import ReadOptions
from producers.inputs import Files, Input, Told, folder_and_name, hurry, is_named_in_records
from producers.mapping import FileName, Mapped, Mapping, Rejected
from producers.pacing import paced
from producers.receipts import FileEntry, Ledger, Note, Offsets
from producers.rejects import Reject, RejectsWriter
from producers.sending import NotSent, Sender, TakenOver
from producers.sources import STDIN, stamp

log = get(__name__)

Report = Callable[[Any], None]
Stopping = Callable[[], bool]

POSTS, COMMUNITIES = "posts", "communities"
_SPEC = (CE_SPEC, b"1.0")
_POST = (CE_TYPE, b"headrace.raw.post.v1")
_COMMUNITY = (CE_TYPE, b"headrace.raw.community.v1")
_BESIDE_VALUE = 4_096  # bytes of a message that are not its value, at most


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asked for; the same for every file."""

    run: str
    kind: str = POSTS
    platform: str | None = None
    mapping: str | None = None
    limit: int | None = None
    again: bool = False
    max_rejects: int | None = None
    with_posts: bool = False  # the posts of communities too
    rejects: bool = False  # the files are rejects files
    options: ReadOptions = field(default_factory=ReadOptions)

    @property
    def told(self) -> Told:
        """What decides how the files are read."""
        return Told(self.platform, self.mapping, self.rejects, self.options)


@dataclass(frozen=True, slots=True)
class Job:
    """One file; or several, whose communities are counted together.

    A file's stamp (size, time of change) was taken before its content was hashed; standard input
    has none.
    """

    index: int
    paths: tuple[str, ...]
    fingerprints: tuple[str, ...]
    stamps: tuple[tuple[int, int] | None, ...]

    @property
    def path(self) -> str:
        """As people see it."""
        first, *others = self.paths
        return f"{first} and {count(len(others), 'other file')}" if others else first

    @property
    def fingerprint(self) -> str:
        if len(self.fingerprints) == 1:
            return self.fingerprints[0]
        return blake2b("".join(self.fingerprints).encode(), digest_size=20).hexdigest()


@dataclass(frozen=True, slots=True)
class Opened:
    """A file is being read: what was detected, the mapping that was chosen, where it begins."""

    detected: str
    mapping: str
    resumed_at: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """A transaction was committed. `fraction` is of the whole file, None where nobody knows."""

    entry: FileEntry
    fraction: float | None
    starts: Offsets
    ends: Offsets


@dataclass
class Outcome:
    """What became of a file. `reasons` counts rejects; `left_out` values that were unreadable."""

    entry: FileEntry
    starts: Offsets = field(default_factory=dict)
    ends: Offsets = field(default_factory=dict)
    seconds: float = 0.0
    superseded_by: str | None = None
    detected: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    nul_removed: int = 0


def hire(settings: Settings, order: Order, *, alone: bool = False) -> Transfer:
    """What works on jobs in one process."""
    hurry()
    return Transfer(settings, order, alone=alone)


class Transfer:
    def __init__(self, settings: Settings, order: Order, *, alone: bool = False) -> None:
        """`alone`: no other transfer works beside this one, so a second process is free."""
        self.settings = settings
        self.order = order
        self.topology = topology.load(settings)
        self.ledger = Ledger(settings, self.topology.topic(receipts.TOPIC).name)
        self.files = Files(settings, order.told)
        self.alone = alone
        self._looked = False

    def __call__(self, job: Job, report: Report, stopping: Stopping) -> Outcome:
        """Publish one file. Whatever is wrong with it stands in the outcome."""
        entry = FileEntry(job.path, job.fingerprint, state="running")
        outcome = Outcome(entry)
        began = time.monotonic()
        try:
            self._publish(job, outcome, report, stopping)
        except TakenOver as taken:
            entry.state = "superseded"
            entry.message = f"run {taken.run} has taken over this file, this run stops" + (
                f" behind row {entry.resumed_at + entry.rows:,}"
            )
            outcome.superseded_by = taken.run
        except (BrokenPipeError, ConnectionResetError):
            raise  # whom we report to is gone
        except OSError as error:
            elsewhere = error.filename not in (None, *job.paths)  # the rejects file, say
            what = str(error.filename) if elsewhere else "cannot be read"
            entry.state, entry.message = "failed", f"{what}: {error.strerror or error}"
        except HeadraceError as error:
            entry.state, entry.message = "failed", str(error).removeprefix(f"{job.path}: ")
        except Exception as error:
            log.exception("publishing a file failed", file=job.path)
            entry.state = "failed"
            entry.message = f"unexpected {type(error).__name__}: {error}"
        outcome.seconds = time.monotonic() - began
        return outcome

    def close(self) -> None:
        self.ledger.close()

    def _publish(self, job: Job, outcome: Outcome, report: Report, stopping: Stopping) -> None:
        entry = outcome.entry
        first = self.files.open(job.paths[0])
        try:
            way = self._way(job, first, outcome)
            progress = receipts.progress_id(job.fingerprint, *way)
            if not self._looked:
                self.ledger.refresh()
                self._looked = True
            # A look before the claim, so that a file that is done costs no transactional id.
            if self._is_known(self.ledger.note(progress), entry):
                return
            sender = Sender(self.settings, self.ledger, progress, self.order.run)
            try:
                note = sender.open()
                if self._is_known(note, entry):
                    return
                passage = _Passage(self, job, outcome, sender, first)
                passage.begun = self._take_up(note, entry, sender, passage.topics)
                report(Opened(outcome.detected, entry.mapping, entry.resumed_at))
                passage.go(report, stopping)
            finally:
                outcome.starts, outcome.ends = sender.starts, sender.ends
                sender.close()
        finally:
            first.close()

    def _way(self, job: Job, first: Input, outcome: Outcome) -> list[str]:
        """What decides, beside its content, what becomes of a file."""
        order, options = self.order, self.order.options
        names = ("format", "encoding", "delimiter", "header", "columns", "json_path")
        told = {name: getattr(options, name) for name in names}
        way = [order.kind, str(order.with_posts), str(order.rejects)]
        way.append(orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode())
        mappings: dict[str, None] = {}
        for place, path in enumerate(job.paths):
            mapping = self._way_of(path, first if not place else None, outcome)
            if mapping.platform != first.mapping.platform:
                raise HeadraceError(
                    f"communities are counted together, but {job.paths[0]} is of"
                    f" {first.mapping.platform} and {path} of {mapping.platform}:"
                    " choose with --platform, or publish them apart"
                )
            mappings[f"{mapping.platform}.{mapping.name}"] = None
            way += [mapping.platform, mapping.name, mapping.version]
            if is_named_in_records(mapping):
                way.append(folder_and_name(path))
        outcome.entry.mapping = ", ".join(mappings)
        return way

    def _way_of(self, path: str, opened: Input | None, outcome: Outcome) -> Mapping:
        if opened is not None:
            outcome.detected = opened.detected
            return opened.mapping
        with closing(self.files.open(path)) as input_:
            if input_.detected not in outcome.detected.split(" / "):
                outcome.detected += f" / {input_.detected}"
            return input_.mapping

    def _is_known(self, note: Note | None, entry: FileEntry) -> bool:
        """Whether the file is out already, and nobody wants it again."""
        if note is None or not note.complete or self.order.again:
            return False
        entry.state = "known"
        entry.rejects_file = note.rejects_file
        entry.message = (
            f"already published in run {note.run} ({count(note.rows_done, 'row')});"
            " --again publishes it anyway"
        )
        receipts.close_abandoned(self.ledger, note.run, self.order.run)
        return True

    def _take_up(
        self, note: Note | None, entry: FileEntry, sender: Sender, topics: list[str]
    ) -> Note:
        """Where this publish begins; puts right what a broken-off one before it left."""
        begun = begin(note, self.order, entry.path)
        entry.resumed_at = begun.rows_done
        if note is not None and begun.rows_done and not note.limited:
            # That run told nobody where its last rows stand: so our ends lie behind all of them.
            sender.cover(topics)
            receipts.close_abandoned(self.ledger, note.run, self.order.run)
        return begun


def begin(note: Note | None, order: Order, path: str) -> Note:
    """Where a publish of a file begins, as a note of its own.

    A broken-off publish goes on, to the same --limit if it had one; one that --limit ended goes on
    with the next rows. --again begins anew, but goes on with a broken-off --again.
    """
    fresh = Note(run=order.run, file=path, until=order.limit)
    if note is None:
        return fresh
    broken_off = not note.complete and not note.limited
    if order.again and not (broken_off and note.generation):
        return replace(fresh, generation=note.generation + 1)
    begun = replace(note, run=order.run, file=path, limited=False, until=None)
    if order.limit is not None:
        goes_on = broken_off and note.until is not None
        begun = replace(begun, until=note.until if goes_on else note.rows_done + order.limit)
    return begun if broken_off else replace(begun, communities=0)


class _Passage:
    """The rows of a job on their way, transaction by transaction."""

    begun: Note

    def __init__(
        self, transfer: Transfer, job: Job, outcome: Outcome, sender: Sender, first: Input
    ) -> None:
        settings, order = transfer.settings, transfer.order
        mapping = first.mapping
        self._transfer = transfer
        self._settings = settings
        self._order = order
        self._job = job
        self._outcome = outcome
        self._entry = outcome.entry
        self._sender = sender
        self._first: Input | None = first
        self._platform = mapping.platform
        self._source = (CE_SOURCE, source_of(order.run).encode())
        self._communities = Communities(mapping.platform) if order.kind == COMMUNITIES else None
        self._posts = order.kind == POSTS or order.with_posts
        self._posts_topic = transfer.topology.topic(f"raw.posts.{mapping.platform}").name
        self._communities_topic = transfer.topology.topic("raw.communities").name
        self.topics = [self._posts_topic] if self._posts else []
        if self._communities is not None:
            self.topics.append(self._communities_topic)
        self._largest = min(
            settings.publishing.max_message_bytes,
            *(transfer.ledger.max_message_bytes(topic) - _BESIDE_VALUE for topic in self.topics),
        )
        self._rejects: RejectsWriter
        self._report: Report = lambda _: None
        self._fraction: Callable[[], float | None] = lambda: None
        self._skipped = 0  # rows passed that an earlier publish has decided
        self._seen = (0, 0, 0)  # rows, published, rejected: up to the row that was read last
        self._sent = 0  # communities

    def go(self, report: Report, stopping: Stopping) -> None:
        """Raises TakenOver, and HeadraceError for what ends the job early; what was committed
        before stands in the entry."""
        begun, entry = self.begun, self._entry
        self._report = report
        self._sent = begun.communities
        self._rejects = self._open_rejects()
        limited = False
        try:
            for place, path in enumerate(self._job.paths):
                with closing(self._input(path)) as input_:
                    self._follow(place, input_)
                    items = iter(input_)
                    self._skip(items)
                    coming = islice(items, self._left())
                    try:
                        come = paced(coming) if path == STDIN else coming
                        if not self._rows(come, input_, stopping):
                            return
                        if self._left() == 0:
                            more = place + 1 < len(self._job.paths)
                            limited = more or not _is_at_end(items)
                    finally:
                        self._outcome.left_out += input_.left_out
                        self._outcome.nul_removed += input_.nul_removed
                known = self._job.stamps[place]
                if known is not None and stamp(path) != known:
                    raise HeadraceError("the file changed while it was read: publish it again")
                if limited:
                    break
            self._send_communities()
            self._commit(*self._seen, limited=limited, complete=not limited)
        finally:
            self._rejects.close()
        entry.state = "limited" if limited else "done"

    def _open_rejects(self) -> RejectsWriter:
        begun, settings = self.begun, self._settings
        if begun.rejects_file is not None:
            return RejectsWriter(Path(begun.rejects_file), begun.rejects_bytes)
        name = FileName.of(self._job.paths[0]).name.removesuffix(".rejects.jsonl")
        mark = self._order.run if STDIN in self._job.paths else self._job.fingerprint[:8]
        known = f"{name}.{mark}.rejects.jsonl"
        return RejectsWriter(settings.under(settings.publishing.rejects_dir) / known)

    def _input(self, path: str) -> Input:
        """The file, read by a process of its own where that pays.

        Communities are counted from records, which would stay in that process; where a reject was
        first read, nobody but its reader knows.
        """
        first, self._first = self._first, None
        input_ = first or self._transfer.files.open(path)
        plain = self._communities is None and not self._order.rejects
        if self._transfer.alone and plain and is_worth_it(self._settings, path):
            return Ahead(input_, path, self._settings, self._order.told)
        return input_

    def _follow(self, place: int, input_: Input) -> None:
        """Let the reports say how much of all files has been read."""
        files = len(self._job.paths)

        def fraction() -> float | None:
            own = input_.fraction
            return None if own is None else (place + own) / files

        self._fraction = fraction

    def _left(self) -> int | None:
        """Rows up to --limit."""
        until = self.begun.until
        return None if until is None else max(0, until - self.begun.rows_done - self._seen[0])

    def _skip(self, items: Iterator[Mapped | Rejected]) -> None:
        communities = self._communities
        for item in islice(items, self.begun.rows_done - self._skipped):
            self._skipped += 1
            if communities is not None and type(item) is Mapped:
                communities.add(item.record)

    def _rows(
        self, items: Iterator[Mapped | Rejected | None], input_: Input, stopping: Stopping
    ) -> bool:
        """Send a file's rows; commit whenever a transaction is full, and where None stands among
        them (no row has come for a while). False when told to stop.

        This runs for every row, so what it needs stands in local names.
        """
        entry, publishing = self._entry, self._settings.publishing
        most_bytes, most_rows = publishing.transaction_bytes, publishing.transaction_records
        largest, most_rejects = self._largest, self._order.max_rejects
        send, topic, name, source = self._sender.send, self._posts_topic, input_.name, self._source
        communities, posts = self._communities, self._posts
        rows, published, rejected = self._seen
        size = 0
        cut = rows + most_rows
        ended: HeadraceError | None = None
        try:
            for item in items:
                if type(item) is Mapped:
                    number, identity, value, record = item
                    if len(value) > largest:
                        item = _too_large(item, largest)
                    else:
                        if posts:
                            here = (CE_ID, f"{name}:{number}".encode())
                            send(topic, value, identity.encode(), [_SPEC, here, source, _POST])
                            published += 1
                            size += len(value)
                        if communities is not None:
                            communities.add(record)
                if type(item) is Rejected:
                    if rejected == most_rejects:
                        ended = _one_too_many(item, rejected)
                        break
                    rejected += 1
                    self._reject(item, input_)
                rows += item is not None
                if rows >= cut or size >= most_bytes or item is None:
                    if rows > entry.rows:
                        self._commit(rows, published, rejected)
                    cut, size = rows + most_rows, 0
                    if stopping():
                        entry.state = "stopped"
                        entry.message = f"stopped; {self._how_to_go_on()}"
                        return False
        except (NotSent, ServerUnavailable):
            raise
        except HeadraceError as damage:
            ended = damage
        if ended is not None:
            self._commit(rows, published, rejected)
            raise ended
        self._seen = rows, published, rejected
        return True

    def _how_to_go_on(self) -> str:
        if STDIN in self._job.paths:
            return "standard input cannot be taken up again: what is out stands, the rest is lost"
        return "publish it again to go on"

    def _reject(self, item: Rejected, input_: Input) -> None:
        file, line, mapping = input_.origin(item)
        self._outcome.reasons[item.reason] += 1
        kind = POSTS if self._posts else COMMUNITIES
        self._rejects.write(
            Reject(file, line, item.reason, self._platform, kind, mapping, item.row, item.raw)
        )

    def _send_communities(self) -> None:
        """The communities of all rows, those left out that an earlier publish has sent."""
        if self._communities is None:
            return
        validator = schemas.validator(self._settings, "raw_community.v1")
        most = self._settings.publishing.transaction_records
        for number, record in enumerate(self._communities.records(), 1):
            if number <= self._sent:
                continue
            if (complaint := schemas.complaint(validator, record)) is not None:
                raise HeadraceError(f"{record['id']} does not fit its schema: {complaint}")
            here = (CE_ID, f"{FileName.of(self._job.paths[0]).name}:{record['slug']}".encode())
            value = orjson.dumps(record)
            headers = [_SPEC, here, self._source, _COMMUNITY]
            self._sender.send(self._communities_topic, value, record["id"].encode(), headers)
            self._sent += 1
            if self._sent % most == 0:
                self._commit(*self._seen)

    def _commit(self, rows: int, published: int, rejected: int, **more: Any) -> None:
        """End the transaction behind a row, with the note that says so; then the entry says it."""
        self._seen = rows, published, rejected
        entry, begun = self._entry, self.begun
        rejects_bytes = self._rejects.flush()
        rejects_file = str(self._rejects.path) if rejects_bytes else None
        note = replace(
            begun,
            rows_done=begun.rows_done + rows,
            published=begun.published + published,
            rejected=begun.rejected + rejected,
            communities=self._sent,
            rejects_bytes=rejects_bytes,
            rejects_file=rejects_file,
            **more,
        )
        self._sender.commit(note)
        entry.rows, entry.published, entry.rejected = rows, published, rejected
        entry.communities = self._sent - begun.communities
        entry.rejects_file = rejects_file
        self._report(Advanced(entry, self._fraction(), self._sender.starts, self._sender.ends))


def _is_at_end(items: Iterator[Mapped | Rejected]) -> bool:
    try:
        return next(items, None) is None
    except HeadraceError:
        return False  # whoever goes on will be told


def _too_large(item: Mapped, largest: int) -> Rejected:
    return Rejected(
        item.number,
        f"the record is larger than Kafka takes ({largest:,} bytes)",
        None,
        f"{item.id}: {len(item.value):,} bytes; {item.value[:1000].decode(errors='replace')}…",
    )


def _one_too_many(item: Rejected, most: int) -> HeadraceError:
    allowed = "no row may be" if most == 0 else f"at most {count(most, 'row')} may be"
    return HeadraceError(f"{allowed} rejected, row {item.number:,} would be: {item.reason}")
