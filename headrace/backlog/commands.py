"""The commands lag, progress, wait, coverage, trace and doctor."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from headrace.backlog import reach, report
from headrace.backlog.model import STALL_SECONDS, GroupLag
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable

Loader = Callable[[], Settings]

LATE = 3  # exit status of a wait that timed out
RATES_SECONDS = 1.0  # between the samples of `--rates`


@click.command()
@click.argument("groups", nargs=-1)
@click.option("--watch", is_flag=True, help="Again and again, with rates, until interrupted.")
@click.option("--rates", is_flag=True, help="Take two samples a second apart, for rates and ETA.")
@click.option("--every", default=2.0, show_default=True, help="Seconds between samples (--watch).")
@click.option(
    "--stall-after",
    default=STALL_SECONDS,
    show_default=True,
    help="Seconds without a commit that make a STALL, and the window of the rates.",
)
@click.option("--topics", "detail", flag_value="topics", help="Show every topic.")
@click.option("--partitions", "detail", flag_value="partitions", help="Show every partition.")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --watch a line a sample.")
@click.option("--prometheus", is_flag=True, help="Prometheus text, once.")
@click.option("--serve", type=int, metavar="PORT", help="Serve /metrics on 127.0.0.1.")
@click.pass_obj
def lag(
    load: Loader,
    groups: tuple[str, ...],
    watch: bool,
    rates: bool,
    every: float,
    stall_after: float,
    detail: str | None,
    as_json: bool,
    prometheus: bool,
    serve: int | None,
) -> int:
    """What waits in front of every group (or of the GROUPs named), and until when."""
    from headrace.backlog.lag import Reader

    settings = load()
    reach.kafka(settings)
    with Reader(settings, stall_seconds=stall_after) as reader:
        if serve is not None:
            return _serve(reader, groups, serve)
        if watch:
            return _watch(reader, groups, every, detail or "", as_json)
        found = reader.read(groups, times=True, projectors=True)
        if rates:
            time.sleep(RATES_SECONDS)
            found = reader.rated(found, reader.read(groups, times=True, projectors=True))
        if prometheus:
            from headrace.backlog import exporter

            click.echo(exporter.text(found), nl=False)
        elif as_json:
            _say_json([report.as_dict(group, stall_after) for group in found])
        else:
            cells = report.rows(found, detail=detail or "", project=settings.project)
            report.show(cells, report.columns(detail or ""))
    return 0


@click.command()
@click.argument("run", default="latest")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def progress(load: Loader, run: str, as_json: bool) -> int:
    """How far RUN (the latest, if none is named) has come through every stage and store."""
    from dataclasses import replace

    from headrace.backlog import progress as progresses
    from headrace.backlog import receipts
    from headrace.backlog.lag import Reader

    settings = load()
    reach.kafka(settings)
    receipt = receipts.read(settings, run)
    with Reader(settings) as reader:
        found = progresses.progress(receipt, reader.topology, reader.read(members=False))
    found = replace(found, superseded=progresses.superseded(settings, found))
    found = progresses.paid(settings, found)
    if as_json:
        _say_json(found.as_dict())
    else:
        click.echo(report.progress_text(found))
    return 0


@click.command()
@click.argument("run", default="latest")
@click.option("--stage", "stages", multiple=True, help="Only this group and what it needs.")
@click.option("--timeout", type=float, help="Seconds; then exit 3 and say who waits.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def wait(
    load: Loader, run: str, stages: tuple[str, ...], timeout: float | None, as_json: bool
) -> int:
    """Wait until all of RUN (the latest, if none is named) has reached the last store."""
    from headrace.backlog import wait as waiting

    settings = load()
    reach.kafka(settings)
    quiet = as_json or not sys.stderr.isatty()
    console = Console(stderr=True)
    with console.status("waiting") if not quiet else _Nothing() as status:

        def tell(now: Any) -> None:
            status.update("waiting: " + "; ".join(now.reasons()) if now.reasons() else "arrived")

        found = waiting.wait(settings, run, stages, timeout=timeout, tell=tell)
    receipt = found.receipt
    if as_json:
        _say_json(
            {
                "run": receipt.run,
                "state": receipt.state,
                "records": receipt.records,
                "arrived": found.arrived,
                "waits": found.reasons(),
                "left_out": list(found.left_out),
            }
        )
        return 0 if found.arrived else LATE
    for group in found.left_out:
        click.echo(f"{group} leaves out topics of this run for now", err=True)
    if found.arrived:
        click.echo(f"Run {receipt.run} has arrived: {receipt.records:,} records ({receipt.state})")
        return 0
    click.echo(f"Run {receipt.run} has not arrived in {timeout:g} s:", err=True)
    for reason in found.reasons():
        click.echo(f"  {reason}", err=True)
    return LATE


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def coverage(load: Loader, as_json: bool) -> int:
    """Which share of the records each stage has answered, by platform, as PostgreSQL has it."""
    from headrace.backlog import coverage as coverages

    found = coverages.read(load())
    if as_json:
        _say_json([row.as_dict() for row in found])
        return 0
    if not found:
        click.echo("no records are stored yet")
        return 0
    columns = ("PLATFORM", "STAGE", "RECORDS", "OK", "DROPPED", "DEAD", "PENDING", "COVERAGE")
    cells = [
        (
            row.platform,
            row.stage,
            *(f"{n:,}" for n in (row.records, row.ok, row.dropped, row.dead, row.pending)),
            "–" if row.coverage is None else f"{100 * row.coverage:.1f} %",
        )
        for row in found
    ]
    report.show(cells, columns)
    return 0


@click.command()
@click.argument("record")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def trace(load: Loader, record: str, as_json: bool) -> int:
    """Everything that is known of RECORD (its id): where it stands, outcomes, dead letters."""
    from headrace.backlog import trace as traces

    found = traces.read(load(), record)
    if as_json:
        _say_json(found.as_dict())
    else:
        click.echo(found.text())
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def doctor(load: Loader, as_json: bool) -> int:
    """What is wrong, and what to do about it. Exit status 1 where something is."""
    from headrace.backlog import doctor as doctors

    found = doctors.examine(load())
    if as_json:
        _say_json(found.as_dict())
    else:
        for sums in found.sums:
            click.echo(f"  {sums}")
        for finding in found.findings:
            click.echo(str(finding))
        if found.clean:
            click.echo("All is well.")
    return 0 if found.clean else 1


def _watch(reader: Any, groups: Sequence[str], every: float, detail: str, as_json: bool) -> int:
    """Samples until interrupted. Rates are those of the last `stall_seconds`."""
    if every <= 0:
        raise HeadraceError("--every needs a number of seconds above 0")
    samples: deque[list[GroupLag]] = deque()
    project = reader.settings.project
    console = Console()
    live = not as_json and console.is_terminal

    def sample() -> list[GroupLag]:
        now: list[GroupLag] = reader.read(groups, times=True, projectors=True)
        samples.append(now)
        window = reader.stall_seconds * 1000
        # The oldest sample that is at least a window old stays: a stall needs a whole one.
        while len(samples) > 2 and now and now[0].at_ms - samples[1][0].at_ms >= window:
            samples.popleft()
        rated: list[GroupLag] = reader.rated(samples[0], now)
        return rated

    with Live(console=console, auto_refresh=False) if live else _Nothing() as screen:
        while True:
            try:
                found = sample()
            except ServerUnavailable as error:  # a broker that restarts does not end the watch
                click.echo(f"headrace: {error}", err=True)
            else:
                if live:
                    cells = report.rows(found, detail=detail, project=project)
                    screen.update(report.table(cells, report.columns(detail)), refresh=True)
                for group in [] if live else found:
                    told = report.as_dict(group, reader.stall_seconds) if as_json else None
                    click.echo(json.dumps(told) if told else report.line(group))
                sys.stdout.flush()
            time.sleep(every)


def _serve(reader: Any, groups: Sequence[str], port: int) -> int:
    from headrace.backlog import exporter

    reader.read(groups)  # a mistake is said now, not at the first scrape
    try:
        server, thread = exporter.serve(reader, groups, port)
    except (OSError, OverflowError) as error:
        raise HeadraceError(f"port {port} cannot be served: {error}") from None
    click.echo(f"http://127.0.0.1:{server.server_port}/metrics")
    try:
        thread.join()
    finally:
        server.shutdown()
        server.server_close()
    return 0


def _say_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


class _Nothing:
    """Stands in for a status line where nobody looks."""

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: object, refresh: bool = True) -> None:
        pass
