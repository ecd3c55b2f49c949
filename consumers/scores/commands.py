"""`headrace scores` and `headrace top`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.redo.commands import Estimate, carry_out, known_platforms, order_options, paid

if TYPE_CHECKING:
    from headrace.redo import flows

Loader = Callable[[], Settings]

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_platform = click.option(
    "--platform", "platforms", multiple=True, help="Only this one; repeatable."
)


@click.group()
def scores() -> None:
    """Scores by dimension, and the weights that they are added up with."""


# One pass: the name '' counts the records themselves.
_COUNTS = """
SELECT names.name, count(*)
FROM scores s CROSS JOIN LATERAL (SELECT jsonb_object_keys(s.scores) UNION ALL SELECT '')
  AS names (name)
GROUP BY 1
"""


@scores.command("list")
@_json
@click.pass_obj
def list_(load: Loader, as_json: bool) -> None:
    """The dimensions: weights in force, and how many records have a score."""
    from headrace.backlog import database
    from headrace.stores import scoring

    settings = load()
    with database.reading(settings) as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        weighed = scoring.in_force(connection)
        counts = {str(name): int(count) for name, count in connection.execute(_COUNTS)}
        pending = scoring.differs(connection, settings)
    total = counts.pop("", 0)
    wanted = settings.scores.dimensions
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "weight": weighed[name].weight if name in weighed else None,
            "description": wanted[name].description if name in wanted else None,
            "records": counts.get(name, 0),
            "asked": name in wanted,
        }
        for name in dict.fromkeys([*weighed, *wanted, *sorted(counts)])
    ]
    if as_json:
        click.echo(json.dumps({"records": total, "dimensions": found, "pending": pending}))
        return
    width = max(len(str(one["name"])) for one in found)
    for one in found:
        weight = "no weight" if one["weight"] is None else f"weight {one['weight']:g}"
        share = f"{one['records']:,} of {total:,}"
        said = one["description"] if one["asked"] else "(not in scores.dimensions)"
        click.echo(f"{one['name']:<{width}}  {weight:<12}  {share:>19}  {said}")
    if pending:
        click.echo("the settings say something else: `headrace scores recompute` puts it in force")
    for one in found:
        if one["asked"] and one["records"] < total:
            click.echo(
                f"{total - one['records']:,} records lack {one['name']}:"
                f" `headrace scores backfill --dimension {one['name']}`"
            )


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
        connection.execute("SET statement_timeout = 0")
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
@order_options
@click.pass_obj
def backfill(
    load: Loader,
    /,
    dimension: str,
    platforms: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Ask for one dimension where it is missing; the others stay as they are."""
    from headrace.backlog import reach
    from headrace.redo import display, flows
    from headrace.stream import topology as topologies

    settings = load()
    if dimension not in settings.scores.dimensions:
        known = ", ".join(settings.scores.dimensions)
        raise HeadraceError(
            f"dimension {dimension} is not in scores.dimensions of the settings; there are: {known}"
        )
    topology = topologies.load(settings)
    known_platforms(topology.platforms, platforms)
    group = flows.stage_of(topology, "scores")
    reach.kafka(settings)
    tell = display.chosen(as_json)
    asked = flows.Backfill(settings, topology, group, tell, dimension, platforms, dry_run=dry_run)
    with asked as one:
        return carry_out(one, _of_backfill, as_json=as_json, **how)


def _of_backfill(one: flows.Order, records: int) -> Estimate:
    (dimension,) = one.parts
    lack = f"{records:,} records lack" if records else "no record lacks"
    return paid(one, records, f"{one.group.short}: {lack} {dimension}")


# Along the index, and not by view posts: no more is read than is asked for.
_TOP = """
SELECT r.id, p.name AS platform, c.name AS community, a.name AS author, r.created_at,
       s.weighted AS score, s.scores, r.text, r.url
FROM scores s
JOIN records r ON r.id = s.record_id AND NOT r.deleted
JOIN dim_platform p ON p.id = r.platform_id
LEFT JOIN dim_author a ON a.id = r.author_id
LEFT JOIN dim_community c ON c.id = r.community_id
WHERE s.weighted IS NOT NULL AND (%(platforms)s::text[] = '{}' OR p.name = ANY(%(platforms)s))
ORDER BY s.weighted DESC NULLS LAST, s.record_id LIMIT %(limit)s
"""


@click.command()
@click.option("--by", type=click.Choice(["score"]), default="score", show_default=True)
@_platform
@click.option("--limit", type=click.IntRange(min=1, max=1000), default=10, show_default=True)
@_json
@click.pass_obj
def top(load: Loader, by: str, platforms: tuple[str, ...], limit: int, as_json: bool) -> None:
    """The posts with the highest weighted score."""
    from psycopg.rows import dict_row

    from headrace.backlog import database
    from headrace.stream import topology as topologies

    settings = load()
    asked = settings.scores.dimensions
    known_platforms(topologies.load(settings).platforms, platforms)
    with database.reading(settings) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        wanted = {"platforms": list(platforms), "limit": limit}
        rows = cursor.execute(_TOP, wanted).fetchall()
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False, default=str))
        return
    if not rows:
        of = f"of {', '.join(platforms)} " if platforms else ""
        click.echo(f"nothing {of}has a score yet: `headrace run scores`, with a model (llm.*)")
        return
    for place, row in enumerate(rows, 1):
        where = " · ".join(filter(None, (row["platform"], row["community"], row["author"])))
        scored = row["scores"]
        order = [name for name in dict.fromkeys([*asked, *scored]) if name in scored]
        marks = ", ".join(f"{name} {scored[name]:g}" for name in order)
        click.echo(f"{place:>3}. {row['score']:.2f}  {where}  [{marks}]")
        click.echo(f"     {_line(row['text'] or '')}")
        click.echo(f"     {row['id']}")


def _line(text: str, most: int = 160) -> str:
    shown = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
