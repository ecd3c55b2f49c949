"""`headrace demo`: the whole way once, on the samples, in a project of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psycopg
from rich.console import Console
from rich.table import Table

from headrace import config
from headrace.backlog import lag
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.servers import configured
from headrace.stores import migrate, postgres
from headrace.stream import clients, topics

PROJECT = "demo"
STEP_SECONDS = 0.5

OVERVIEW = """
SELECT platform, processing_level, records, engagement::bigint AS engagement,
       sentiment, positive, neutral, negative,
       (SELECT string_agg(entity->>'name', ', ') FROM (
          SELECT entity FROM jsonb_array_elements(top_entities) entity LIMIT 3) top) AS most_named
FROM platform_metrics ORDER BY records DESC, platform
"""
NAMED = """
SELECT m.name, m.type, count(DISTINCT m.record_id) AS records,
       round(avg(p.sentiment_score)::numeric, 2) AS sentiment
FROM entity_mentions m JOIN posts p ON p.id = m.record_id
GROUP BY m.name, m.type ORDER BY records DESC, m.name LIMIT 8
"""
READY = "SELECT count(*) FROM outcomes"


@click.command()
@click.pass_obj
def demo(load: Callable[[], Settings]) -> int:
    """Show the whole way once, on the samples.

    Starts the servers where none are configured, publishes the samples, runs the groups until
    nothing waits, and asks a first question. What an earlier demo left is removed first.
    """
    console = Console()
    settings = load().model_copy(update={"project": PROJECT})
    console.rule("Servers", align="left")
    configured.ensure(settings)
    began = time.monotonic()
    _forget(settings)
    topics.ensure(settings)
    migrate.upgrade(settings)

    samples = sorted(path for path in _samples().iterdir() if _is_data(path))
    console.rule("Publish", align="left")
    _call(settings, ["publish", "--again", *map(str, samples)])

    console.rule("Enrich: every group on its own, its backlog is its lag", align="left")
    runner = _start(settings, ["run", "--mode", "fast", "--until-caught-up"])
    try:
        first = _watch(settings, runner, console, began)
    finally:
        if runner.poll() is None:
            runner.terminate()
        status = runner.wait()
    if status != 0:
        said = runner.stderr.read().decode(errors="replace") if runner.stderr else ""
        raise HeadraceError(f"the groups ended with status {status}: {said.strip()[-800:]}")

    console.rule("Ask", align="left")
    with postgres.connect(settings, readonly=True) as connection:
        _show(console, connection, "Platforms (view platform_metrics)", OVERVIEW)
        _show(console, connection, "What people talk about, and how", NAMED)
    total = time.monotonic() - began
    console.print(
        f"First analysed record {first:.1f} s after the servers were up, everything {total:.1f} s."
    )
    console.print(
        "Go on with: headrace --project demo sql 'SELECT * FROM posts LIMIT 5', "
        "headrace --project demo coverage, headrace publish FILE; headrace down stops the servers.",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _watch(
    settings: Settings, runner: subprocess.Popen[bytes], console: Console, began: float
) -> float:
    """Print each change of the groups' lag until the runner ends; seconds to the first record."""
    first: float | None = None
    last = ""
    with lag.Reader(settings) as reader, postgres.connect(settings, autocommit=True) as connection:
        while True:
            running = runner.poll() is None
            if first is None and _count(connection):
                first = time.monotonic() - began
                console.print(f"{first:5.1f} s  first analysed record can be queried")
            groups = reader.read(members=False)
            line = "   ".join(f"{group.group} {group.backlog:,}" for group in groups)
            if line != last:
                console.print(f"{time.monotonic() - began:5.1f} s  lag: {line}", highlight=False)
                last = line
            if not running:
                return first if first is not None else time.monotonic() - began
            time.sleep(STEP_SECONDS)


def _count(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(READY).fetchone()
    return int(row[0]) if row else 0


def _forget(settings: Settings) -> None:
    """Remove the topics and tables of an earlier demo."""
    with clients.admin(settings) as admin:
        admin.delete([name for name in admin.topics() if name.startswith(f"{settings.project}.")])
    with postgres.connect(settings, autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{settings.project}" CASCADE')


def _samples() -> Path:
    found = config.shipped(Path("samples"))
    if found is None:
        raise HeadraceError("the samples are not there; they come with a clone and with the wheel")
    return found


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix != ".md"


def _call(settings: Settings, words: list[str]) -> None:
    status = subprocess.run(_command(words), env=_environment(settings), check=False).returncode
    if status != 0:
        raise HeadraceError(f"`headrace {words[0]}` ended with status {status}, see above")


def _start(settings: Settings, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command(words),
        env=_environment(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "headrace", *words]


def _environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **config.as_environment(settings)}


def _show(console: Console, connection: psycopg.Connection[Any], title: str, query: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query.encode())
        table = Table(title=title, title_justify="left")
        for column in cursor.description or ():
            table.add_column(column.name.replace("_", " "))
        for row in cursor:
            table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)
