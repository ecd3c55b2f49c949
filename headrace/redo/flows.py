"""The ways back, from first to last: redrive, requeue, upgrade, backfill; and dismissing the dead.

Each way back may be killed at any instant and started again: it first sends what its predecessor
had noted, and then goes on with what is not queued yet.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, ClassVar, Protocol, Self

import psycopg

from headrace.backlog import database
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.redo import choosing, letters, pace
from headrace.redo.choosing import Choice, Target, Wanted
from headrace.redo.messages import inputs
from headrace.redo.sending import Line, Sender, Sent, lock
from headrace.redo.standing import POLL_SECONDS, Standing
from headrace.stores import migrate, postgres
from headrace.stream import clients
from headrace.stream.topology import Group, Topology

_LOOK_SECONDS = 5.0  # between two looks for rows that no outcome will remove


class Tell(Protocol):
    """Who hears how it goes: a step's name with its total, each advance, single lines."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def step(self, name: str, total: int | None) -> None: ...

    def advance(self, done: int) -> None: ...

    def say(self, line: str) -> None: ...


@dataclass
class Report:
    """What a command did. `left_out`: nothing can be sent of them, or they were queued by
    another. `died`: reasons of a canary, or of what was waited for."""

    group: str
    kind: str
    found: int = 0
    queued: int = 0
    resent: int = 0
    left_out: int = 0
    canary: int = 0
    survived: int = 0
    stopped: bool = False
    timed_out: bool = False
    died: list[str] = field(default_factory=list)
    still_dead: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sent(self, sent: Sent) -> None:
        self.queued += sent.queued
        self.left_out += sent.left_out


def stage_of(topology: Topology, short: str) -> Group:
    """Raises HeadraceError where it is no stage."""
    group = topology.group(short)
    if group.kind != "stage":
        raise HeadraceError(
            f"{group.short} is a store, not a stage: it does again what `headrace dead redrive"
            f" {group.short}` gives it"
        )
    return group


# -- dead letters


@dataclass(frozen=True, slots=True)
class Canary:
    """So many letters go first (0: none), and this share of them must not die again."""

    letters: int
    survive: float


def redrive(
    settings: Settings,
    topology: Topology,
    group: Group,
    filters: letters.Filters,
    canary: Canary,
    tell: Tell,
    *,
    limit: int | None = None,
    timeout: float | None = None,
    wait: bool = False,
) -> Report:
    """Give dead letters back to their group; stops where the canary dies."""
    report = Report(group.short, "dead")
    dead = letters.Dead(group, filters, topology)
    with Sender(settings, topology, group) as sender:
        report.resent = sender.resend().queued
        standing = Standing(sender.admin, sender.connection, topology, group)
        standing.drop_unanswered()
        report.found = dead.count(sender.connection)
        report.left_out = dead.keyless(sender.connection)
        pages = dead.pages(sender.connection, sender.chunk)
        lines = islice((line for page in pages for line in page), limit)
        waited: list[int] = []
        sender.begin("dead", f"redrive {filters.cause or 'all'}")
        if canary.letters:
            waited = dead.queued(sender.connection, canary.letters)
            while len(waited) < canary.letters and (
                first := list(islice(lines, canary.letters - len(waited)))
            ):
                sent = sender.send(first)
                report.sent(sent)
                waited += sent.letters
            report.canary = len(waited)
            if waited and not _survives(sender, standing, waited, canary, tell, report, timeout):
                sender.end()
                report.stopped = True
                return report
        _send_all(sender, lines, min(report.found, limit or report.found), tell, report)
        sender.end()
        if wait:
            _wait_for_answers(sender, standing, tell, report, timeout)
            report.still_dead = dead.count(sender.connection)
    return report


def _survives(
    sender: Sender,
    standing: Standing,
    sent: Sequence[int],
    canary: Canary,
    tell: Tell,
    report: Report,
    timeout: float | None,
) -> bool:
    """Wait until the canary's outcomes are known; whether enough of it lives."""
    group = sender.group
    tell.step(f"{group.short}: canary", len(sent))
    deadline = None if timeout is None else time.monotonic() + timeout
    looker = _Looker(standing, group, tell)
    while True:
        found, open_ = letters.answers(sender.connection, sent)
        tell.advance(len(found))
        if not open_:
            break
        if deadline is not None and time.monotonic() > deadline:
            report.timed_out = True
            return False
        looker.look()
        time.sleep(POLL_SECONDS)
    report.survived = sum(answer.survived for answer in found)
    report.died = [f"{a.record}: {a.reason}" for a in found if not a.survived]
    return not found or report.survived >= canary.survive * len(found)


