"""`headrace dead`, `headrace requeue` and `headrace upgrade`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from headrace.config import Settings
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.redo import flows

Loader = Callable[[], Settings]

LATE = 3  # exit status of a wait that timed out
DIED = 4  # of a canary that died

_platform = click.option(
    "--platform", "platforms", multiple=True, help="Only this one; repeatable."
)
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_wait = click.option("--wait", is_flag=True, help="Until every outcome is stored.")
_timeout = click.option("--timeout", type=float, help="Seconds to wait; then exit 3.")
_limit = click.option("--limit", type=click.IntRange(min=1), help="At most so many records.")
_ORDER = (
    _platform,
    _limit,
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option("--dry-run", is_flag=True, help="Only the estimate."),
    _wait,
    _timeout,
    _json,
)


def order_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a command that tells what it will do, asks, and does it; see `carry_out`."""
    for option in reversed(_ORDER):
        command = option(command)
    return command


@click.group()
def dead() -> None:
    """Dead letters: what died of what, and the way back, or off the list."""


@dead.command("list")
@click.argument("group", required=False)
@click.option("--cause", help="A part of the cause; * stands for anything.")
@_platform
@click.option("--all", "settled", is_flag=True, help="Those too that are settled or dismissed.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@_json
@click.pass_obj
def list_(
    load: Loader,
    group: str | None,
    cause: str | None,
    platforms: tuple[str, ...],
    settled: bool,
    limit: int,
    as_json: bool,
) -> int:
    """Groups and causes, with their counts and an example."""
    from headrace.backlog import database
    from headrace.redo import letters
    from headrace.stream import topology as topologies

    settings = load()
    topology = topologies.load(settings)
    known_platforms(topology.platforms, platforms)
    filters = letters.Filters(group, cause, platforms)
    with database.reading(settings) as connection:
        found = letters.causes(connection, topology, filters, settled=settled, limit=limit + 1)
        aside = 0 if found else letters.count(connection, topology, filters, "dismissed")
    more, found = len(found) > limit, found[:limit]
    if as_json:
        click.echo(json.dumps([one.as_dict() for one in found], indent=2, ensure_ascii=False))
        return 0
    if not found:
        click.echo("nothing is dead" + (f"; {aside:,} dismissed (--all)" if aside else ""))
        return 0
    for one in found:
        counts = [f"{one.open:,} open"]
        counts += [f"{one.queued:,} queued"] if one.queued else []
        counts += [f"{one.again:,} died more than once"] if one.again else []
        counts += [f"{one.dismissed:,} dismissed"] if one.dismissed else []
        rest = one.letters - one.open - one.queued - one.dismissed
        counts += [f"{rest:,} settled"] if rest else []
        click.echo(f"{one.group}: {_line(one.cause)}")
        click.echo(f"    {', '.join(counts)}; {_span(one.oldest, one.newest)}")
        click.echo(f"    e.g. {_line(one.example or '(no key)')} (letter {one.number})")
    if more:
        click.echo("… and more causes: --limit")
    return 0


@dead.command()
@click.argument("letter")
@click.option("--group", help="Of this group, where a record died in several.")
@click.option("--bytes", "as_bytes", is_flag=True, help="Only the original bytes, as they came.")
@_json
@click.pass_obj
def show(load: Loader, letter: str, group: str | None, as_bytes: bool, as_json: bool) -> int:
    """One LETTER (its number, or a record's id) with its headers and original bytes."""
    from headrace.backlog import database
    from headrace.redo import letters

    settings = load()
    with database.reading(settings) as connection:
        row = letters.find(connection, letter, group)
    if as_bytes:
        sys.stdout.flush()
        sys.stdout.buffer.write(row["value"] or b"")
        return 0
    if as_json:
        click.echo(json.dumps(_letter(row), indent=2, ensure_ascii=False))
        return 0
    click.echo(f"letter {row['id']} of {row['group']}: {row['state']}")
    click.echo(f"  record   {_line(row['record_key'] or '(no key)')}")
    click.echo(f"  stood at {_line(row['topic'])}/{row['partition']} offset {row['offset']}")
    again = f", {row['deaths']} times" if row["deaths"] > 1 else ""
    click.echo(f"  died     {row['at']:%Y-%m-%d %H:%M:%S} UTC{again}")
    click.echo(f"  reason   {_line(row['reason'])}")
    if row["redriven_at"]:
        click.echo(f"  redriven {row['redriven_at']:%Y-%m-%d %H:%M:%S} UTC")
    if row["dismissed_at"]:
        why = f": {_line(row['dismissal'])}" if row["dismissal"] else ""
        click.echo(f"  dismissed {row['dismissed_at']:%Y-%m-%d %H:%M:%S} UTC{why}")
    for name, text in sorted((row["headers"] or {}).items()):
        click.echo(f"  header   {_line(name)}: {_line(text)}")
    size = "" if row["value"] is None else f" ({len(row['value']):,} bytes)"
    click.echo(f"  value{size}:")
    for line in letters.shown(row["value"]).splitlines():
        click.echo(f"    {line}")
    return 0


@dead.command()
@click.argument("group")
@click.option("--cause", help="A part of the cause as `dead list` has it; * stands for anything.")
@_platform
@click.option("--record", "records", multiple=True, help="Only this record; repeatable.")
@_limit
@click.option("--canary", type=click.IntRange(min=1), help="So many go first. [default: 10]")
@click.option("--no-canary", is_flag=True, help="All at once.")
@click.option(
    "--survive", type=click.FloatRange(0, 1), help="Share that must not die again. [default: 0.9]"
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@_wait
@_timeout
@_json
@click.pass_obj
def redrive(
    load: Loader,
    group: str,
    cause: str | None,
    platforms: tuple[str, ...],
    records: tuple[str, ...],
    limit: int | None,
    canary: int | None,
    no_canary: bool,
    survive: float | None,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Give GROUP its dead letters again; a few go first, and the others only if those live."""
    from headrace.backlog import database, reach
    from headrace.redo import display, flows, letters
    from headrace.stream import topology as topologies

    if canary and no_canary:
        raise click.UsageError("--canary and --no-canary contradict each other")
    settings = load()
    topology = topologies.load(settings)
    known_platforms(topology.platforms, platforms)
    found = topology.group(group)
    filters = letters.Filters(found.short, cause, platforms, records)
    if dry_run:
        with database.reading(settings) as connection:
            count = letters.Dead(found, filters, topology).count(connection)
        report = flows.Report(found.short, "dead", found=count)
        say(report, as_json, f"{found.short}: {count:,} dead letters would be redriven")
        return 0
    reach.kafka(settings)
    first = flows.Canary(
        0 if no_canary else canary or settings.redo.canary,
        settings.redo.canary_survive if survive is None else survive,
    )
    with display.chosen(as_json) as tell:
        report = flows.redrive(
            settings, topology, found, filters, first, tell,
            limit=limit, timeout=timeout, wait=wait,
        )  # fmt: skip
    text = _redriven(report)
    say(report, as_json, text)
    if report.timed_out:
        return LATE
    return DIED if report.stopped else 0


@dead.command()
@click.argument("group")
@click.option("--cause", help="A part of the cause as `dead list` has it; * stands for anything.")
@_platform
@click.option("--record", "records", multiple=True, help="Only this record; repeatable.")
@click.option("--reason", help="Why; `dead show` tells it.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@_json
@click.pass_obj
def dismiss(
    load: Loader,
    group: str,
    cause: str | None,
    platforms: tuple[str, ...],
    records: tuple[str, ...],
    reason: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Take dead letters of GROUP off the list, such as can never be read. They are kept, and
    `dead redrive GROUP --record` still gives back what is named."""
    from headrace.backlog import database
    from headrace.redo import flows, letters
    from headrace.stream import topology as topologies

    settings = load()
    topology = topologies.load(settings)
    known_platforms(topology.platforms, platforms)
    found = topology.group(group)
    filters = letters.Filters(found.short, cause, platforms, records)
    if dry_run:
        with database.reading(settings) as connection:
            count = letters.count(connection, topology, filters, "open")
    else:
        count = flows.dismiss(settings, topology, found, filters, reason)
    if as_json:
        told = {"group": found.short, "dismissed": 0 if dry_run else count, "found": count}
        click.echo(json.dumps(told, indent=2))
        return 0
    if not count:
        click.echo(f"{found.short}: no open dead letter is meant by this")
    elif dry_run:
        click.echo(f"{found.short}: {count:,} dead letters would be dismissed")
    else:
        click.echo(
            f"{found.short}: {count:,} dead letters dismissed (`headrace dead list {found.short}"
            " --all` lists them)"
        )
    return 0


@click.command()
@click.argument("stage")
@click.option("--missing", is_flag=True, help="What the stage has passed and has no outcome of.")
@_platform
@_limit
@click.option("--deferred", is_flag=True, help="Also what the stage has put off.")
@click.option("--reason", default="missing", show_default=True, help="Kept with each record.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@_wait
@_timeout
@_json
@click.pass_obj
def requeue(
    load: Loader,
    stage: str,
    missing: bool,
    platforms: tuple[str, ...],
    limit: int | None,
    deferred: bool,
    reason: str,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Have STAGE do again what it misses."""
    from headrace.backlog import reach
    from headrace.redo import display, flows
    from headrace.stream import topology as topologies

    if not missing:
        raise click.UsageError("say what is to be queued: --missing")
    settings = load()
    topology = topologies.load(settings)
    group = flows.stage_of(topology, stage)
    known_platforms(topology.platforms, platforms)
    reach.kafka(settings)
    with display.chosen(as_json) as tell:
        report = flows.requeue(
            settings, topology, group, tell,
            platforms=platforms, limit=limit, deferred=deferred, reason=reason, dry_run=dry_run,
            timeout=timeout, wait=wait,
        )  # fmt: skip
    if dry_run:
        text = f"{group.short} misses {report.found:,} records that it has passed"
    elif not report.found and not report.resent:
        text = f"{group.short} misses nothing that it has passed"
    else:
        text = queued(report)
    say(report, as_json, text)
    return LATE if report.timed_out else 0


@click.command()
@click.argument("stage")
@click.option("--since", metavar="WHEN", help="Outcomes made from then on: a date, or '7 days'.")
@click.option("--until", metavar="WHEN", help="Outcomes made before.")
@click.option("--version", "old", help="Only outcomes of this older version.")
@click.option("--confidence-below", type=float, help="Only results less sure than this.")
@order_options
@click.pass_obj
def upgrade(
    load: Loader,
    /,
    stage: str,
    platforms: tuple[str, ...],
    since: str | None,
    until: str | None,
    old: str | None,
    confidence_below: float | None,
    dry_run: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Have STAGE do again what an older version of it made."""
    from headrace.backlog import reach
    from headrace.redo import choosing, display, flows
    from headrace.search.query import moment
    from headrace.stream import topology as topologies

    settings = load()
    topology = topologies.load(settings)
    group = flows.stage_of(topology, stage)
    known_platforms(topology.platforms, platforms)
    wanted = choosing.Wanted(
        platforms,
        moment("--since", since) if since else None,
        moment("--until", until) if until else None,
        old,
        confidence_below,
    )
    reach.kafka(settings)
    tell = display.chosen(as_json)
    with flows.Upgrade(settings, topology, group, tell, wanted, dry_run=dry_run) as one:
        return carry_out(one, _of_upgrade, as_json=as_json, **how)


def carry_out(
    one: flows.Order,
    about: Callable[[flows.Order, int], Estimate],
    *,
    limit: int | None,
    yes: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Look, tell what it would take, ask, queue; the exit status. `about`: of so many records."""
    found = one.look()
    estimate = about(one, min(found, limit or found))
    report = one.report
    if one.dry_run or not (found or wait or report.resent):
        say(report, as_json, estimate.text, **estimate.more)
        return 0
    if found:
        if not yes and (as_json or not sys.stdin.isatty()):
            raise HeadraceError(f"{estimate.line}; say --yes to have it done")
        if not as_json:
            click.echo(estimate.text, err=True)
        if not yes:
            click.confirm("Queue them?", abort=True, err=True)
    with one.tell:
        report = one.run(limit=limit, wait=wait, timeout=timeout)
    done = report.queued or report.resent or report.left_out or report.timed_out
    say(report, as_json, queued(report) if done else estimate.text, **estimate.more)
    return LATE if report.timed_out else 0


# -- what they say


def _redriven(report: Any) -> str:
    if report.timed_out:
        return f"{report.group}: not every outcome is known yet; the same command goes on from here"
    if report.stopped:
        died = report.canary - report.survived
        lines = [
            f"{report.group}: {died:,} of {report.canary:,} died again; the others were not sent",
            *(f"    {_line(one)}" for one in report.died[:5]),
            "mend the group and start it again, then redrive; or send all with --no-canary",
        ]
        return "\n".join(lines)
    if not report.queued and not report.resent and not report.canary:
        said = f"{report.group}: there is nothing to redrive"
        if report.left_out:
            said += f"; {report.left_out:,} cannot be read again: `headrace dead dismiss"
            said += f" {report.group}` takes them off the list"
        return said
    return queued(report)


def queued(report: Any) -> str:
    parts = [f"{report.queued:,} queued on {report.group}.redo"]
    if report.resent:
        parts.append(f"{report.resent:,} that an earlier command had noted")
    if report.left_out:
        parts.append(f"{report.left_out:,} left out: nothing to read of them, or queued already")
    if report.canary:
        parts.append(f"{report.survived:,} of {report.canary:,} went first and live")
    if report.still_dead is not None:
        parts.append(f"{report.still_dead:,} are still dead")
    if report.timed_out:
        parts.append("not every outcome is known yet")
    text = "; ".join(parts)
    return text if report.still_dead is not None else f"{text} (`headrace lag {report.group}`)"


class Estimate(NamedTuple):
    """What an order would take: lines for people, fields for programs."""

    lines: Sequence[str]
    more: Mapping[str, object]

    @property
    def line(self) -> str:
        return "; ".join(self.lines)

    @property
    def text(self) -> str:
        return "\n  ".join(self.lines)


def paid(one: flows.Order, records: int, said: str) -> Estimate:
    """Of work that asks a language model."""
    from headrace.llm import estimates

    if not records:
        return Estimate([said], {})
    found = estimates.of(one.settings, one.group, records, one.parts)
    return Estimate([said, *estimates.told(found, one.settings)], {"estimate": found.as_dict()})


def _of_upgrade(one: flows.Order, records: int) -> Estimate:
    from headrace.llm import estimates
    from headrace.redo import flows

    assert isinstance(one, flows.Upgrade)
    name, target = one.group.short, {"target": str(one.target)}
    if not records:
        said = (
            f"{name}: nothing is older than version {one.target} or it is queued already; an"
            " upgrade begins with a new version in topics.yaml and a restart of the group"
        )
        if not one.target.whole:
            said += ". It does not run now, so whether its model or its prompt is new is not known"
        return Estimate([said], target)
    said = f"{name}: {records:,} records to version {one.target}"
    if one.group.paid and (stays := estimates.kept(one.settings, one.group)):
        return Estimate([said, stays], target)
    if one.group.paid:
        lines, more = paid(one, records, said)
        return Estimate(lines, {**more, **target})
    rate = one.rate()
    if not rate:
        said += "; how long it takes is not known, since the group has not said its rate"
        return Estimate([said], {**target, "seconds": None})
    said += f", about {_duration(records / rate)} at {rate:,.0f} records a second"
    return Estimate([said], {**target, "seconds": records / rate})


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} hours"


def say(report: Any, as_json: bool, text: str, **more: object) -> None:
    if as_json:
        click.echo(json.dumps(report.as_dict() | more, indent=2, ensure_ascii=False))
    else:
        click.echo(text)


def known_platforms(known: Sequence[str], asked: Sequence[str]) -> None:
    for platform in asked:
        if platform not in known:
            raise HeadraceError(f"platform {platform} is not known; there are: {', '.join(known)}")


def _letter(row: Any) -> dict[str, Any]:
    value = dict(row)
    for name in ("at", "redriven_at", "dismissed_at"):
        value[name] = value[name].isoformat() if value[name] else None
    for name in ("key", "value"):
        content = value[name]
        value[name] = None if content is None else content.decode(errors="backslashreplace")
    return value


def _line(text: str) -> str:
    """One line that a terminal can bear."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= 300 else f"{shown[:300]}…"


def _span(oldest: Any, newest: Any) -> str:
    first, last = f"{oldest:%Y-%m-%d %H:%M}", f"{newest:%Y-%m-%d %H:%M}"
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"
