"""`headrace llm batches`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import Any

import click

from headrace.config import Settings
from headrace.errors import HeadraceError

Loader = Callable[[], Settings]

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")

_LIST = """
SELECT b.id, b.name, b.stage, b.model, b.state, b.status, b.requests, b.answered, b.again, b.error,
       b.batch, b.made_at, b.sent_at, b.done_at, b.cancel_at,
       (SELECT sum(cost) FROM llm_calls c JOIN llm_requests r ON r.call = c.id
        WHERE r.batch = b.id) AS reserved
FROM llm_batches b ORDER BY b.state = 'done', b.id DESC LIMIT %s
"""
_WAITING = """
SELECT stage, count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'sent') AS sent,
       extract(epoch FROM now() - min(made_at) FILTER (WHERE state IN ('waiting', 'sent')))
         AS oldest
FROM llm_requests GROUP BY 1 HAVING count(*) FILTER (WHERE state IN ('waiting', 'sent')) > 0
ORDER BY 1
"""
_REQUESTS = """
SELECT r.id::text, r.state, r.round, r.error, array_agg(i.record_id ORDER BY i.place) AS records
FROM llm_requests r LEFT JOIN llm_request_items i ON i.request = r.id
WHERE r.batch = %s GROUP BY r.id ORDER BY r.state, r.id LIMIT 20
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
    settings = load()
    waiting, found = _rows(settings, _WAITING, []), _rows(settings, _LIST, [limit])
    if as_json:
        click.echo(json.dumps({"requests": waiting, "batches": found}, default=str))
        return
    for row in waiting:
        oldest = _duration(float(row["oldest"] or 0))
        click.echo(
            f"{row['stage']}: {row['waiting']:,} requests wait for a batch, {row['sent']:,} are"
            f" with the provider, the oldest for {oldest}"
        )
    for row in found:
        click.echo(_line(row))
    if not waiting and not found:
        click.echo("no batch yet: a group asks by batches with llm.transport")


@batches.command()
@click.argument("batch")
@_json
@click.pass_obj
def show(load: Loader, batch: str, as_json: bool) -> None:
    """One batch, and what stands of its requests."""
    settings = load()
    found = _one(settings, batch)
    requests = _rows(settings, _REQUESTS, [found["id"]])
    if as_json:
        click.echo(json.dumps(found | {"pending": requests}, default=str))
        return
    click.echo(_line(found))
    for name in ("batch", "made_at", "sent_at", "done_at", "error"):
        if found[name]:
            click.echo(f"    {name.replace('_at', '')}: {found[name]}")
    for row in requests:
        records = ", ".join(filter(None, row["records"]))
        why = f": {row['error']}" if row["error"] else ""
        click.echo(f"    {row['state']} (round {row['round'] + 1}){why}  {records}")


@batches.command()
@click.argument("batch")
@click.pass_obj
def cancel(load: Loader, batch: str) -> None:
    """Have the provider give a batch up; what it has answered by then counts."""
    settings = load()
    found = _one(settings, batch)
    if found["state"] == "done":
        raise HeadraceError(f"{found['name']} is done already ({found['status']})")
    _rows(settings, "UPDATE llm_batches SET cancel_at = now() WHERE id = %s", [found["id"]])
    click.echo(f"{found['name']} is cancelled at the next look (`headrace llm batches list`)")


@batches.command()
@click.argument("batch")
@click.pass_obj
def resubmit(load: Loader, batch: str) -> None:
    """Send what a batch left unanswered with the next batch, at once and from its first round."""
    from headrace.llm.batches import courier

    settings = load()
    found = _one(settings, batch)
    if found["state"] != "done":
        raise HeadraceError(
            f"{found['name']} is under way: wait for it, or `headrace llm batches cancel`"
        )
    count = courier.resubmit(settings, found["id"], found["stage"])
    click.echo(f"{count:,} requests of {found['name']} go with the next batch")


@batches.command()
@click.pass_obj
def run(load: Loader) -> None:
    """Carry requests and answers in this process, as a container does."""
    from headrace import log
    from headrace.llm.batches.courier import Courier
    from headrace.stream import topology as topologies

    settings = load()
    log.setup(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    Courier(settings, topologies.load(settings)).serve(stopping)


def _rows(settings: Settings, query: str, parameters: list[Any]) -> list[dict[str, Any]]:
    from psycopg.rows import dict_row

    from headrace.stores import migrate, postgres

    migrate.upgrade(settings)
    with postgres.connect(settings, autocommit=True) as connection:
        cursor = connection.cursor(row_factory=dict_row).execute(query.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def _one(settings: Settings, named: str) -> dict[str, Any]:
    """By its number, its name, or the provider's id."""
    every = _rows(settings, _LIST, [1_000_000])
    for row in every:
        if named in (str(row["id"]), row["name"], row["batch"]):
            return row
    raise HeadraceError(f"there is no batch {named}; `headrace llm batches list` names them")


def _line(row: dict[str, Any]) -> str:
    status = row["status"] if row["state"] != "making" else "on its way"
    said = f"{row['id']:>4}  {row['name']}  {row['stage']}  {row['model']}  {status}"
    said += f"  {row['answered']:,} of {row['requests']:,} answered"
    if row["again"]:
        said += f", {row['again']:,} came back"
    if row["cancel_at"] and row["state"] != "done":
        said += ", to be cancelled"
    return said + (f"  ({row['error']})" if row["error"] else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
