"""`headrace llm`: what language models cost, how things stand, what a backlog would take."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, get_args

import click

from headrace.config import Settings
from headrace.words import count

if TYPE_CHECKING:
    from headrace.llm.cost import Sum
    from headrace.llm.estimates import Estimate
    from headrace.llm.standing import Standing

Loader = Callable[[], Settings]

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


_ELSEWHERE = {"batches": "headrace.llm.batches.commands:batches"}


class _Group(click.Group):
    """With commands that live elsewhere, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _ELSEWHERE:
            return super().get_command(ctx, name)
        module, _, attribute = _ELSEWHERE[name].partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found


@click.group(cls=_Group)
def llm() -> None:
    """Language models: cost, limits, estimates."""


@llm.command()
@click.option(
    "--by", type=click.Choice(["stage", "run", "model", "day"]), default="stage", show_default=True
)
@_json
@click.pass_obj
def cost(load: Loader, by: str, as_json: bool) -> int:
    """Calls, tokens and USD, as the ledger has them."""
    from headrace.backlog import database
    from headrace.llm import cost as costs

    assert by in get_args(costs.By)
    with database.reading(load()) as connection:
        rows = costs.read(connection, by)  # type: ignore[arg-type]
        total = costs.total(connection)
    if as_json:
        told = {"by": by, "rows": [row.as_dict() for row in rows]}
        click.echo(json.dumps(told | {"total": total.as_dict() if total else None}, indent=2))
    elif total is None:
        click.echo("no language model was asked yet")
    else:
        _show(rows, total, by)
    return 0


def _show(rows: list[Sum], total: Sum, by: str) -> None:
    from headrace.backlog import report
    from headrace.llm import cost as costs
    from headrace.llm.admission import usd

    names = (by.upper(), "CALLS", "FAILED", "INPUT", "OUTPUT", "COST", "REPEATED", "COST OF THOSE")
    cells = [
        (
            row.name or "in all",
            f"{row.calls:,}",
            f"{row.failed:,}",
            f"{row.input_tokens:,}",
            f"{row.output_tokens:,}",
            usd(row.cost),
            f"{row.repeated:,}",
            usd(row.repeated_cost),
        )
        for row in [*rows, *([total] if len(rows) > 1 else [])]
    ]
    report.show(cells, names)
    notes = []
    if total.under_way:
        notes.append(f"{count(total.under_way, 'call')} not answered yet")
    if total.lost:
        notes.append(f"{count(total.lost, 'call')} in flight when their worker died")
    if any(row.name == costs.NOBODYS for row in rows):
        click.echo(f"{costs.NOBODYS}: calls that brought no answer, and those of forgotten records")
    for note in notes:
        click.echo(f"{note}: in the cost stands what they may take at most")
    if total.unpriced:
        click.echo(
            f"{count(total.unpriced, 'call')} of models without a price (llm.prices): counted as $0"
        )


@llm.command()
@_json
@click.pass_obj
def status(load: Loader, as_json: bool) -> int:
    """The endpoint, its limits and the budgets, as they are used now."""
    from headrace.backlog import database
    from headrace.llm import cost as costs
    from headrace.llm import standing

    settings = load()
    with database.reading(settings) as connection:
        found = standing.read(connection, settings)
        total = costs.total(connection)
    if as_json:
        click.echo(json.dumps(_told(found, settings, total), indent=2))
        return 0
    for name, text in _lines(found, settings, total):
        click.echo(f"{name:<10} {text}".rstrip())
    return 0


