"""`headrace publish`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stream.signals import Signals
from producers import sources
from producers.formats import FORMATS, ReadOptions


@click.command()
@click.argument("paths", nargs=-1, metavar="PATH…")
@click.option("--platform", help="Whose records these are; else the mapping that fits tells.")
@click.option(
    "--kind",
    type=click.Choice(["posts", "communities"]),
    default="posts",
    show_default=True,
    help="One record a row, or one a community of all files together.",
)
@click.option("--with-posts", is_flag=True, help="Publish the posts of communities as well.")
@click.option("--mapping", help="Name of a mapping in the platform's YAML, instead of a choice.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows of each file.")
@click.option("--again", is_flag=True, help="Publish what was published already.")
@click.option(
    "--max-rejects", type=click.IntRange(min=0), help="A file with more rejected rows stops."
)
@click.option("--strict", is_flag=True, help="A file stops at its first rejected row.")
@click.option("--rejects", is_flag=True, help="PATHs are rejects files: try their rows again.")
@click.option("--check", is_flag=True, help="Show what would be published, and publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object at the end.")
@click.option("--format", "format_", type=click.Choice(FORMATS), help="Instead of detection.")
@click.option("--encoding", help="Such as utf-8, cp1252 or utf-16, instead of detection.")
@click.option("--delimiter", help='One character; "tab" for a tab.')
@click.option("--header", type=click.IntRange(min=1), help="The line that names the columns.")
@click.option("--no-header", is_flag=True, help="No line does.")
@click.option(
    "--skip-lines", type=click.IntRange(min=0), help="Lines above the header: 1 is --header 2."
)
@click.option("--columns", help="Names of the columns, with commas, instead of the header's.")
@click.option("--path", "json_path", help="Where the rows stand in a JSON file: data.items.")
@click.option("--sheet", help="The sheet of an XLSX file, instead of the first.")
@click.pass_obj
def publish(
    load: Callable[[], Settings],
    /,
    paths: tuple[str, ...],
    *,
    platform: str | None,
    kind: str,
    with_posts: bool,
    mapping: str | None,
    limit: int | None,
    again: bool,
    max_rejects: int | None,
    strict: bool,
    rejects: bool,
    check: bool,
    as_json: bool,
    **reading: Any,
) -> int:
    """Publish files as records: files, folders, patterns, or - for standard input.

    CSV, TSV, JSON, JSON lines, Parquet and XLSX, each also .gz and .zst. A publish that was broken
    off goes on when it is started again. Exit status: 0 all is out (rejected rows are in a rejects
    file), 1 some file is not, 2 a mistake in what was asked, 130 interrupted.
    """
    if not paths:
        raise click.UsageError("name at least one file, folder or pattern, or - for standard input")
    if with_posts and kind != "communities":
        raise click.UsageError("--with-posts goes with --kind communities")
    if strict and max_rejects is not None:
        raise click.UsageError("--strict is --max-rejects 0: give one of them")
    if rejects and kind != "posts":
        raise click.UsageError("--rejects tries posts again")
    options = _options(**reading)
    settings = load()
    files = sources.expand(paths)
    if check:
        return _check(settings, files, platform, mapping, options, limit, as_json)

    from producers import display, receipts
    from producers.publish import Publish
    from producers.transfer import Order

    order = Order(
        run=receipts.new_run(),
        kind=kind,
        platform=platform,
        mapping=mapping,
        limit=limit,
        again=again,
        max_rejects=0 if strict else max_rejects,
        with_posts=with_posts,
        rejects=rejects,
        options=options,
    )
    with Signals() as signals:
        run = Publish(settings, order, files, display.choose(as_json), signals.stopping)
        receipt = run.go()
        if signals.stopping():
            return 130
    return 1 if receipt.state == "failed" else 0


def _options(
    format_: Any,
    encoding: str | None,
    delimiter: str | None,
    header: int | None,
    no_header: bool,
    skip_lines: int | None,
    columns: str | None,
    json_path: str | None,
    sheet: str | None,
) -> ReadOptions:
    if sum((header is not None, no_header, skip_lines is not None)) > 1:
        raise click.UsageError("give one of --header, --no-header and --skip-lines")
    line: int | bool | None = False if no_header else header
    if skip_lines is not None:
        line = skip_lines + 1
    return ReadOptions(
        format=format_,
        encoding=encoding,
        delimiter="\t" if delimiter in ("tab", "\\t") else delimiter,
        header=line,
        columns=tuple(name.strip() for name in columns.split(",")) if columns else None,
        json_path=json_path,
        sheet=sheet,
    )


def _check(
    settings: Settings,
    files: list[str],
    platform: str | None,
    mapping: str | None,
    options: ReadOptions,
    limit: int | None,
    as_json: bool,
) -> int:
    """Map files and show five records of each; no server is asked."""
    import orjson

    from headrace.stream import schemas
    from producers.check import check
    from producers.formats import open_rows
    from producers.inputs import mappings_of, read_options
    from producers.mapping import map_rows

    mappings = mappings_of(settings, platform, mapping)
    options = read_options(settings, options, mappings)
    validator = schemas.validator(settings, "raw_post.v1")
    reports = []
    failed = False
    for path in files:
        try:
            with open_rows(path, options) as rows:
                mapped = map_rows(rows, mappings, mapping=mapping, validator=validator)
                report = check(mapped, limit=limit)
        except HeadraceError as error:
            failed = True
            reports.append({"file": path, "ended": str(error)})
            click.echo(f"headrace: {error}", err=True)
            continue
        failed = failed or report.ended is not None
        reports.append(report.as_dict())
        if not as_json:
            click.echo(f"{report}{os.linesep}")
    if as_json:
        click.echo(orjson.dumps(reports if len(files) > 1 else reports[0]))
    return 1 if failed else 0
