"""`headrace run` and `headrace worker`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

import click
import psycopg

from headrace import log, platforms
from headrace.config import Mode, Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.scheduling import units
from headrace.stores import postgres, weaviate
from headrace.stream import signals
from headrace.stream import topology as topologies
from headrace.stream.clients import Admin
from headrace.stream.faults import Exit
from headrace.stream.remaining import remaining
from headrace.stream.signals import Signals, hold
from headrace.stream.topology import App, Group, Projector, Topic, Topology

if TYPE_CHECKING:
    from headrace.supervisor import Supervisor

_PR_SET_PDEATHSIG = 1
_NICED = "HEADRACE_NICED"  # set where a worker has begun anew: its niceness would add up

_mode = click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    help="What runs and what is skipped, whatever the platforms' own settings say.",
)


@click.command()
@click.argument("groups", nargs=-1, metavar="[GROUP]…")
@click.option("--workers", type=click.IntRange(1), help="Processes a group.")
@_mode
@click.option("--until-caught-up", is_flag=True, help="End when nothing is left to do.")
@click.option("--only", is_flag=True, help="Just the groups named, without their stores.")
@click.option(
    "--max-cost",
    type=click.FloatRange(0),
    metavar="USD",
    help="Groups that ask a language model pause when they have spent so much together.",
)
@click.pass_obj
def run(
    load: Callable[[], Settings],
    groups: tuple[str, ...],
    workers: int | None,
    mode: Mode | None,
    until_caught_up: bool,
    only: bool,
    max_cost: float | None,
) -> int:
    """Run groups, each in processes of its own; without a name all that the mode runs.

    A named stage brings the store groups that keep its results. With --until-caught-up the exit
    status is 0 when nothing is left, and 3 when some groups have work that they cannot do.
    """
    settings = in_session(in_mode(load(), mode), max_cost)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        click.echo(line)

    supervisor = supervised(
        settings, groups, workers=workers, until_caught_up=until_caught_up, only=only, say=say
    )
    if supervisor is None:
        click.echo(f"mode {settings.processing.mode} runs no group")
        return Exit.DONE
    report = supervisor.run()
    for short, counts in report.counts.items():
        numbers = {name: n for name, n in counts.items() if n}
        shown = ", ".join(f"{n:,} {name}" for name, n in numbers.items())
        shown = "done" if shown == "1 runs" else shown  # a job's
        click.echo(f"  {short}: {shown or 'nothing to do'}")
    for name, requests in _in_batches(settings, report.counts).items():
        click.echo(f"  {name}: {requests}; a `headrace llm batches run` carries them on")
    for name, reason in report.waiting.items():
        click.echo(f"waiting: {name}: {reason}")
    if until_caught_up and report.code == Exit.DONE:
        click.echo(f"caught up in {report.seconds:.1f} s{_but_for(said)}")
    return report.code


def _in_batches(
    settings: Settings, counts: Mapping[str, Mapping[str, int]]
) -> Mapping[str, object]:
    """By group, what was put off until the provider of a language model has answered."""
    from headrace.llm import standing

    deferred = [group for group, counted in counts.items() if counted.get("deferred")]
    if not deferred:
        return {}
    try:
        with postgres.connect(settings, readonly=True) as connection:
            return standing.in_flight(connection, deferred)
    except (HeadraceError, psycopg.Error):
        return {}


@click.command()
@click.argument("group")
@click.option("--slot", type=click.IntRange(0), help="A slot of this machine; else the first free.")
@_mode
@click.option("--until-caught-up", is_flag=True, help="End when the group has nothing left to do.")
@click.option("--now", is_flag=True, help="At once, whatever the group's schedule says.")
@click.option("--supervisor", metavar="PID:FD", hidden=True)
@click.pass_obj
def worker(
    load: Callable[[], Settings],
    group: str,
    slot: int | None,
    mode: Mode | None,
    until_caught_up: bool,
    now: bool,
    supervisor: str | None,
) -> None:
    """Run one group in this process, as a container does.

    A group with a schedule waits for its windows, and works in them (and on what is to be done
    again); with --now or --until-caught-up at once.

    Exit status: 0 after a signal or when caught up, 4 when too many dead letters stopped the
    group, 2 when something must be mended, and others when it is worth starting again.
    """
    from headrace.stream import topics
    from headrace.stream import worker as workers
    from headrace.supervisor import reporter

    report: Callable[[dict[str, object]], None] = lambda event: None  # noqa: E731
    if supervisor is not None:
        parent, _, pipe = supervisor.partition(":")
        _die_with(int(parent))
        # Whoever asks us to end knows that we drain, and what a second signal does.
        logging.getLogger(signals.__name__).setLevel(logging.WARNING)
        report = reporter(int(pipe))
    settings = in_mode(load(), mode)
    topology = topologies.load(settings)
    projector = topology.projector(group)
    if projector is not None:
        from headrace.search import marks

        def projected() -> bool:
            return until_caught_up and marks.left(settings) == 0

        _leave(_serve(settings, topology, projector, slot, report, projected))
    app = topology.app(group)
    if app is not None:
        _check_app(app, until_caught_up)
        _leave(_serve(settings, topology, app, slot, report))
    job = topology.job(group)
    if job is not None:
        from headrace.jobs import worker as jobs

        log.setup(settings, group=job.short)
        if str(settings.home) not in sys.path:
            sys.path.append(str(settings.home))
        at_once = now or until_caught_up
        _leave(jobs.serve(settings, topology, job, at_once=at_once, slot=slot, report=report))
    found = topology.group(group)
    log.setup(settings, group=found.short)
    files = platforms.load(settings)
    waits = units.scheduled(topology, files, found) and not now and not until_caught_up
    if supervisor is None:
        topics.ensure(settings)
        if waits:
            _make_tables(settings, log.get(__name__).warning)
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))  # groups of a project's own
    found = replace(found, batch=topology.batch(found, settings, files))
    if os.environ.pop(_NICED, None) is None:
        os.nice(found.nice)
    if waits:
        _leave(_in_windows(settings, topology, found, slot, report, supervisor is not None))
    read = subscription(settings, topology, found)
    code = workers.run(
        settings,
        topology,
        found,
        read,
        slot=slot,
        report=report,
        finished=_finished(found, read) if until_caught_up else lambda admin: False,
    )
    _leave(code)


def _in_windows(
    settings: Settings,
    topology: Topology,
    group: Group,
    slot: int | None,
    report: Callable[[dict[str, object]], None],
    supervised: bool,
) -> int:
    """The worker of a group with a schedule. What it reads changes with its windows, and each
    time it begins anew: by itself, or started again by its supervisor when something is due."""
    from headrace.scheduling import attendance
    from headrace.stream import worker as workers

    with Signals() as signals:
        if supervised:
            try:
                topics = attendance.look(settings, topology, group)
            except Exception as error:
                log.get(__name__).error("cannot see what is due", reason=str(error))
                return Exit.CRASHED
        else:
            topics = attendance.wait_until_due(settings, topology, group, signals)
        if not topics or signals.stopping():
            return Exit.RESTS if supervised and not signals.stopping() else Exit.DONE
        watch = attendance.Watch(settings, topology, group, topics)
        code = workers.run(
            settings,
            topology,
            group,
            topics,
            slot=slot,
            report=report,
            leaving=watch.leaving,
            signals=signals,
        )
        if code != Exit.DONE or not watch.leaving() or signals.stopping():
            return code
        if not supervised:
            _begin_anew(signals)
        return Exit.DONE if signals.stopping() else Exit.RESTS


def _begin_anew(signals: Signals) -> None:
    """The same command in the same process: no client of librdkafka's is to be taken down. Returns
    only where there was a signal meanwhile."""
    hold()
    if signals.stopping():
        return
    for entry in Path("/proc/self/fd").iterdir():
        if int(entry.name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(entry.name), False)
    os.environ[_NICED] = "1"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # taking librdkafka's threads down may hang where the broker is gone


def choose(topology: Topology, names: Sequence[str], mode: Mode | None, only: bool) -> list[Group]:
    """The groups to run, in topics.yaml's order: those named and, unless `only`, the stores that
    keep what they write; or those of the mode that are always on."""
    if not names:
        return [group for group in topology.mode(mode) if group.when.always]
    others = (topology.projector, topology.job, topology.app)
    named = [topology.group(name) for name in names if not any(known(name) for known in others)]
    wanted = {group.short for group in named}
    if not only:
        for group in named:
            for topic in [t for t in (*group.outputs, group.dlt) if t is not None]:
                readers = topology.readers_of(topic)
                wanted |= {reader.short for reader in readers if reader.kind == "store"}
    return [group for group in topology.groups.values() if group.short in wanted]


def choose_projectors(
    settings: Settings, topology: Topology, names: Sequence[str]
) -> tuple[list[Projector], list[str]]:
    """The projectors to run: those named, or those of the mode that have a server to write to;
    and lines on the others."""
    if names:
        return [found for name in names if (found := topology.projector(name))], []
    projectors = list(topology.projectors_of(settings.processing.mode))
    if not projectors or not settings.search.enabled:
        return [], []
    if weaviate.expected(settings):
        return projectors, []
    return [], [
        f"{projector.short} waits: no Weaviate runs here (`headrace up weaviate`) and none is"
        " configured"
        for projector in projectors
    ]


def _serve(
    settings: Settings,
    topology: Topology,
    group: Projector | App,
    slot: int | None,
    report: Callable[[dict[str, object]], None],
    finished: Callable[[], bool] = lambda: False,
) -> int:
    """The worker of a group that is no member of Kafka's by our own loops."""
    from headrace.stream import worker as workers

    log.setup(settings, group=group.short)
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))
    module = import_module(group.module)
    return workers.serve(
        settings,
        group.short,
        group.name,
        lambda post: module.build(post, topology, group),
        slot=slot,
        report=report,
        finished=finished,
    )


