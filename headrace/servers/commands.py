"""`headrace servers up|down|status`, and `headrace up` and `down` for short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
import orjson

from headrace import home
from headrace import servers as machine
from headrace.config import Settings
from headrace.servers import configured

_names = click.argument("names", nargs=-1, metavar="[SERVER]...", type=click.Choice(machine.NAMES))
_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for data, logs and state, instead of the user's own (HEADRACE_DATA_DIR).",
)


@click.command()
@_names
@_data_dir
@click.pass_obj
def up(load: Callable[[], Settings], names: tuple[str, ...], data_dir: Path | None) -> None:
    """Start servers on this machine and wait until they answer.

    Without names: Kafka and PostgreSQL. Weaviate and the embedded language model are asked for by
    name (kafka, postgres, weaviate, llm).
    A server whose address is configured is looked at, never started. Safe to repeat.
    """
    configured.ensure(
        load(), names or machine.DEFAULT, data_dir=_absolute(data_dir), say=click.echo
    )
    if data_dir is not None:
        click.echo(f"for other commands: export HEADRACE_DATA_DIR={_absolute(data_dir)}")


@click.command()
@_names
@_data_dir
def down(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Stop the servers that `up` started; their data and ports stay."""
    machine.down(names or machine.NAMES, data_dir=_absolute(data_dir), say=click.echo)


@click.command()
@_names
@_data_dir
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def status(
    load: Callable[[], Settings], names: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """What runs, where, and where its log is."""
    settings = load()
    found = []
    for each in machine.status(names or machine.NAMES, data_dir=_absolute(data_dir)):
        if address := configured.address(settings, each.server):
            state = "running" if configured.answers(address) else "not answering"
            shown = configured.shown(address)
            found.append(machine.Status(each.server, state, "configured", address=shown))
        else:
            found.append(each)
    if as_json:
        click.echo(orjson.dumps([asdict(each) for each in found], option=orjson.OPT_INDENT_2))
        return
    for each in found:
        facts = [each.server, each.state, each.version, each.how, each.address]
        if each.pid is not None:
            facts.append(f"pid {each.pid}")
        click.echo("  ".join(fact.ljust(8) for fact in facts if fact).rstrip())
        if each.log:
            click.echo(f"          log {each.log}")
    click.echo(f"data: {_absolute(data_dir) or home.data_dir()}")


@click.group()
def servers() -> None:
    """Kafka, PostgreSQL and Weaviate on this machine."""


for _command in (up, down, status):
    servers.add_command(_command)


def _absolute(folder: Path | None) -> Path | None:
    return folder.expanduser().absolute() if folder else None
