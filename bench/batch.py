"""`python -m bench.batch DATA`: real files all-or-nothing in one process, beside Headrace.

Both sides read the same files with the same mapping and run the same stages. All-or-nothing reads
and maps everything, runs one stage after the other in memory and writes at the end in one
transaction; Headrace publishes while its groups run. Servers are up before either begins, and the
start of every process counts. Both are watched by the same queries.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import orjson
import psycopg
from rich.console import Console
from rich.table import Table

from bench.harness import Figure
from bench.real import Expected, by_platform, expect, mapped, quick_stages
from bench.rig import CLONE, Rig, environment, rig
from headrace import config
from headrace.config import Settings
from headrace.stores import postgres
from headrace.stores.copying import NULL, copy, escaped
from headrace.stream.stage import Context, Outcome, Record
from producers.mapping import Mapped

FIRST, ENOUGH, ALL = "first queryable record", "all with text and entities", "everything"
LONGEST = 600.0  # seconds
_POLL = 0.1  # seconds between queries

# As plain as a batch script's tables are; keys, since they are to be queried.
TABLES = """
CREATE TABLE plain_records (
  id text PRIMARY KEY, platform text, kind text, title text, text text, author text, community text,
  url text, created_at timestamptz, metrics jsonb, value jsonb);
CREATE TABLE plain_outcomes (
  record_id text, stage text, outcome text, reason text, result jsonb,
  PRIMARY KEY (record_id, stage));
CREATE TABLE plain_mentions (
  record_id text, "start" integer, "end" integer, text text, name text, type text, confidence real);