def dismiss(
    settings: Settings,
    topology: Topology,
    group: Group,
    filters: letters.Filters,
    why: str | None,
) -> int:
    """Put open dead letters of a group aside; returns how many. Raises HeadraceError while another
    command queues work of the group: it may be sending them."""
    migrate.upgrade(settings, topology)
    name = f"headrace redo {group.short}"
    with postgres.connect(settings, autocommit=True, application=name) as connection:
        lock(connection, settings, group)
        return letters.dismiss(connection, topology, filters, why, settings.redo.chunk)


# -- what a stage misses


def requeue(
    settings: Settings,
    topology: Topology,
    group: Group,
    tell: Tell,
    *,
    platforms: Sequence[str] = (),
    limit: int | None = None,
    deferred: bool = False,
    reason: str = "missing",
    dry_run: bool = False,
    timeout: float | None = None,
    wait: bool = False,
) -> Report:
    """Have a stage do the records that it has passed and has no answer for."""
    report = Report(group.short, "missing")
    with _sender(settings, topology, group, dry_run) as sender:
        if not dry_run:
            report.resent = sender.resend().queued
        standing = Standing(sender.admin, sender.connection, topology, group)
        # In this order: all that it made of what it has committed stands before these ends.
        reach = standing.reach()
        standing.wait_for_store(standing.written(), tell.say)
        if not dry_run:
            standing.drop_unanswered()
        choice = choosing.missing(
            group, inputs(topology, group), reach, platforms=platforms, deferred=deferred
        )
        report.found = choice.count(sender.connection)
        if not dry_run:
            if report.found:
                sender.begin("missing", reason)
                _queue_chosen(sender, choice, limit, tell, report)
            if wait:
                _wait_for_answers(sender, standing, tell, report, timeout)
    return report


# -- what outcomes lack, or an older version made


@dataclass
class Order(ABC):
    """What a stage is to do of what it has done: first looked at, then queued. Use `with`; with
    `dry_run` nothing is changed."""

    kind: ClassVar[str]

    settings: Settings
    topology: Topology
    group: Group
    tell: Tell
    dry_run: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.report = Report(self.group.short, self.kind)
        self._sender = _sender(self.settings, self.topology, self.group, self.dry_run)

    def __enter__(self) -> Self:
        self._sender.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sender.__exit__(*error)

    @property
    @abstractmethod
    def reason(self) -> str:
        """Kept with each record."""

    @property
    def parts(self) -> Sequence[str]:
        """Parts of the results that alone are asked for; none: the whole."""
        return ()

    @abstractmethod
    def _chosen(self, sender: Sender) -> Choice: ...

    def look(self) -> int:
        """How many records there are to do. Raises HeadraceError where the store has outcomes of
        the stage to read and does not run."""
        sender = self._sender
        self._choice = self._chosen(sender)
        self._standing = Standing(sender.admin, sender.connection, self.topology, self.group)
        self._standing.wait_for_store(self._standing.written(), self.tell.say)
        if not self.dry_run:
            self.report.resent = sender.resend().queued
            self._standing.drop_unanswered()
        self.report.found = self._choice.count(sender.connection)
        return self.report.found

    def run(
        self, *, limit: int | None = None, wait: bool = False, timeout: float | None = None
    ) -> Report:
        """Queue what was found."""
        sender, report = self._sender, self.report
        if report.found:
            sender.begin(self.kind, self.reason, self.parts)
            _queue_chosen(sender, self._choice, limit, self.tell, report)
        if wait:
            _wait_for_answers(sender, self._standing, self.tell, report, timeout)
        return report


@dataclass
class Backfill(Order):
    """One part of a stage's results, where it is missing."""

    kind = "backfill"

    part: str
    platforms: Sequence[str] = ()

    @property
    def reason(self) -> str:
        return f"backfill {self.part}"

    @property
    def parts(self) -> Sequence[str]:
        return (self.part,)

    def _chosen(self, sender: Sender) -> Choice:
        return choosing.lacking(self.group, self.part, self.platforms)