def _check_app(app: App, until_caught_up: bool) -> None:
    if until_caught_up:
        raise HeadraceError(f"{app} has no end: run it without --until-caught-up")


def choose_apps(
    settings: Settings, topology: Topology, names: Sequence[str], until_caught_up: bool
) -> list[App]:
    """The apps to run: those named, else all; but nothing waits for them, so none of them is
    brought where the run has an end, or is only for what others leave out."""
    if names:
        named = [app for name in names if (app := topology.app(name))]
        for app in named:
            _check_app(app, until_caught_up)
        return named
    if until_caught_up or settings.processing.mode == "batch" or not settings.status.enabled:
        return []
    return list(topology.apps.values())


def supervised(
    settings: Settings,
    groups: Sequence[str],
    *,
    workers: int | None = None,
    until_caught_up: bool = False,
    only: bool = False,
    say: Callable[[str], object] = click.echo,
) -> Supervisor | None:
    """What `headrace run` runs, not yet started, with its topics and tables made; None where the
    mode runs no group. `say` hears who waits by somebody's choice.

    Groups and jobs that are named run at once. Else those with a schedule are started when they
    are due, and batch mode asks for their windows now.
    """
    from headrace.stream import topics
    from headrace.supervisor import Supervisor

    topology = topologies.load(settings)
    files = platforms.load(settings)
    mode = settings.processing.mode
    attended: list[Group] = []
    if groups:
        chosen = choose(topology, groups, mode, only)
        jobs = [job for name in groups if (job := topology.job(name))]
    else:
        members = topology.mode(mode)
        attended = [group for group in members if units.scheduled(topology, files, group)]
        named = [group.short for group in members] if mode == "batch" else []
        keepers = choose(topology, named, mode, only) if named else []
        chosen = [group for group in (*members, *keepers) if group not in attended]
        chosen = list(dict.fromkeys(chosen))
        jobs = list(topology.jobs_of(mode))
    projectors, waits = choose_projectors(settings, topology, groups)
    apps = choose_apps(settings, topology, groups, until_caught_up)
    for line in waits:
        say(line)
    if not chosen and not projectors and not attended and not jobs and not (groups and apps):
        return None
    stores = any(group.kind == "store" for group in chosen)
    tables = stores or bool(projectors or attended or jobs)
    if chosen or attended:
        topics.ensure(settings)
    if tables:
        # Where there is an end, or nothing that goes without it, nobody waits for PostgreSQL.
        goes_without = not until_caught_up and any(group.kind == "stage" for group in chosen)
        _make_tables(settings, say if goes_without else None)
    read = {group.short: subscription(settings, topology, group) for group in chosen}
    for line in _left_out(settings, topology, chosen, attended):
        say(line)
    for job in [] if groups or mode == "batch" else jobs:
        say(f"SCHEDULED: {job.short} runs {job.when.text}")
    if mode == "batch" and not groups:
        asked = _ask(settings, topology, {g.short for g in attended} | {j.short for j in jobs})
        say(f"opens windows now: {', '.join(asked) or 'none'}")
    return Supervisor(
        settings,
        topology,
        chosen,
        read,
        projectors=projectors,
        attended=attended,
        jobs=jobs,
        apps=apps,
        named=bool(groups),
        workers=workers,
        until_caught_up=until_caught_up,
    )


