"""`headrace forget`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from headrace.config import Settings
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.forget.orders import Order, Selection

LATE = 3  # exit status: something is still to come
_REJECTS = "producers.forgetting"  # by name: what knows how rows become records
_WAIT_SECONDS = 30.0


@click.command()
@click.argument("records", nargs=-1, metavar="[RECORD…]")
@click.option("--author", help="All of this author; with --platform there only.")
@click.option("--community", help="All of this community; with --platform there only.")
@click.option("--platform", help="All of this platform, or only what stands there.")
@click.option("--deleted", is_flag=True, help="All traces of what published files have deleted.")
@click.option("--dry-run", is_flag=True, help="Say what there is of it, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--purge", is_flag=True, help="Take the bytes out of Kafka too.")
@click.option("--resume", is_flag=True, help="Go on with what is not done yet.")
@click.option("--status", metavar="ORDER", help="How far an order has come.")
@click.option("--list", "list_", is_flag=True, help="All orders.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=_WAIT_SECONDS,
    show_default=True,
    help="Seconds in which nothing moves until the rest is left for later.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def forget(
    load: Callable[[], Settings],
    /,
    records: tuple[str, ...],
    *,
    author: str | None,
    community: str | None,
    platform: str | None,
    deleted: bool,
    dry_run: bool,
    yes: bool,
    purge: bool,
    resume: bool,
    status: str | None,
    list_: bool,
    wait: float,
    as_json: bool,
) -> int:
    """Take records out of everything: by id (- reads ids from standard input, one a line), or all
    of an author, a community or a platform.

    Deletions are published and go the way of every record; where content is left behind on it, in
    tables, search, rejects files and snapshots, it is taken out as well. What is not done yet,
    since a group does not run, is done by `forget --resume` later. --purge also takes the bytes out
    of Kafka's files. Exit status: 0 all is done, 3 something is still to come.
    """
    from headrace.forget.orders import Selection

    if "-" in records:
        read = [line.strip() for line in sys.stdin if line.strip()]
        records = (*(record for record in records if record != "-"), *read)
    selection = Selection(tuple(records), author, community, platform, deleted)
    named = sum((bool(records), author is not None, community is not None, deleted))
    if named > 1 or (records and platform):
        raise click.UsageError("name records, --author, --community or --deleted: one of them")
    chosen = bool(named or platform)
    if sum((chosen, resume, status is not None, list_)) > 1:
        raise click.UsageError("--resume, --status and --list go alone")
    if dry_run and not chosen:
        raise click.UsageError("--dry-run is for what is to be forgotten: name it")
    if deleted and platform:
        raise click.UsageError("--deleted is of all platforms")
    if not (chosen or resume or purge or status or list_):
        raise click.UsageError("say what is to be forgotten, or --resume, --status or --list")
    settings = load()
    if status or list_:
        return _show(settings, status, as_json)

    from headrace.forget.work import Forgetting
    from headrace.stream.signals import Signals

    rejects = import_module(_REJECTS).take_out
    with Forgetting(settings, rejects) as work:
        if chosen:
            if not (yes or dry_run or as_json or sys.stdin.isatty()):
                raise HeadraceError("nobody is there to be asked: add --yes, or --dry-run")
            if dry_run or not (yes or as_json):
                found = work.look(selection)
                if not as_json:
                    _say_found(selection, found)
                if dry_run:
                    if as_json:
                        _say_json({"selection": selection.audit(), "found": found})
                    return 0
                click.confirm("Forget all of this? It cannot be undone", abort=True)
            elif not yes:
                raise HeadraceError("--json asks nobody: give --yes too, or --dry-run")
            todo = [work.make(selection, purge=purge)]
        else:
            todo = work.unfinished(purge=purge)
        with Signals() as signals:
            for order in todo:
                work.go_on(order, seconds=wait, stopping=signals.stopping)
                if not as_json:
                    _say(order)
                if signals.stopping():
                    return 130
        if not work.unfinished():
            work.set_back()
    if as_json:
        said = [order.as_dict() for order in todo]
        _say_json(said[0] if chosen else said)
    elif not todo:
        click.echo("nothing is left to do")
    return LATE if any(order.waits for order in todo) else 0


def _show(settings: Settings, number: str | None, as_json: bool) -> int:
    from headrace.backlog import database
    from headrace.forget import orders

    with database.reading(settings) as connection:
        found = orders.read(connection, number)
    if as_json:
        said = [order.as_dict() for order in found]
        _say_json(said[0] if number else said)
        return 0
    for order in found:
        _say(order)
    if not found:
        click.echo("nothing was forgotten yet")
    return 0


def _say_found(selection: Selection, found: Mapping[str, int]) -> None:
    click.echo(f"found ({selection.kind}): {_counts(found)}")


def _say(order: Order) -> None:
    said = {
        "open": "is on its way",
        "forgotten": "is done" if not order.purge else "is done but for the purge",
        "purged": "is done and purged",
    }[order.state]
    names = [str(value)[:12] for value in order.selection.values()]
    click.echo(f"order {order.id} ({' '.join(names)}) {said}: {_counts(order.counts)}")
    for reason in order.waits:
        click.echo(f"  waits: {reason}")
    if order.waits:
        click.echo("  `headrace forget --resume` goes on with it")
    elif order.state == "open":
        click.echo(f"  `headrace forget --resume` tells what it waits for (run {order.id})")


def _counts(counts: Mapping[str, int]) -> str:
    said = [f"{number:,} {place.replace('_', ' ')}" for place, number in counts.items() if number]
    return ", ".join(said) or "nothing"


def _say_json(value: Sequence[Any] | Mapping[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))
