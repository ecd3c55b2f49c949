"""`headrace topics`: apply, list, asyncapi."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import orjson

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stream import asyncapi as document
from headrace.stream import clients, topology
from headrace.stream import topics as broker

Loader = Callable[[], Settings]


@click.group()
def topics() -> None:
    """Topics as topics.yaml wants them."""


@topics.command("apply")
@click.option("--dry-run", is_flag=True, help="Show the difference, change nothing.")
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Allow a shorter retention, or compaction, although messages are lost by it.",
)
@click.pass_obj
def apply_(loader: Loader, dry_run: bool, accept_loss: bool) -> None:
    """Create and alter topics until the broker has what topics.yaml says."""
    settings = loader()
    with clients.admin(settings) as admin:
        plan = broker.plan(settings, admin, accept_loss=accept_loss)
        for line in plan.lines():
            click.echo(line)
        if plan.refused and not dry_run:
            hint = "; --accept-loss allows what loses messages"
            loses = any(change.loses_data for change in plan.refused)
            raise HeadraceError(f"nothing was changed: see the lines with !{hint if loses else ''}")
        if not dry_run:
            broker.apply(settings, admin, plan)
    if plan.is_empty:
        click.echo(f"{plan.unchanged} topics are as topics.yaml says")
    elif dry_run:
        click.echo("nothing was changed (--dry-run)")


@topics.command("list")
@click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")
@click.pass_obj
def list_(loader: Loader, as_json: bool) -> None:
    """Every topic: who writes it, who reads it, how long it is kept."""
    wanted = topology.load(loader())
    rows = [
        {
            "topic": topic.name,
            "description": topic.description,
            "key": topic.key,
            "schema": topic.schema,
            "partitions": topic.partitions,
            "kept": broker.kept(topic),
            "writer": getattr(wanted.stage_of(topic) or wanted.group_of(topic), "short", None),
            "readers": [group.short for group in wanted.readers_of(topic)],
        }
        for topic in wanted.topics.values()
    ]
    if as_json:
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    table = [("TOPIC", "PARTITIONS", "KEPT", "READ BY")] + [
        (
            str(row["topic"]),
            str(row["partitions"]),
            str(row["kept"]),
            ", ".join(group.short for group in wanted.readers_of(topic)) or "-",
        )
        for row, topic in zip(rows, wanted.topics.values(), strict=True)
    ]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@topics.command("asyncapi")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file to write, instead of standard output.",
)
@click.pass_obj
def asyncapi_(loader: Loader, output: Path | None) -> None:
    """An AsyncAPI 3 document of all topics, messages and groups."""
    settings = loader()
    text = orjson.dumps(document.build(settings), option=orjson.OPT_INDENT_2).decode()
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n")