def _ask(settings: Settings, topology: Topology, members: Collection[str]) -> list[str]:
    """Asks for a window of everything that these groups and jobs have on a schedule."""
    from headrace.scheduling import windows
    from headrace.stores import postgres

    wanted = [
        unit
        for unit in units.units(settings, topology, platforms.load(settings))
        if unit.group in members and not unit.held
    ]
    with postgres.connect(settings, autocommit=True) as connection:
        windows.ask(
            connection, [unit.key for unit in wanted], "run --mode batch", datetime.now(UTC)
        )
    return list(dict.fromkeys(unit.group for unit in wanted))


def subscription(settings: Settings, topology: Topology, group: Group) -> tuple[Topic, ...]:
    """What a group reads now that runs whatever its schedule says, its redo topic included."""
    out = topology.left_out(group, settings, platforms.load(settings), windows=True)
    return (*(topic for topic in group.reads if topic.short not in out), group.redo)


def _make_tables(settings: Settings, say: Callable[[str], object] | None) -> None:
    """What is missing of them. Without PostgreSQL `say` hears that what needs it waits: store and
    scheduler make the tables as soon as they can. Raises ServerUnavailable where `say` is None."""
    from headrace.stores import migrate

    try:
        migrate.upgrade(settings)
    except ServerUnavailable as error:
        if say is None:
            raise
        say(f"{error}; stores, jobs and schedules wait for it")


