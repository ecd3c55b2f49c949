"""`headrace demo`: the whole way once, on the samples, in a project of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import psycopg
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from headrace import config, home
from headrace.backlog import lag
from headrace.backlog.model import GroupLag
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.servers import configured
from headrace.stores import migrate, postgres
from headrace.stream import clients, topics, topology

PROJECT = "headrace_demo"
STEP_SECONDS = 0.1
_WIDTH = 110  # columns, where nobody's terminal says

FIRST = """
SELECT o.stage, p.name, left(coalesce(r.title, r.text), 32)
FROM outcomes o JOIN records r ON r.id = o.record_id JOIN dim_platform p ON p.id = r.platform_id
WHERE o.outcome = 'ok' ORDER BY o.stored_at LIMIT 1
"""
PLATFORMS = """
SELECT platform, records, engagement::bigint AS engagement, sentiment AS mood,
       positive AS pos, neutral AS neu, negative AS neg, processing_level AS level,
       (SELECT string_agg(entity->>'name', ', ') FROM (
          SELECT entity FROM jsonb_array_elements(top_entities) entity LIMIT 2) top) AS most_named
FROM platform_metrics ORDER BY records DESC, platform
"""
NAMES = """
SELECT m.name, m.type, count(DISTINCT m.record_id) AS records,
       round(avg(p.sentiment_score)::numeric, 2) AS mood
FROM entity_mentions m JOIN posts p ON p.id = m.record_id
GROUP BY m.name, m.type ORDER BY records DESC, m.name LIMIT 8
"""


@click.command()
@click.pass_obj
def demo(load: Callable[..., Settings]) -> int:
    """Show the whole way once, on the samples.

    Starts the servers where none are configured, publishes the samples, runs the groups until
    nothing waits, and asks a first question. What an earlier demo left is removed first.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    folder = home.data_dir() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    settings = load({"log.level": "warning"}).model_copy(update={"project": PROJECT})
    publishing = settings.publishing.model_copy(update={"rejects_dir": folder / "rejects"})
    settings = settings.model_copy(update={"publishing": publishing})

    _head(console, "Servers", "Kafka and PostgreSQL, on this machine unless others are configured")
    configured.ensure(settings)
    began = time.monotonic()
    _forget(settings)
    topics.ensure(settings)
    migrate.upgrade(settings)

    _head(console, "Publish", "rows of any file become records, on one topic a platform")
    samples = sorted(path for path in _samples().iterdir() if _is_data(path))
    _call(settings, ["publish", *map(_near, samples)])

    _head(
        console, "Enrich", "every group at its own pace; what waits for it is its lag, in offsets"
    )
    first, all_done = _enrich(settings, console, folder / "run.log", began)

    _head(console, "Ask", "tables and views in PostgreSQL")
    with postgres.connect(settings, readonly=True) as connection:
        _show(console, connection, "platform_metrics: volume and mood by platform", PLATFORMS)
        _show(console, connection, "entity_mentions: what people talk about, and how", NAMES)
    console.print(
        f"\nThe first analysed record was there [bold]{first:.1f} s[/] after the servers "
        f"were up, everything after [bold]{all_done:.1f} s[/]."
    )
    _next(console)
    return 0


def _head(console: Console, name: str, text: str) -> None:
    console.print(f"\n[bold]{name}[/]  [dim]{text}[/]", soft_wrap=True)


def _enrich(settings: Settings, console: Console, log: Path, began: float) -> tuple[float, float]:
    """Run the groups until nothing waits; seconds until the first analysed record could be asked
    for, and until nothing was left."""
    with log.open("wb") as output:
        runner = subprocess.Popen(
            _command(["run", "--mode", "fast", "--until-caught-up"]),
            env=_environment(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            times = _watch(settings, runner, console, began)
        finally:
            if runner.poll() is None:
                runner.terminate()
            status = runner.wait()
    if status != 0:
        raise HeadraceError(f"the groups ended with status {status}; {log} says why")
    return times


def _watch(
    settings: Settings, runner: subprocess.Popen[bytes], console: Console, began: float
) -> tuple[float, float]:
    """Show how lag falls until the runner ends."""
    first: float | None = None
    changed = 0.0
    last: list[int] = []
    quick = [group.short for group in topology.load(settings).mode("fast")]
    with (
        lag.Reader(settings) as reader,
        postgres.connect(settings, autocommit=True) as connection,
        _Bars(console) as bars,
    ):
        while True:
            running = runner.poll() is None
            groups = reader.read(quick, members=False)
            now = time.monotonic() - began
            if first is None and (row := connection.execute(FIRST).fetchone()) is not None:
                first = now
                stage, platform, text = row
                said = f"first analysed record: {stage} of {platform}, “{' '.join(text.split())} …”"
                console.print(f"{now:5.1f} s  {said}", markup=False, soft_wrap=True)
            bars.update(groups)
            waiting = [group.backlog for group in groups]
            if waiting != last:
                changed, last = now, waiting
                line = ", ".join(f"{group.group} {group.backlog:,}" for group in groups)
                if not console.is_terminal:
                    console.print(f"{now:5.1f} s  lag: {line}", soft_wrap=True)
            if not running:
                return changed if first is None else first, changed
            time.sleep(STEP_SECONDS)


class _Bars(Progress):
    """On a terminal, a bar a group: offsets that it has passed of those that are there."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("         {task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[lag]:>6,} waiting"),
            console=console,
            disable=not console.is_terminal,
        )
        self._groups: dict[str, TaskID] = {}

    def update(self, groups: Sequence[GroupLag]) -> None:  # type: ignore[override]
        for group in groups:
            if group.group not in self._groups:
                self._groups[group.group] = self.add_task(group.group, lag=group.backlog)
            there = sum(part.end - part.start for part in group.working)
            super().update(
                self._groups[group.group],
                total=max(there, 1),
                completed=there - group.backlog if there else 1,
                lag=group.backlog,
            )


def _next(console: Console) -> None:
    """Commands to go on with, as they can be typed here."""
    called = Path(sys.argv[0])
    name = "headrace" if shutil.which("headrace") == str(called) else _near(called)
    console.print("\n[bold]Go on[/]")
    lines = {
        f'--project {PROJECT} sql "SELECT * FROM entities"': "ask something else",
        f"--project {PROJECT} coverage": "what is done so far",
        "publish FILE --check": "try a file of your own",
        "down": "stop the servers",
    }
    for words, text in lines.items():
        line = Text(f"  {name} {words}".ljust(6 + len(name) + max(map(len, lines))))
        console.print(line.append(text, style="dim"), soft_wrap=True)


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


def _near(path: Path) -> str:
    """A path as one would type it: relative where it is below the working folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _call(settings: Settings, words: list[str]) -> None:
    status = subprocess.run(_command(words), env=_environment(settings), check=False).returncode
    if status != 0:
        raise HeadraceError(f"`headrace {words[0]}` ended with status {status}, see above")


def _command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "headrace", *words]


def _environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **config.as_environment(settings)}


def _show(console: Console, connection: psycopg.Connection[Any], title: str, query: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query.encode())
        names = [column.name for column in cursor.description or ()]
        rows = cursor.fetchall()
    table = Table(box=box.SIMPLE_HEAD)
    for number, name in enumerate(names):
        figures = any(not isinstance(row[number], str | None) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if figures else "left")
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    name, _, text = title.partition(": ")
    console.print(f" [bold]{name}[/]: {text}")
    console.print(table, end="")