@dataclass
class Upgrade(Order):
    """What an older version of a stage made. Once it has looked it knows its target."""

    kind = "upgrade"

    wanted: Wanted

    @property
    def reason(self) -> str:
        return f"upgrade to {self.target.version}"

    def _chosen(self, sender: Sender) -> Choice:
        """Raises HeadraceError where the group runs another version than topics.yaml says."""
        members = sender.admin.members(self.group.name)
        self.workers = len(members) or self.group.workers
        self.target = target_of(self.group, members)
        return choosing.older(self.group, self.target, self.wanted)

    def rate(self) -> float | None:
        """Records a second that the group's workers do, as far as they have told."""
        admin = self._sender.admin
        each = pace.per_second(self.settings, admin, self.topology, self.group)
        return each and each * self.workers


def target_of(group: Group, members: Sequence[clients.Member]) -> Target:
    """The version that the group's workers say they run, else the declared one (a group that does
    not run starts with it). Raises HeadraceError where its workers run another one."""
    told = {found for member in members if (found := clients.running(member)) is not None}
    declared = (group.rank, group.version)
    others = {run for run in told if (run[0], run[1].partition("+")[0]) != declared}
    if others:
        rank, version = min(others)
        raise HeadraceError(
            f"restart {group.short} with its new version first: topics.yaml says version"
            f" {group.version} (rank {group.rank}), its workers run {version} (rank {rank})"
        )
    if len(told) > 1:
        versions = " and ".join(sorted(version for _, version in told))
        raise HeadraceError(
            f"restart {group.short} with one version first: its workers run {versions}"
        )
    if told:
        rank, version = told.pop()
        return Target(rank, version, whole=True)
    return Target(group.rank, group.version, whole=False)


# -- what they share


class _Looker:
    """Looks now and then whether anybody works, and clears away what no outcome will answer."""

    def __init__(self, standing: Standing, group: Group, tell: Tell) -> None:
        self._standing = standing
        self._groups = {group.short: group, standing.store.short: standing.store}
        self._tell = tell
        self._looked = time.monotonic()
        self._said = ""

    def look(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self._standing.drop_unanswered()
        groups = self._groups.values()
        away = [group.short for group in groups if not self._standing.is_running(group)]
        said = f"{' and '.join(away)} not running: `headrace run {' '.join(away)}`" if away else ""
        if said and said != self._said:
            self._tell.say(said)
        self._said = said


class _Looking(Sender):
    """Changes nothing, and needs no lock."""

    def _prepare(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
        error = raised[1]
        if isinstance(error, psycopg.Error):
            with database.in_words(self.settings):
                raise error


def _sender(settings: Settings, topology: Topology, group: Group, dry_run: bool) -> Sender:
    return (_Looking if dry_run else Sender)(settings, topology, group)


def _queue_chosen(
    sender: Sender, choice: Choice, limit: int | None, tell: Tell, report: Report
) -> None:
    """What belongs to the order that the sender has begun."""
    lines = (line for page in choice.pages(sender.connection, sender.chunk) for line in page)
    total = min(report.found, limit or report.found)
    _send_all(sender, islice(lines, limit), total, tell, report)
    sender.end()


def _send_all(
    sender: Sender, lines: Iterator[Line], total: int, tell: Tell, report: Report
) -> None:
    if not total:
        return
    tell.step(f"{sender.group.short}: queued", total)
    while chunk := list(islice(lines, sender.chunk)):
        report.sent(sender.send(chunk))
        tell.advance(report.queued + report.left_out)


def _wait_for_answers(
    sender: Sender, standing: Standing, tell: Tell, report: Report, timeout: float | None
) -> None:
    """Until the outcome of all that is queued for the group is stored."""
    group = sender.group
    query = 'SELECT count(*) FROM redo WHERE "group" = %s'
    deadline = None if timeout is None else time.monotonic() + timeout
    looker = _Looker(standing, group, tell)
    total: int | None = None
    while True:
        row = sender.connection.execute(query, [group.short]).fetchone()
        left = int(row[0]) if row else 0
        if total is None:
            total = left
            tell.step(f"{group.short}: done again", total)
        tell.advance(max(0, total - left))
        if not left:
            return
        if deadline is not None and time.monotonic() > deadline:
            report.timed_out = True
            return
        looker.look()
        time.sleep(POLL_SECONDS)
