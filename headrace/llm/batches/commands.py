"""`headrace llm batches`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from headrace.config import Settings
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    import psycopg

Loader = Callable[[], Settings]

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")

COLUMNS = ("ID", "BATCH", "STAGE", "MODEL", "REQUESTS", "ANSWERED", "CAME BACK", "COST", "STATE")

_BATCHES = """
SELECT id, name, stage, provider, model, state, status, requests, answered, again, cost, error,
       batch, made_at, sent_at, done_at, cancel_at FROM llm_batches
"""
_LIST = f"{_BATCHES} ORDER BY state = 'done', id DESC LIMIT %s"
_ONE = f"{_BATCHES} WHERE %(named)s IN (id::text, name, batch)"
_REQUESTS = """
SELECT r.id::text, r.state, r.round + 1 AS round, r.error,
       (SELECT array_agg(i.record_id ORDER BY i.place) FROM llm_request_items i
        WHERE i.request = r.id) AS records
FROM llm_requests r WHERE r.batch = %s ORDER BY r.state, r.id LIMIT 20
"""
_STATES = "SELECT state, count(*) FROM llm_requests WHERE batch = %s GROUP BY 1 ORDER BY 1"
_RESERVED = """
SELECT coalesce(sum(c.cost), 0) FROM llm_requests r JOIN llm_calls c ON c.id = r.call
WHERE r.batch = %s AND r.state = 'sent'
"""


@click.group()
def batches() -> None:
    """Batches of requests: at half the price, within a day."""


@batches.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@_json
@click.pass_obj
def list_(load: Loader, limit: int, as_json: bool) -> None:
    """Requests that wait, batches under way, and those that are done."""
    from headrace.backlog import database, report
    from headrace.llm import standing
    from headrace.stream import topology as topologies

    settings = load()
    paid = [group.short for group in topologies.load(settings).stages() if group.paid]
    with database.reading(settings) as connection:
        flying = standing.in_flight(connection, paid)
        found = _rows(connection, _LIST, [limit])
    if as_json:
        requests = [{"stage": stage, **one.as_dict()} for stage, one in flying.items()]
        _say({"requests": requests, "batches": found})
        return
    for stage, one in flying.items():
        click.echo(f"{stage}: {one}")
    if found:
        report.show([_cells(row) for row in found], COLUMNS)
    elif not flying:
        click.echo("no batch yet: a group asks by batches with llm.transport")


@batches.command()
@click.argument("batch")
@_json
@click.pass_obj
def show(load: Loader, batch: str, as_json: bool) -> None:
    """One batch, and what stands of its requests."""
    from headrace.backlog import database, report
    from headrace.llm.admission import usd

    with database.reading(load()) as connection:
        found = _one(connection, batch)
        states = {row["state"]: row["count"] for row in _rows(connection, _STATES, [found["id"]])}
        requests = _rows(connection, _REQUESTS, [found["id"]])
        reserved = _rows(connection, _RESERVED, [found["id"]])[0]["coalesce"]
    if as_json:
        _say(found | {"reserved": reserved, "pending": states, "examples": requests})
        return
    report.show([_cells(found)], COLUMNS)
    for name in ("provider", "batch", "made_at", "sent_at", "done_at"):
        if found[name]:
            said = f"{found[name]:%Y-%m-%d %H:%M:%S UTC}" if "_at" in name else found[name]
            click.echo(f"    {name.removesuffix('_at')}: {said}")
    if reserved:
        click.echo(f"    reserved: {usd(reserved)}")
    for row in requests:
        records = row["records"] or []
        shown = ", ".join(records[:3]) + (f", … ({len(records)} in all)" if records[3:] else "")
        why = f": {row['error']}" if row["error"] else ""
        click.echo(f"    {row['state']} (round {row['round']}){why}  {shown}")
    if sum(states.values()) > len(requests):
        counted = ", ".join(f"{count:,} {state}" for state, count in states.items())
        click.echo(f"    … {counted}")


@batches.command()
@click.argument("batch")
@click.pass_obj
def cancel(load: Loader, batch: str) -> None:
    """Have the provider give a batch up; what it has answered by then counts."""
    from headrace.stores import postgres

    with postgres.connect(_migrated(load), autocommit=True) as connection:
        found = _one(connection, batch)
        if found["state"] == "done":
            raise HeadraceError(f"{found['name']} is done already ({found['status']})")
        connection.execute("UPDATE llm_batches SET cancel_at = now() WHERE id = %s", [found["id"]])
    click.echo(f"{found['name']} is cancelled at the next look (`headrace llm batches list`)")


@batches.command()
@click.argument("batch")
@click.pass_obj
def resubmit(load: Loader, batch: str) -> None:
    """Send what a batch left unanswered with the next batch, at once and from its first round."""
    from headrace.llm.batches import courier
    from headrace.stores import postgres

    settings = _migrated(load)
    with postgres.connect(settings, autocommit=True) as connection:
        found = _one(connection, batch)
    if found["state"] != "done":
        raise HeadraceError(
            f"{found['name']} is under way: wait for it, or `headrace llm batches cancel`"
        )
    count = courier.resubmit(settings, found["id"], found["stage"])
    what = "request goes" if count == 1 else "requests go"
    click.echo(f"{count:,} {what} with the next batch")


@batches.command()
@click.pass_obj
def run(load: Loader) -> None:
    """Carry requests and answers in this process, as a container does."""
    from headrace import log
    from headrace.llm import endpoint
    from headrace.llm.batches.courier import Courier
    from headrace.stream import topology as topologies

    settings = load()
    log.setup(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    courier = Courier(settings, topologies.load(settings))
    every = settings.llm.batch_poll_seconds
    where = endpoint.named(settings).provider
    log.get(__name__).info("carries batches", provider=where, every=f"{every:g} s")
    courier.serve(stopping)


def _migrated(load: Loader) -> Settings:
    from headrace.stores import migrate

    settings = load()
    migrate.upgrade(settings)
    return settings


def _rows(connection: psycopg.Connection, query: str, parameters: Any) -> list[dict[str, Any]]:
    from psycopg.rows import dict_row

    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(query.encode(), parameters).fetchall()


def _one(connection: psycopg.Connection, named: str) -> dict[str, Any]:
    """By its number, its name, or the provider's id."""
    found = _rows(connection, _ONE, {"named": named}) if "\0" not in named else []
    if not found:
        raise HeadraceError(f"there is no batch {named!r}; `headrace llm batches list` names them")
    return found[0]


def _say(value: dict[str, Any]) -> None:
    from decimal import Decimal

    def plain(one: Any) -> Any:
        return float(one) if isinstance(one, Decimal) else one.isoformat()

    click.echo(json.dumps(value, indent=2, default=plain))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from headrace.llm.admission import usd

    state = row["status"] if row["state"] != "making" else "on its way"
    if row["cancel_at"] and row["state"] != "done":
        state += ", to be cancelled"
    counts = (f"{row[name]:,}" for name in ("requests", "answered", "again"))
    state += f" ({row['error']})" if row["error"] else ""
    named = (str(row["id"]), row["name"], row["stage"], row["model"])
    return (*named, *counts, usd(row["cost"]), state)
