"""`headrace scores` and `headrace top`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click

from headrace.config import Settings
from headrace.errors import HeadraceError

Loader = Callable[[], Settings]

LATE = 3  # exit status of a wait that timed out

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_platform = click.option(
    "--platform", "platforms", multiple=True, help="Only this one; repeatable."
)


@click.group()
def scores() -> None:
    """Scores by dimension, and the weights that they are added up with."""


@scores.command("list")
@_json
@click.pass_obj
def list_(load: Loader, as_json: bool) -> None:
    """The dimensions: weights in force, and how many records have a score."""
    from headrace.backlog import database
    from headrace.stores import scoring

    settings = load()
    query = """
        SELECT count(*), coalesce(jsonb_object_agg(name, n), '{}') FROM (
          SELECT d.name, count(*) FILTER (WHERE s.scores ? d.name) AS n
          FROM score_dimensions d LEFT JOIN scores s ON true GROUP BY d.name) counted
    """
    with database.reading(settings) as connection:
        known = scoring.in_force(connection)
        row = connection.execute("SELECT count(*) FROM scores").fetchone()
        total = int(row[0]) if row else 0
        row = connection.execute(query).fetchone()
        counts: dict[str, int] = row[1] if row else {}
        pending = scoring.differs(connection, settings)
    if as_json:
        found = [
            {"name": name, "weight": one.weight, "description": one.description,
             "records": counts.get(name, 0)}
            for name, one in known.items()
        ]  # fmt: skip
        click.echo(json.dumps({"records": total, "dimensions": found, "pending": pending}))
        return
    for name, one in known.items():
        share = f"{counts.get(name, 0):,} of {total:,}"
        click.echo(f"{name:<20} weight {one.weight:<6g} {share:>20}  {one.description}")
    if pending:
        click.echo("the settings say something else: `headrace scores recompute` puts it in force")


@scores.command()
@_json
@click.pass_obj
def recompute(load: Loader, as_json: bool) -> None:
    """Put the settings' weights in force and reckon every score anew. Asks no model."""
    from headrace.redo import display
    from headrace.stores import migrate, postgres, scoring

    settings = load()
    migrate.upgrade(settings)
    with postgres.connect(settings, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM scores").fetchone()
        total = int(row[0]) if row else 0
        with display.chosen(as_json) as tell:
            tell.step("scores: reckoned anew", total)
            done, changed = scoring.recompute(connection, settings, tell.advance)
        weights = {name: one.weight for name, one in scoring.in_force(connection).items()}
    if as_json:
        click.echo(json.dumps({"records": done, "changed": changed, "weights": weights}))
        return
    listed = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    click.echo(f"{changed:,} of {done:,} scores changed; weights in force: {listed}")


@scores.command()
@click.option("--dimension", required=True, help="Ask for this one where it is missing.")
@_platform
@click.option("--limit", type=click.IntRange(min=1), help="At most so many records.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only the estimate.")
@click.option("--wait", is_flag=True, help="Until every outcome is stored.")
@click.option("--timeout", type=float, help="Seconds to wait; then exit 3.")
@_json
@click.pass_obj
def backfill(
    load: Loader,
    dimension: str,
    platforms: tuple[str, ...],
    limit: int | None,
    yes: bool,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Ask for one dimension where it is missing; the others stay as they are."""
    from consumers.scores import estimates
    from headrace.backlog import reach
    from headrace.redo import commands, display, flows
    from headrace.stream import topology as topologies

    settings = load()
    if dimension not in settings.scores.dimensions:
        known = ", ".join(settings.scores.dimensions)
        raise HeadraceError(
            f"dimension {dimension} is not in scores.dimensions of the settings; there are: {known}"
        )
    topology = topologies.load(settings)
    commands.known_platforms(topology.platforms, platforms)
    group = flows.stage_of(topology, "scores")
    reach.kafka(settings)
    tell = display.chosen(as_json)
    asked = flows.Backfill(
        settings, topology, group, dimension, tell, platforms=platforms, dry_run=dry_run
    )
    with asked as one:
        found = min(one.found, limit or one.found)
        about = estimates.text(settings, found, dimension)
        if dry_run or not found:
            commands.say(one.report, as_json, about)
            return 0
        if not yes:
            if as_json or not sys.stdin.isatty():
                raise HeadraceError(f"{about}; say --yes to have it done")
            click.echo(about, err=True)
            click.confirm("Queue them?", abort=True, err=True)
        elif not as_json:
            click.echo(about, err=True)
        with tell:
            report = one.run(limit=limit, wait=wait, timeout=timeout)
    commands.say(report, as_json, commands.queued(report))
    return LATE if report.timed_out else 0


_TOP = """
WITH best AS (
  SELECT s.record_id, s.weighted, s.scores FROM scores s
  JOIN records r ON r.id = s.record_id AND NOT r.deleted
  JOIN dim_platform p ON p.id = r.platform_id
  WHERE s.weighted IS NOT NULL AND (%(platforms)s::text[] = '{}' OR p.name = ANY(%(platforms)s))
  ORDER BY s.weighted DESC, s.record_id LIMIT %(limit)s
)
SELECT p.id, p.platform, p.community, p.author, p.created_at, b.weighted, b.scores, p.text, p.url
FROM best b JOIN posts p ON p.id = b.record_id
ORDER BY b.weighted DESC, b.record_id
"""


@click.command()
@click.option("--by", type=click.Choice(["score"]), default="score", show_default=True)
@_platform
@click.option("--limit", type=click.IntRange(min=1, max=1000), default=10, show_default=True)
@_json
@click.pass_obj
def top(load: Loader, by: str, platforms: tuple[str, ...], limit: int, as_json: bool) -> None:
    """The posts with the highest weighted score."""
    from headrace.backlog import database
    from headrace.redo import commands
    from headrace.stream import topology as topologies

    settings = load()
    commands.known_platforms(topologies.load(settings).platforms, platforms)
    with database.reading(settings) as connection:
        cursor = connection.execute(_TOP, {"platforms": list(platforms), "limit": limit})
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    if not rows:
        click.echo("nothing has a score yet: `headrace run scores`, with a language model (llm.*)")
        return
    for place, row in enumerate(rows, 1):
        where = " · ".join(filter(None, (row["platform"], row["community"], row["author"])))
        marks = ", ".join(f"{name} {value:g}" for name, value in row["scores"].items())
        click.echo(f"{place:>3}. {row['weighted']:.2f}  {where}  [{marks}]")
        click.echo(f"     {_line(row['text'] or '')}")
        click.echo(f"     {row['id']}")


def _line(text: str, most: int = 160) -> str:
    shown = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
