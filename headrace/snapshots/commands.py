"""`headrace snapshot …` and `headrace reset`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import click
import orjson

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.snapshots import checking, creation, folder, resetting, restoring

Load = Callable[[], Settings]

_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def snapshot() -> None:
    """Snapshots of the database with its offsets: create, list, verify, restore, delete."""


@snapshot.command()
@click.argument("name", required=False)
@click.pass_obj
def create(load: Load, name: str | None) -> None:
    """Copy the project's rows into a folder of files; everything goes on meanwhile.

    Without NAME it is called after the time.
    """
    settings = load()
    made = creation.create(settings, name, click.echo)
    click.echo(
        f"snapshot {made.name}: {made.rows:,} rows, {_size(made.size)}, in"
        f" {folder.root(settings) / made.name}"
    )


@snapshot.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_(load: Load, as_json: bool) -> None:
    """The snapshots that there are, and what was left half-made."""
    settings = load()
    found = folder.listed(settings)
    if as_json:
        rows = [
            {
                "name": each.name,
                "created_at": each.manifest.created_at if each.manifest else None,
                "revision": each.manifest.revision if each.manifest else None,
                "rows": each.manifest.rows if each.manifest else None,
                "bytes": each.manifest.size if each.manifest else None,
                "fault": each.fault or None,
            }
            for each in found
        ]
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    if not found:
        click.echo(f"no snapshots in {folder.root(settings)}")
        return
    width = max(len(each.name) for each in found)
    for each in found:
        if each.manifest is None:
            click.echo(f"{each.name.ljust(width)}  {each.fault}")
            continue
        made = each.manifest
        records = made.files["records"].rows if "records" in made.files else 0
        click.echo(
            f"{each.name.ljust(width)}  {made.created_at}  {records:>11,} records"
            f"  {_size(made.size):>10}  schema {made.revision}"
        )


@snapshot.command()
@click.argument("name")
@click.pass_obj
def verify(load: Load, name: str) -> int:
    """Is it whole, and do the topics still reach back to it? Exit status 1 where not."""
    faults = checking.verify(load(), name)
    for fault in faults:
        click.echo(fault)
    click.echo(f"snapshot {name} " + ("cannot be restored" if faults else "can be restored"))
    return 1 if faults else 0


@snapshot.command()
@click.argument("name")
@_yes
@click.pass_obj
def restore(load: Load, name: str, yes: bool) -> None:
    """Make the stores what they were; what came later is caught up from the topics afterwards.

    The store groups must not run. Readers see the old rows until all the new ones are there.
    """
    settings = load()
    manifest = folder.read(folder.find(settings, name))
    _confirm(
        yes,
        f"The rows of project {settings.project} are replaced by those of {manifest.created_at}"
        f" ({manifest.rows:,} rows). Go on?",
    )
    done = restoring.restore(settings, name, click.echo)
    click.echo(
        f"restored {done.rows:,} rows; {done.behind:,} messages came later: `headrace run` catches"
        " up with them"
    )


@snapshot.command()
@click.argument("name")
@_yes
@click.pass_obj
def delete(load: Load, name: str, yes: bool) -> None:
    """Delete a snapshot, or what a killed command left of one (NAME.partial)."""
    settings = load()
    _confirm(yes, f"Delete snapshot {name} of project {settings.project}?")
    folder.delete(settings, name)
    click.echo(f"deleted {name}")


@click.command()
@click.option("--stage", "stages", multiple=True, required=True, help="May be given again.")
@click.option(
    "--downstream/--no-downstream",
    default=True,
    show_default=True,
    help="The stages that read what it writes, too.",
)
@click.option("--dry-run", is_flag=True, help="Only say what it would do.")
@click.option("--no-snapshot", is_flag=True, help="Make no snapshot first.")
@_yes
@click.pass_obj
def reset(
    load: Load,
    stages: tuple[str, ...],
    downstream: bool,
    dry_run: bool,
    no_snapshot: bool,
    yes: bool,
) -> None:
    """A clean run of a stage: remove what came of it, and let it begin again from the start.

    Its workers must not run. Killed at any time, do it again.
    """
    settings = load()
    planned = resetting.plan(settings, stages, downstream=downstream)
    names = ", ".join(stage.short for stage in planned.stages)
    rows = ", ".join(f"{count:,} {name}" for name, count in planned.counts.items() if count)
    click.echo(f"reset of {names}: removes {rows or 'no rows'};")
    click.echo(f"  {planned.again:,} messages are worked on again")
    if dry_run:
        return
    resetting.at_rest(settings, planned)
    _confirm(yes, "Go on?")
    if not no_snapshot:
        name = f"before-reset-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        made = creation.create(settings, name)
        click.echo(f"snapshot {made.name}: {made.rows:,} rows, {_size(made.size)}")
    resetting.reset(settings, stages, downstream=downstream, say=click.echo)
    groups = " ".join(stage.short for stage in planned.stages)
    click.echo(f"done; `headrace run {groups}` works on everything again")


def _confirm(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise HeadraceError("nobody is there to be asked: add --yes")
    click.confirm(question, abort=True)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