def in_session(settings: Settings, max_cost: float | None) -> Settings:
    """The settings of a run whose groups' costs count together."""
    session = settings.llm.session or f"{socket.gethostname()}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    own = {"session": session} | ({} if max_cost is None else {"max_cost": max_cost})
    return settings.model_copy(update={"llm": settings.llm.model_copy(update=own)})


def in_mode(settings: Settings, mode: Mode | None) -> Settings:
    if mode is None:
        return settings
    processing = settings.processing.model_copy(update={"mode": mode})
    return settings.model_copy(update={"processing": processing})


def _left_out(
    settings: Settings, topology: Topology, chosen: Sequence[Group], attended: Sequence[Group]
) -> list[str]:
    """Lines on what waits by somebody's choice."""
    files = platforms.load(settings)
    lines = []
    for group in (*chosen, *attended):
        for topic, state in topology.left_out(group, settings, files, windows=True).items():
            lines.append(f"{state}: {group.short} leaves {topic} for later")
    if settings.processing.mode == "batch":
        return lines  # its windows are opened now
    for group in attended:
        if group.paid and not settings.llm.configured:
            lines.append(
                f"SCHEDULED: {group.short} asks a language model, and none is configured"
                f" (llm.base_url, llm.api_key); `headrace run {group.short}` tries the embedded one"
            )
            continue
        texts = []
        for platform in dict.fromkeys(topic.platform for topic in group.reads):
            when = topology.schedule(group, platform, files)
            if not when.always:
                texts.append(when.text if when == group.when else f"{when.text} on {platform}")
        lines.append(f"SCHEDULED: {group.short} runs {'; '.join(sorted(set(texts)))}")
    return lines


def _but_for(said: Sequence[str]) -> str:
    """The end of the last line: which groups are done only as far as they may be."""
    states = ("SCHEDULED", "DISABLED")
    found = [line.replace(":", "").split()[:2] for line in said if line.startswith(states)]
    groups = dict.fromkeys(f"{group} ({state})" for state, group in found)
    return f", but for: {', '.join(groups)}" if groups else ""


def _finished(group: Group, topics: Sequence[Topic]) -> Callable[[Admin], bool]:
    empty = 0
    read: Mapping[str, Sequence[Topic]] = {group.short: topics}

    def finished(admin: Admin) -> bool:
        nonlocal empty
        empty = empty + 1 if remaining(admin, [group], read)[group.short] == 0 else 0
        return empty >= 2

    return finished


def _die_with(parent: int) -> None:
    """A worker whose supervisor is gone drains and ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise HeadraceError("the supervisor has ended already")
