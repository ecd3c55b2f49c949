"""`headrace run` and `headrace worker`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import NoReturn, get_args

import click

from headrace import log, platforms
from headrace.config import Mode, Settings
from headrace.errors import HeadraceError
from headrace.stores import weaviate
from headrace.stream import signals
from headrace.stream import topology as topologies
from headrace.stream.clients import Admin
from headrace.stream.faults import Exit
from headrace.stream.remaining import remaining
from headrace.stream.topology import Group, Projector, Topic, Topology

_PR_SET_PDEATHSIG = 1

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
@click.pass_obj
def run(
    load: Callable[[], Settings],
    groups: tuple[str, ...],
    workers: int | None,
    mode: Mode | None,
    until_caught_up: bool,
    only: bool,
) -> int:
    """Run groups, each in processes of its own; without a name all that the mode runs.

    A named stage brings the store groups that keep its results. With --until-caught-up the exit
    status is 0 when nothing is left, and 3 when some groups have work that they cannot do.
    """
    from headrace.supervisor import Supervisor

    settings = _in_mode(load(), mode)
    topology = topologies.load(settings)
    chosen = choose(topology, groups, settings.processing.mode, only)
    projectors, waits = choose_projectors(settings, topology, groups)
    for line in waits:
        click.echo(line)
    if not chosen and not projectors:
        click.echo(f"mode {settings.processing.mode} runs no group")
        return Exit.DONE
    stores = any(group.kind == "store" for group in chosen)
    _prepare(settings, chosen, tables=stores or bool(projectors))
    read = {group.short: subscription(settings, topology, group) for group in chosen}
    left_out = _left_out(settings, topology, chosen, bool(groups))
    for line in left_out:
        click.echo(line)
    report = Supervisor(
        settings,
        topology,
        chosen,
        read,
        projectors=projectors,
        workers=workers,
        until_caught_up=until_caught_up,
    ).run()
    for short in [group.short for group in chosen] + [p.short for p in projectors]:
        numbers = {name: n for name, n in report.counts[short].items() if n}
        shown = ", ".join(f"{n:,} {name}" for name, n in numbers.items())
        click.echo(f"  {short}: {shown or 'nothing to do'}")
    for name, reason in report.waiting.items():
        click.echo(f"waiting: {name}: {reason}")
    if until_caught_up and report.code == Exit.DONE:
        click.echo(f"caught up in {report.seconds:.1f} s{_but_for(left_out)}")
    return report.code


@click.command()
@click.argument("group")
@click.option("--slot", type=click.IntRange(0), help="A slot of this machine; else the first free.")
@_mode
@click.option("--until-caught-up", is_flag=True, help="End when the group has nothing left to do.")
@click.option("--supervisor", metavar="PID:FD", hidden=True)
@click.pass_obj
def worker(
    load: Callable[[], Settings],
    group: str,
    slot: int | None,
    mode: Mode | None,
    until_caught_up: bool,
    supervisor: str | None,
) -> None:
    """Run one group in this process, as a container does.

    Exit status: 0 after a signal or when caught up, 4 when too many dead letters stopped the
    group, 2 when something must be mended, and others when it is worth starting again.
    """
    from headrace.stream import worker as workers
    from headrace.supervisor import reporter

    report: Callable[[dict[str, object]], None] = lambda event: None  # noqa: E731
    if supervisor is not None:
        parent, _, pipe = supervisor.partition(":")
        _die_with(int(parent))
        # Whoever asks us to end knows that we drain, and what a second signal does.
        logging.getLogger(signals.__name__).setLevel(logging.WARNING)
        report = reporter(int(pipe))
    settings = _in_mode(load(), mode)
    topology = topologies.load(settings)
    projector = topology.projector(group)
    if projector is not None:
        _leave(_project(settings, topology, projector, slot, report, until_caught_up))
    found = topology.group(group)
    log.setup(settings, group=found.short)
    if supervisor is None:
        _prepare(settings, [found])
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))  # groups of a project's own
    topics = subscription(settings, topology, found)
    found = replace(found, batch=topology.batch(found, settings, platforms.load(settings)))
    os.nice(found.nice)
    code = workers.run(
        settings,
        topology,
        found,
        topics,
        slot=slot,
        report=report,
        finished=_finished(found, topics) if until_caught_up else lambda admin: False,
    )
    _leave(code)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # taking librdkafka's threads down may hang where the broker is gone


def choose(topology: Topology, names: Sequence[str], mode: Mode | None, only: bool) -> list[Group]:
    """The groups to run, in topics.yaml's order: those named and, unless `only`, the stores that
    keep what they write; or those of the mode that are always on."""
    if not names:
        return [group for group in topology.mode(mode) if group.when.always]
    named = [topology.group(name) for name in names if topology.projector(name) is None]
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


def _project(
    settings: Settings,
    topology: Topology,
    projector: Projector,
    slot: int | None,
    report: Callable[[dict[str, object]], None],
    until_caught_up: bool,
) -> int:
    """A projector's worker."""
    from headrace.search import marks
    from headrace.stream import worker as workers

    log.setup(settings, group=projector.short)
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))
    module = import_module(projector.module)
    return workers.serve(
        settings,
        projector.short,
        projector.name,
        lambda post: module.build(post, topology, projector),
        slot=slot,
        report=report,
        finished=lambda: until_caught_up and marks.left(settings) == 0,
    )


def subscription(settings: Settings, topology: Topology, group: Group) -> tuple[Topic, ...]:
    """What a group really reads now, its redo topic included."""
    files = platforms.load(settings)
    return (*topology.subscription(group, settings, files), group.redo)


def _prepare(settings: Settings, groups: Sequence[Group], *, tables: bool = False) -> None:
    """Topics, and tables if so asked, where they are missing. A store's worker sees to its tables
    by itself, as soon as it can."""
    from headrace.stream import topics

    if groups:
        topics.ensure(settings)
    if tables:
        from headrace.stores import migrate

        migrate.upgrade(settings)


def _in_mode(settings: Settings, mode: Mode | None) -> Settings:
    if mode is None:
        return settings
    processing = settings.processing.model_copy(update={"mode": mode})
    return settings.model_copy(update={"processing": processing})


def _left_out(
    settings: Settings, topology: Topology, groups: Sequence[Group], named: bool
) -> list[str]:
    """Lines on what waits by somebody's choice. Where groups were named, the others are not asked
    for."""
    files = platforms.load(settings)
    lines = []
    for group in groups:
        for topic, state in topology.left_out(group, settings, files).items():
            lines.append(f"{state}: {group.short} leaves {topic} for later")
    chosen = {group.short for group in groups}
    return lines + [
        f"SCHEDULED: {group.short} runs {group.when.text}"
        for group in (() if named else topology.mode(settings.processing.mode))
        if not group.when.always and group.short not in chosen
    ]


def _but_for(left_out: Sequence[str]) -> str:
    """The end of the last line: which groups are done only as far as they may be."""
    found = [line.replace(":", "").split()[:2] for line in left_out]
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
