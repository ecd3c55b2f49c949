"""`headrace job`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stream import topology as topologies

Loader = Callable[[], Settings]


@click.group()
def job() -> None:
    """Jobs work on everything that PostgreSQL has: see what there is, run one now."""


@job.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_(load: Loader, as_json: bool) -> None:
    """Every job, when it runs, and how far its result goes."""
    from headrace.backlog import database
    from headrace.jobs import history

    settings = load()
    topology = topologies.load(settings)
    with database.reading(settings) as connection:
        found = [(one, history.standing(connection, one.short)) for one in topology.jobs.values()]
    if as_json:
        click.echo(json.dumps([_as_dict(one, how) for one, how in found], indent=2))
        return
    for one, how in found:
        click.echo(f"{one.short}  {one.when.text}  version {one.version}")
        click.echo(f"  {one.description}")
        for line in _lines(how):
            click.echo(f"  {line}")


@job.command("run")
@click.argument("name")
@click.pass_obj
def run(load: Loader, name: str) -> None:
    """Run one job now, in this process, whatever its schedule says."""
    import sys

    from headrace import jobs

    settings = load()
    topology = topologies.load(settings)
    found = topology.job(name)
    if found is None:
        known = ", ".join(topology.jobs) or "none"
        raise HeadraceError(f"job {name} is not known; there are: {known}")
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))  # jobs of a project's own
    done = jobs.run(settings, topology, found)
    assert done.finished is not None
    took = (done.finished - done.started).total_seconds()
    click.echo(f"{name}: done in {took:.1f} s")
    if not done.current:
        click.echo("a newer result is there already; this one is kept beside it")


def _lines(how: Any) -> list[str]:
    lines = []
    if how.at_work and how.latest is not None:
        lines.append(f"is at work since {_at(how.latest.started)}")
    if how.current is None:
        lines.append("has no result yet")
    else:
        waits = f"; {how.behind:,} messages stored since" if how.behind else "; nothing came since"
        lines.append(f"its result is of {_at(how.current.taken_at)}{waits}")
    if how.latest is not None and how.latest.state == "failed":
        lines.append(f"failed at {_at(how.latest.finished)}: {how.latest.reason}")
    return lines


def _as_dict(one: topologies.Job, how: Any) -> dict[str, Any]:
    latest, current = how.latest, how.current
    return {
        "job": one.short,
        "description": one.description,
        "when": one.when.text,
        "version": one.version,
        "at_work": how.at_work,
        "lag": how.behind,
        "current": None
        if current is None
        else {
            "run": str(current.id),
            "version": current.version,
            "taken_at": current.taken_at.isoformat(),
        },
        "latest": None
        if latest is None
        else {
            "run": str(latest.id),
            "state": latest.state,
            "started": latest.started.isoformat(),
            "finished": latest.finished.isoformat() if latest.finished else None,
            "reason": latest.reason,
        },
    }


def _at(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else "–"
