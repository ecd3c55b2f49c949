"""`headrace search`: words to hits; rebuild and errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, get_args

import click

from headrace.config import Settings
from headrace.search.query import Filters, Hit, Mode, Searcher

_WIDE = 160  # characters of a line that goes to no terminal


class _WordsOrCommand(click.Group):
    """`headrace search WORDS…` beside the commands rebuild and errors."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            args = ["words", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # The options are those of `words`; only --help is the group's own.
        if args and args[0] != "--help" and args[0] not in self.commands:
            args = ["words", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_WordsOrCommand)
def search() -> None:
    """Search the records: `headrace search WORDS…`; options: `headrace search words --help`.

    Words that are the name of a command: `headrace search words errors`.
    """


@search.command()
@click.argument("words", nargs=-1, required=True)
@click.option(
    "--mode", type=click.Choice(get_args(Mode)),
    help="By the words, by their meaning, or both; left out: both where it can be done.",
)  # fmt: skip
@click.option("--platform", "platforms", multiple=True, help="Only this one; may be given again.")
@click.option("--kind", "kinds", multiple=True, help="post, comment, community, persona, …")
@click.option("--sentiment", type=click.Choice(["negative", "neutral", "positive"]))
@click.option("--entity", "entities", multiple=True, help="Records that name it; all of them.")
@click.option("--community", help="By name, however it is spelled.")
@click.option("--author")
@click.option("--language", help="en, …")
@click.option("--since", metavar="WHEN", help="A date, a time, or an age: 2026-01-31, '7 days'.")
@click.option("--until", metavar="WHEN", help="Before this.")
@click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def words(
    load: Callable[[], Settings],
    /,
    words: tuple[str, ...],
    mode: Mode | None,
    limit: int,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Search the records for WORDS."""
    settings = load()
    asked = " ".join(words)
    filters = Filters(**chosen)
    with Searcher(settings) as searcher:
        hits = searcher.search_as_can_be(
            asked, mode, filters, limit, lambda why: click.echo(why, err=True)
        )
    if as_json:
        click.echo(json.dumps([hit.as_dict() for hit in hits], indent=2, ensure_ascii=False))
        return 0
    _show(hits, asked)
    return 0


@search.command()
@click.option("--no-wait", is_flag=True, help="Only begin; a running projector does the rest.")
@click.pass_obj
def rebuild(load: Callable[[], Settings], no_wait: bool) -> int:
    """Make all collections anew while the old ones serve, then turn the aliases over."""
    from headrace.search import collections, marks
    from headrace.stores import migrate, postgres, weaviate
    from headrace.stream import topology as topologies
    from headrace.stream import worker as workers

    settings = load()
    topology = topologies.load(settings)
    migrate.upgrade(settings, topology)
    with (
        weaviate.connect(settings) as client,
        postgres.connect(settings, application="headrace rebuild") as connection,
    ):
        made = collections.begin_rebuild(connection, client, settings)
        total = marks.waiting(connection).rebuild
        connection.commit()
    for collection in made:
        click.echo(f"builds {collection.name} behind {collection.alias}")
    click.echo(f"{total:,} records to project")
    if no_wait:
        return 0
    (projector,) = topology.projectors.values()
    if str(settings.home) not in sys.path:
        sys.path.append(str(settings.home))
    module = import_module(projector.module)

    def ready() -> bool:
        with postgres.connect(settings, readonly=True) as connection:
            row = connection.execute(
                "SELECT NOT EXISTS (SELECT FROM search_collections WHERE state = 'building')"
                " AND NOT EXISTS (SELECT FROM search_dirty WHERE rebuild)"
            ).fetchone()
        return row == (True,)

    code = workers.serve(
        settings,
        projector.short,
        projector.name,
        lambda post: module.build(post, topology, projector),
        leaving=ready,  # whatever else changes meanwhile
    )
    if code == 0 and ready():
        click.echo("the new collections serve")
    return int(code)


@search.command()
@click.option("--retry", is_flag=True, help="Have them projected once more.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def errors(load: Callable[[], Settings], retry: bool, as_json: bool) -> int:
    """The records that Weaviate did not take, and why."""
    from headrace.backlog import database
    from headrace.search import marks
    from headrace.stores import postgres

    settings = load()
    with database.reading(settings) as connection:
        rows = connection.execute(
            "SELECT record_id, collection, reason, at FROM search_errors ORDER BY at LIMIT 1000"
        ).fetchall()
        total = marks.errors(connection)
    if as_json:
        names = ("record", "collection", "reason", "at")
        told = [dict(zip(names, map(str, row), strict=True)) for row in rows]
        click.echo(json.dumps(told, indent=2))
    else:
        for record_id, collection, reason, at in rows:
            click.echo(f"{at:%Y-%m-%d %H:%M}  {_plain(record_id)}  {collection}: {_plain(reason)}")
        click.echo(f"{total:,} records" + (" (not all shown)" if total > len(rows) else ""))
    if retry and rows:
        with postgres.connect(settings) as writing:
            writing.execute(
                "INSERT INTO search_dirty (record_id) SELECT record_id FROM search_errors"
            )
    return 0


def _show(hits: Sequence[Hit], asked: str) -> None:
    from rich.console import Console
    from rich.text import Text

    if not hits:
        click.echo("nothing found")
        return
    console = Console(highlight=False)
    width = console.width if console.is_terminal else _WIDE
    platform = max(len(hit.platform) for hit in hits)
    marked = "|".join(re.escape(word) for word in _terms(asked))
    for hit in hits:
        day = f"{hit.created_at:%Y-%m-%d}" if hit.created_at else "–"
        head = (
            f"{hit.score:6.3f}  {hit.platform.ljust(platform)}  {day.ljust(10)}"
            f"  {(hit.sentiment or '–').ljust(8)}  "
        )
        line = Text(head, style="dim")
        body = Text(excerpt(hit, asked, max(width - len(head), 30)))
        if marked:
            body.highlight_regex(rf"(?i)\b(?:{marked})\w*", "bold yellow")
        line.append_text(body)
        if console.is_terminal:
            console.print(line, overflow="ellipsis", no_wrap=True)
        else:
            click.echo(line.plain)


def _terms(asked: str) -> list[str]:
    return [word for word in re.findall(r"\w+", asked.casefold()) if len(word) > 2]


def excerpt(hit: Hit, asked: str, width: int) -> str:
    """One line of the text, around the first word that was asked for."""
    text = _plain(hit.text or hit.title or "")
    if len(text) <= width:
        return text
    found = [text.casefold().find(term) for term in _terms(asked)]
    first = min((at for at in found if at >= 0), default=0)
    start = max(first - width // 3, 0)
    if start:
        start = text.find(" ", start, first) + 1 or start
    part = text[start : start + width - (2 if start else 1)]
    return f"{'…' if start else ''}{part}{'…' if start + len(part) < len(text) else ''}"


def _plain(text: str) -> str:
    """In one line, without characters that a terminal obeys."""
    flat = " ".join(text.split())
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in flat)
