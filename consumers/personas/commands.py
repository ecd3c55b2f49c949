"""`headrace personas`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import psycopg

from consumers.personas import lines, making
from consumers.personas.export import FORMATS
from headrace import words
from headrace.config import Settings
from headrace.errors import HeadraceError

Loader = Callable[[], Settings]

WRONG = 1  # exit status of a check that found something
LATE = 3  # of a wait that timed out

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_ids = click.argument("personas", metavar="PERSONA…", nargs=-1, required=True)


@click.group()
def personas() -> None:
    """Communities as a language model describes them, and their personas.

    A COMMUNITY is said by its id, name or slug (r/technology, technology), a PERSONA by its id
    (persona:reddit:technology:1-07, or without the first word).
    """


@personas.command("list")
@click.argument("community", required=False)
@_json
@click.pass_obj
def list_(load: Loader, community: str | None, as_json: bool) -> None:
    """Communities with their personas; of one COMMUNITY its personas."""
    from consumers.personas import reading
    from headrace.backlog import database

    settings = load()
    with database.reading(settings) as connection:
        if community is not None:
            id = reading.community(connection, community)
            found = list(reading.personas(connection, id))
        else:
            found = reading.communities(connection)
    if as_json:
        _print_json(found)
        return
    if not found:
        click.echo("there is nothing yet")
    for row in found:
        click.echo(_persona_line(row) if community is not None else _community_line(row))


@personas.command()
@click.argument("what", metavar="COMMUNITY|PERSONA")
@_json
@click.pass_obj
def show(load: Loader, what: str, as_json: bool) -> None:
    """One community with its personas, or one persona with its evidence."""
    from consumers.personas import reading
    from headrace.backlog import database

    settings = load()
    with database.reading(settings) as connection:
        found = reading.find(connection, what)
        if found.persona is not None:
            told = _persona(connection, found.persona)
        else:
            told = _community(connection, found.community)
    if as_json:
        _print_json(told)
    elif found.persona is not None:
        _show_persona(told)
    else:
        _show_community(told)


@personas.command()
@click.option("--follow", is_flag=True, help="Go on telling until every community is done.")
@_json
@click.pass_obj
def progress(load: Loader, follow: bool, as_json: bool) -> None:
    """How far it is, what it has cost, how long it will take."""
    from consumers.personas import watching
    from headrace.backlog import database

    settings = load()
    if follow:
        watching.follow(settings, _say, lambda: False)
        return
    with database.reading(settings) as connection:
        found, complete = watching.standing(connection, settings)
        waits = None if complete else watching.waits(connection, settings)
    if as_json:
        told = {**found._asdict(), "complete": complete, "waits": waits}
        told["cost"] = None if found.cost is None else float(found.cost)
        told["left"] = None if found.left is None else found.left.total_seconds()
        _print_json(told)
    else:
        click.echo("\n".join(filter(None, (str(found), waits))))


@personas.command()
@click.argument("community", required=False)
@_json
@click.pass_obj
def check(load: Loader, community: str | None, as_json: bool) -> int:
    """Whether evidence exists, fields are filled, personas differ and are spread over ages and
    occupations. Exit status 1 where something is wrong."""
    from consumers.personas import checking, reading
    from headrace.backlog import database

    settings = load()
    with database.reading(settings) as connection:
        ids = [reading.community(connection, community)] if community else None
        rows = [row for row in reading.communities(connection, ids) if row["set"] is not None]
        if community and not rows:
            raise HeadraceError(f"{community} has no personas yet: `headrace run personas`")
        reports = [checking.read(connection, settings, row) for row in rows]
    if as_json:
        _print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            click.echo(lines.plain(report))
            for finding in report.findings:
                click.echo(f"  ! {lines.plain(finding)}")
        if not reports:
            click.echo("no community has personas yet")
    return WRONG if any(report.findings for report in reports) else 0


@personas.command()
@click.argument("community", required=False)
@click.option("--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="A file; else to here."
)
@click.pass_obj
def export(load: Loader, community: str | None, form: str, output: Path | None) -> None:
    """Personas as JSON lines, CSV or a workbook: all, or those of one COMMUNITY."""
    from consumers.personas import export as files
    from consumers.personas import reading
    from headrace.backlog import database

    settings = load()
    with database.reading(settings) as connection:
        id = reading.community(connection, community) if community else None
        count = files.write(reading.personas(connection, id), form, output, sys.stdout)
    if output is not None:
        click.echo(f"{words.count(count, 'persona')} in {output}", err=True)


@personas.command()
@click.argument("what", metavar="COMMUNITY|PERSONA")
@click.option("--wait", is_flag=True, help="Until the new set is stored.")
@click.option("--timeout", type=float, help="Seconds to wait; then exit 3.")
@click.pass_obj
def regenerate(load: Loader, what: str, wait: bool, timeout: float | None) -> int:
    """Make a community's personas anew, or one of them; the old ones stay as history.

    Of a community those that somebody locked or edited are kept.
    """
    from consumers.personas import changing

    settings = load()
    order = changing.regenerate(settings, _find(settings, what))
    keeps = f" and keeps {words.count(order.kept, 'persona')}" if order.kept else ""
    click.echo(
        f"{order.community}: set {order.set} is ordered; it has"
        f" {words.count(order.anew, 'persona')} made anew{keeps}"
    )
    if not wait:
        return 0
    ends = None if timeout is None else time.monotonic() + timeout
    while not changing.is_made(settings, order):
        if ends is not None and time.monotonic() > ends:
            click.echo(f"set {order.set} is not made yet; nothing is lost", err=True)
            return LATE
        time.sleep(0.5)
    click.echo(f"set {order.set} is there")
    return 0


@personas.command()
@click.argument("persona")
@click.argument("assignments", metavar="FIELD=VALUE…", nargs=-1, required=True)
@click.pass_obj
def edit(load: Loader, persona: str, assignments: tuple[str, ...]) -> None:
    """Change fields of a persona; the change survives whatever the model says later.

    Lists have semicolons between their entries, or are JSON arrays. FIELD= alone takes the change
    of that field back.
    """
    from consumers.personas import changing
    from headrace import decisions

    settings = load()
    (id,) = _find_personas(settings, (persona,))
    value = decisions.change(
        settings, id, "edit", lambda before: changing.edited(assignments, before or {})
    )
    click.echo(f"{id}: edited: {', '.join(value)}" if value else f"{id}: no edit is left")


def _deciding(name: str, action: Any, value: Any, done: str, help: str) -> None:
    @personas.command(name, help=help)
    @_ids
    @click.pass_obj
    def command(load: Loader, personas: tuple[str, ...]) -> None:
        from consumers.personas import changing

        settings = load()
        ids = _find_personas(settings, personas)
        changing.decide(settings, ids, action, value)
        for id in ids:
            click.echo(f"{id}: {done}")


_deciding("lock", "lock", True, "locked", "Keep personas when their community's are made anew.")
_deciding("unlock", "lock", None, "not locked any more", "Take a lock back.")
_deciding("hide", "hide", True, "hidden", "Leave personas out of views and search.")
_deciding("unhide", "hide", None, "shown again", "Show hidden personas again.")


def _find(settings: Settings, what: str) -> Any:
    from consumers.personas import reading
    from headrace.backlog import database

    with database.reading(settings) as connection:
        return reading.find(connection, what)


def _find_personas(settings: Settings, said: tuple[str, ...]) -> list[str]:
    """Ids, all of them or an error: nothing is decided by halves."""
    ids: list[str] = []
    for one in said:
        found = _find(settings, one)
        if found.persona is None:
            raise HeadraceError(f"{one} is a community: name personas by their ids")
        ids.append(found.persona)
    return list(dict.fromkeys(ids))


# -- what is shown


def _community(connection: psycopg.Connection, id: str) -> dict[str, Any]:
    from consumers.personas import reading

    (row,) = reading.communities(connection, [id])
    return {**row, "members": list(reading.personas(connection, id))}


def _persona(connection: psycopg.Connection, id: str) -> dict[str, Any]:
    from consumers.personas import reading

    row = reading.persona(connection, id)
    if row is None:
        raise HeadraceError(f"{id} is hidden: `headrace personas unhide {id}` shows it again")
    return {**row, "posts": reading.posts(connection, list(row["evidence"] or ()))}


def _community_line(row: dict[str, Any]) -> str:
    from consumers.personas import reading

    parts = [words.count(row["personas"], "persona")]
    if row["hidden"]:
        parts.append(f"{row['hidden']} hidden")
    if row["set"] is not None:
        parts.append(f"set {row['set']}")
    if row["changed"]:
        parts.append("changed since")
    if row["ordered"] is not None and row["ordered"] > (row["set"] or 0):
        parts.append(f"set {row['ordered']} is ordered")
    if row["outcome"] in ("drop", "dead", "deferred"):
        parts.append(f"{row['outcome']}: {row['reason']}")
    elif row["outcome"] is None:
        parts.append("not done yet")
    return _columns(reading.title(row), f"({row['id']})", ", ".join(parts))


def _persona_line(row: Mapping[str, Any]) -> str:
    marks = [name for name in ("locked", "edited") if row[name]]
    shown = [f"[{', '.join(marks)}]"] if marks else []
    about = f"{row['name']}, {row['age_range']}, {row['occupation']}"
    return _columns(row["id"].removeprefix("persona:"), about, *shown)


def _columns(*parts: str) -> str:
    return "  ".join(map(lines.plain, parts))


def _show_community(told: dict[str, Any]) -> None:
    click.echo(_community_line(told))
    if told["about"]:
        click.echo(f"About:  {lines.plain(told['about'])}")
        click.echo(f"Tone:   {lines.plain(told['tone'])}")
        click.echo(f"Themes: {lines.plain('; '.join(told['themes'] or ()))}")
    for row in told["members"]:
        click.echo(f"  {_persona_line(row)}")


def _show_persona(told: Mapping[str, Any]) -> None:
    click.echo(_persona_line(told))
    community = lines.name(told["platform"], told["community"] or told["community_id"])
    click.echo(f"of {lines.plain(community)}, set {told['set']}")
    for name in making.FIELDS[3:]:
        label = name.replace("_", " ").capitalize()
        value = told[name]
        if name == "evidence":
            click.echo("Evidence:")
            for id in value or ():
                said = told["posts"].get(id)
                click.echo(f"  {lines.plain(id)}: {lines.plain(said or '(not there)')[:200]}")
        elif isinstance(value, list):
            click.echo(f"{label}:")
            for entry in value:
                click.echo(f"  {lines.plain(entry)}")
        else:
            click.echo(f"{label}: {lines.plain(value or '')}")


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
