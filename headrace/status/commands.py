"""`headrace status`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from headrace.backlog import reach, report
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.status import recent, view
from headrace.stream import topology

EMBEDDED = (
    "no language model is configured (llm.base_url, llm.api_key): {} run when named, by the"
    " embedded one, and what it says is for trying out"
)
NOT_RUNNING = "the status group is not running: no alerts are sent (`headrace worker status`)"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs; with --watch a line a look.")
@click.option("--watch", is_flag=True, help="Again and again, until interrupted.")
@click.option("--every", default=2.0, show_default=True, help="Seconds between looks (--watch).")
@click.pass_obj
def status(load: Callable[[], Settings], as_json: bool, watch: bool, every: float) -> None:
    """Every group: its rate now, over 5 minutes and an hour, its lag and state; open alerts.

    Asks the status group; where that does not run, reads the last hour from Kafka itself.
    """
    settings = load()
    if not watch:
        found = _look(settings)
        click.echo(json.dumps(found, indent=2) if as_json else _text(found))
        return
    if every <= 0:
        raise HeadraceError("--every needs a number of seconds above 0")
    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live is not None and not as_json:
        live.start()
    try:
        while True:
            try:
                found = _look(settings)
            except ServerUnavailable as error:  # a broker that restarts does not end the watch
                click.echo(f"headrace: {error}", err=True)
            else:
                if live is None or as_json:
                    click.echo(json.dumps(found) if as_json else _text(found))
                else:
                    table = report.table(view.rows(found), view.COLUMNS)
                    live.update(Group(table, Text("\n".join(_below(found)))), refresh=True)
                sys.stdout.flush()
            time.sleep(every)
    finally:
        if live is not None:
            live.stop()


def _look(settings: Settings) -> dict[str, Any]:
    """The overview, whether the status group runs, and who would ask the embedded model."""
    paid = [group.short for group in topology.load(settings).groups.values() if group.paid]
    own = {"embedded": [] if settings.llm.configured else paid}
    found = recent.ask(settings)
    if found is not None and found.get("ready"):
        return {**found, "running": True, **own}
    reach.kafka(settings)
    return {**recent.overview(settings), "running": found is not None, **own}


def _text(found: dict[str, Any]) -> str:
    return "\n".join([report.plain(view.rows(found), view.COLUMNS), *_below(found)])


def _below(found: dict[str, Any]) -> list[str]:
    lines = view.alert_lines(found)
    if found["embedded"]:
        lines.append(EMBEDDED.format(" and ".join(found["embedded"])))
    return [*lines, *([] if found["running"] else [NOT_RUNNING])]