CREATE INDEX ON plain_mentions (record_id);
"""
RECORD = ("id", "platform", "kind", "title", "text", "author", "community", "url", "created_at")
MENTION = ("start", "end", "text", "name", "type", "confidence")


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
@click.option("--alone", is_flag=True, hidden=True)
def main(data: Path, rounds: int, alone: bool) -> None:
    """Time to the first queryable record, to all with text and entities, to everything."""
    if alone:
        all_or_nothing(config.load(), data)
        return
    ours = {what: Figure(f"headrace: {what}", "s") for what in (FIRST, ENOUGH, ALL)}
    theirs = {what: Figure(f"all-or-nothing: {what}", "s") for what in ours}
    with rig() as on:
        with on.project() as settings:
            expected = expect(settings, by_platform(data))
        for number in range(rounds):
            for name, figures, measure in (
                ("all-or-nothing", theirs, _alone),
                ("headrace", ours, _headrace),
            ):
                times = measure(on, data, expected)
                for what, seconds in times.items():
                    figures[what].readings.append(seconds)
                told = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in times.items())
                print(f"round {number + 1}: {name}: {told}", file=sys.stderr, flush=True)
    _print(len(expected.revisions), ours, theirs)


def _print(records: int, ours: Mapping[str, Figure], theirs: Mapping[str, Figure]) -> None:
    table = Table(title=f"{records:,} records, seconds to", title_justify="left")
    table.add_column("")
    for name in ("Headrace", "all-or-nothing", "ratio"):
        table.add_column(name, justify="right")
    for what, mine in ours.items():
        other = theirs[what]
        table.add_row(what, _shown(mine), _shown(other), f"{other.median / mine.median:.1f}")
    Console().print(table)


def _shown(figure: Figure) -> str:
    low, high = min(figure.readings), max(figure.readings)
    return f"{figure.median:.1f} ({low:.1f} to {high:.1f})"


# -- Headrace


def _headrace(on: Rig, data: Path, expected: Expected) -> dict[str, float]:
    files = [str(file) for files in by_platform(data).values() for file in files]
    with on.project() as settings:
        groups = ["run", "--mode", "fast"]
        publish = ["publish", "--json", *files]
        return _watched(settings, [groups, publish], _stands(settings, expected))


Found = Mapping[str, bool]
Look = Callable[[psycopg.Connection[Any]], Found]


def _stands(settings: Settings, expected: Expected) -> Look:
    """What of our tables stands. Counting costs more than the store's own work, so the store's
    offsets are looked at first: who has read fewer outcomes than there are records is not done."""
    published, records = expected.revisions.total(), len(expected.revisions)
    topics = {group.short: group.outputs[0].name for group in quick_stages(settings)}
    done: set[str] = set()

    def look(connection: psycopg.Connection[Any]) -> Found:
        if not _one(connection, "SELECT EXISTS (SELECT FROM records)"):
            return {}
        query = "SELECT topic, sum(next) FROM offsets GROUP BY 1"
        read = dict(connection.execute(query).fetchall())
        for stage, topic in topics.items():
            if stage not in done and read.get(topic, 0) >= published:
                query = "SELECT count(*) FROM stage_status WHERE stage = %s AND status <> 'pending'"
                if _one(connection, query, stage) == records:
                    done.add(stage)
        return {FIRST: True, ENOUGH: {"text", "entities"} <= done, ALL: topics.keys() <= done}

    return look


# -- all-or-nothing


def _alone(on: Rig, data: Path, expected: Expected) -> dict[str, float]:
    with on.project() as settings:
        with postgres.connect(settings, autocommit=True) as connection:
            connection.execute(TABLES.encode())

        def look(connection: psycopg.Connection[Any]) -> Found:
            there = _one(connection, "SELECT EXISTS (SELECT FROM plain_records)")
            return dict.fromkeys((FIRST, ENOUGH, ALL), there)  # one transaction, so all of it

        times = _watched(settings, [None], look, data)
        with postgres.connect(settings, readonly=True) as connection:
            if _one(connection, "SELECT count(*) FROM plain_records") != len(expected.revisions):
                raise RuntimeError("not every record was written all-or-nothing")
        return times


def all_or_nothing(settings: Settings, data: Path) -> None:
    """Reads, maps, runs the stages and writes, each to its end before the next."""
    newest: dict[str, Mapped] = {}
    for _, _, item in mapped(settings, by_platform(data)):
        if isinstance(item, Mapped):
            newest[item.id] = item
    records = [
        Record(item.id, item.record["kind"], item.record["platform"], item.record)
        for item in newest.values()
    ]
    outcomes: dict[str, list[Outcome]] = {}
    for group in quick_stages(settings):
        process = import_module(group.module).build(Context(settings, group.short))
        size = group.batch.records
        outcomes[group.short] = [
            outcome
            for start in range(0, len(records), size)
            for outcome in process(records[start : start + size])
        ]
    with postgres.connect(settings) as connection:
        copy(connection, "plain_records", (*RECORD, "metrics", "value"), _records(newest))
        columns = ("record_id", "stage", "outcome", "reason", "result")
        copy(connection, "plain_outcomes", columns, _outcomes(records, outcomes))
        mentions = _mentions(records, outcomes["entities"])
        copy(connection, "plain_mentions", ("record_id", *MENTION), mentions)


def _records(newest: Mapping[str, Mapped]) -> Iterator[str]:
    for item in newest.values():
        fields = [escaped(item.record.get(name)) for name in RECORD]
        fields += [_json(item.record.get("metrics")), escaped(item.value.decode())]
        yield "\t".join(fields)


def _outcomes(records: list[Record], outcomes: Mapping[str, list[Outcome]]) -> Iterator[str]:
    for stage, answers in outcomes.items():
        for record, outcome in zip(records, answers, strict=True):
            fields = (record.id, stage, outcome.kind, outcome.reason)
            yield "\t".join([*map(escaped, fields), _json(outcome.result)])


def _mentions(records: list[Record], answers: list[Outcome]) -> Iterator[str]:
    for record, outcome in zip(records, answers, strict=True):
        for mention in (outcome.result or {}).get("entities", ()):
            fields = (str(mention[name]) for name in MENTION)
            yield "\t".join([escaped(record.id), *map(escaped, fields)])


def _json(value: Any) -> str:
    return NULL if value is None else escaped(orjson.dumps(value).decode())


# -- both


def _watched(
    settings: Settings, commands: list[list[str] | None], look: Look, data: Path | None = None
) -> dict[str, float]:
    """Start all commands at once (None: this module, alone) and look until everything stands."""
    times: dict[str, float] = {}
    processes: list[subprocess.Popen[bytes]] = []
    watcher = postgres.connect(settings, autocommit=True)
    with watcher as connection, tempfile.TemporaryFile() as said:
        began = time.monotonic()
        try:
            for words in commands:
                alone = ["bench.batch", str(data), "--alone"]
                module = alone if words is None else ["headrace", *words]
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *module],
                        env=environment(settings),
                        cwd=CLONE,
                        stdout=subprocess.DEVNULL,
                        stderr=said,
                        process_group=0,
                    )
                )
            while ALL not in times:
                found = look(connection)
                now = time.monotonic() - began
                for what, there in found.items():
                    if there:
                        times.setdefault(what, now)
                failed = [process for process in processes if process.poll()]
                if failed or now > LONGEST:
                    said.seek(0)
                    told = said.read().decode(errors="replace")[-2000:]
                    raise RuntimeError(f"not everything came: {[p.args for p in failed]}\n{told}")
                time.sleep(_POLL)
        finally:
            _end(processes)
    return times


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def _one(connection: psycopg.Connection[Any], query: str, *values: str) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


if __name__ == "__main__":
    main()