def _lines(found: Standing, settings: Settings, total: Sum | None) -> list[tuple[str, str]]:
    from headrace.backlog.report import span
    from headrace.llm.admission import usd

    limits = settings.llm
    where = "on this machine" if found.embedded else f"at {found.provider}"
    lines = [("Model", f"{found.model} {where}")]
    lines += [("Problem", problem) for problem in found.problems]
    if found.embedded:
        lines.append(
            (
                "",
                "No endpoint is configured: this embedded model shows the way, and its content is",
            )
        )
        lines.append(("", "for trying out. For real content set llm.base_url or llm.api_key."))
    most = f"of {limits.requests_per_minute:,} " if limits.requests_per_minute else ""
    used = f"{found.requests:,} {most}requests"
    most = f" of {limits.tokens_per_minute:,}" if limits.tokens_per_minute else ""
    used += f" and {found.tokens:,}{most} tokens in the last minute"
    groups = ", ".join(f"{name}: {calls:,}" for name, (calls, _) in found.used.items())
    lines.append(("Limits", used + (f" ({groups})" if groups else "")))
    if found.waiting and found.last_turn is not None:
        last = span((found.last_turn - found.now).total_seconds())
        lines.append(
            ("Waiting", f"{count(found.waiting, 'call')}, the last one's turn is in {last}")
        )
    if found.hold_until is not None:
        left = span((found.hold_until - found.now).total_seconds())
        lines.append(("Hold", f"{found.provider} asks for no call for another {left}"))
    lines.append(("Circuit", _circuit(found, settings)))
    budget = "no daily budget (llm.daily_budget)"
    if limits.daily_budget is not None:
        budget = f"of {usd(limits.daily_budget)} today"
        lines.append(("Budget", f"{usd(found.today)} {budget}"))
    else:
        lines.append(("Budget", f"{usd(found.today)} today; {budget}"))
    for name, one in found.waits.items():
        age = span((found.now - one.at).total_seconds())
        lines.append(("Waits", f"{name}, {age} ago: {one.reason}"))
    lines += [("Waits", line) for line in found.stuck]
    for name, way in (("Under way", found.direct), ("In batches", found.batch)):
        if way.calls and way.oldest is not None:
            age = span((found.now - way.oldest).total_seconds())
            text = f"{count(way.calls, 'call')}, the oldest for {age}, {usd(way.reserved)} reserved"
            lines.append((name, text))
    if total is not None:
        text = f"{count(total.calls, 'call')}, {usd(total.cost)}"
        parts = {"failed": total.failed, "lost": total.lost, "repeated": total.repeated}
        said = ", ".join(f"{number:,} {name}" for name, number in parts.items() if number)
        lines.append(("In all", text + (f" ({said})" if said else "")))
    return lines


def _circuit(found: Standing, settings: Settings) -> str:
    from headrace.backlog.report import span

    if found.open_until is not None:
        left = span((found.open_until - found.now).total_seconds())
        said = f", the last with: {found.error}" if found.error else ""
        return f"open for another {left}: {found.failures:,} calls in a row failed{said}"
    if found.failures >= settings.llm.circuit_failures:
        return "half open: one call tries whether the provider is back"
    return "closed" + (f", {found.failures:,} failed in a row" if found.failures else "")


def _told(found: Standing, settings: Settings, total: Sum | None) -> dict[str, object]:
    def at(moment: datetime | None) -> str | None:
        return moment.isoformat() if moment else None

    def number(value: Decimal) -> float:
        return float(value)

    return {
        "provider": found.provider,
        "model": found.model,
        "embedded": found.embedded,
        "requests": found.requests,
        "requests_per_minute": settings.llm.requests_per_minute,
        "tokens": found.tokens,
        "tokens_per_minute": settings.llm.tokens_per_minute,
        "by_group": {
            name: {"requests": calls, "tokens": tokens}
            for name, (calls, tokens) in found.used.items()
        },
        "waiting": found.waiting,
        "hold_until": at(found.hold_until),
        "failures": found.failures,
        "error": found.error,
        "open_until": at(found.open_until),
        "spent_today": number(found.today),
        "daily_budget": settings.llm.daily_budget,
        "problems": found.problems,
        "stuck": found.stuck,
        "waits": {name: one.reason for name, one in found.waits.items()},
        "under_way": {
            name: {
                "calls": way.calls,
                "oldest": at(way.oldest),
                "reserved": number(way.reserved),
            }
            for name, way in (("direct", found.direct), ("batch", found.batch))
        },
        "total": total.as_dict() if total else None,
    }


@llm.command()
@click.argument("group")
@_json
@click.pass_obj
def estimate(load: Loader, group: str, as_json: bool) -> int:
    """What the backlog of GROUP would cost, and how long it would take."""
    from headrace.backlog import reach
    from headrace.llm import estimates

    settings = load()
    reach.kafka(settings)
    found = estimates.read(settings, group)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return 0
    for line in _estimated(found, settings):
        click.echo(line)
    return 0


def _estimated(found: Estimate, settings: Settings) -> list[str]:
    from headrace.llm import estimates

    flying = f"; {found.under_way:,} are asked for by batches" if found.under_way else ""
    if not found.records:
        return [f"{found.group}: nothing waits, and no stored record lacks it{flying}"]
    return [
        f"{found.group}: {found.records:,} records ({found.waiting:,} messages wait,"
        f" {found.missing:,} stored records lack it{flying})",
        *(f"  {line}" for line in estimates.told(found, settings)),
    ]
