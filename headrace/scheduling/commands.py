"""`headrace schedule` and `headrace scheduler`."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from headrace.config import Settings

COLUMNS = ("GROUP", "PLATFORM", "WHEN", "LAST", "TOOK", "NEXT", "STATE")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--close", "group", metavar="GROUP", help="Close its windows, whatever is left.")
@click.pass_obj
def schedule(load: Callable[[], Settings], as_json: bool, group: str | None) -> None:
    """What has a schedule: when it ran, when it runs next, and why each waits."""
    from headrace.backlog import reach
    from headrace.backlog import report as tables
    from headrace.scheduling import report

    settings = load()
    if group is not None:
        closed = report.close(settings, group)
        names = ", ".join(filter(None, closed))
        said = f"closed: {group} {names}".rstrip()
        click.echo(said if closed else f"no window of {group} is open")
        return
    reach.kafka(settings)
    found = report.read(settings)
    if as_json:
        rows = [row.as_dict() for row in found.rows]
        unknown = [{"group": w.group, "platform": w.platform} for w in found.unknown]
        told = {"scheduler": found.led, "zone": found.zone, "rows": rows, "unknown": unknown}
        click.echo(json.dumps(told, indent=2))
        return
    for name in dict.fromkeys(window.group for window in found.unknown):
        click.echo(
            f"{name} has a window and no schedule here: another topics.yaml of this project may"
            f" know it; else `headrace schedule --close {name}`"
        )
    if not found.rows:
        click.echo("nothing has a schedule: every group is always on")
        return
    cells = []
    for row in found.rows:
        last = took = after = "–"
        if row.last is not None and row.last.opened_at is not None:
            last = report.local(row.last.opened_at, found.zone)
            took = tables.span(report.took(row.last))
        if row.next is not None:
            seconds = max((row.next - found.now).total_seconds(), 0.0)
            rough = " ".join(tables.span(seconds).split()[:2])
            after = f"{report.local(row.next, found.zone)} (in {rough})"
        state = f"{row.state}: {row.reason}" if row.reason else row.state
        cells.append(
            (row.unit.group, row.unit.platform or "", row.unit.when.text, last, took, after, state)
        )
    tables.show(cells, COLUMNS)
    if not found.led:
        click.echo("no scheduler runs: `headrace run` and `headrace scheduler` have one")


@click.command()
@click.pass_obj
def scheduler(load: Callable[[], Settings]) -> int:
    """Open the windows of scheduled groups, as a container does; `headrace run` does so by itself.

    Several may run: one leads, and another takes over when it is gone.
    """
    from headrace import log
    from headrace.scheduling.scheduler import Scheduler
    from headrace.stores import migrate
    from headrace.stream import topics, topology
    from headrace.stream.metrics import Metrics
    from headrace.stream.signals import Signals

    settings = load()
    log.setup(settings, group="scheduler")
    topics.ensure(settings)
    migrate.upgrade(settings)
    metrics = Metrics(settings, f"{settings.project}.scheduler")

    def say(state: str, reason: str) -> None:
        metrics.state = (state, reason)

    with Signals() as signals:
        Scheduler(settings, topology.load(settings)).run(signals.wait, say)
    metrics.close()
    return 0
