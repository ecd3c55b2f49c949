"""Having personas made anew, and what people decide about them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg.rows import dict_row

from consumers.personas import making, reading
from consumers.personas.export import BETWEEN
from consumers.personas.reading import Found
from headrace import decisions
from headrace.config import Settings
from headrace.decisions import Action
from headrace.errors import HeadraceError
from headrace.llm.ledger import Ledger
from headrace.redo import sending
from headrace.stores import postgres
from headrace.stream import topology as topologies

STAGE = "personas"

_BODIES = """
SELECT n.id, n.name, n.properties FROM nodes n
WHERE n.root_id = %s AND n.kind = 'persona' AND n.superseded_at IS NULL
ORDER BY n.id
"""
_PROFILE = """
SELECT n.properties FROM nodes n WHERE n.id = %s AND n.kind = 'community'
"""
_STANDS = """
SELECT (o.result->>'set')::integer AS made,
       (SELECT max(s.number) FROM llm_sets s WHERE s.stage = o.stage AND s.record_id = o.record_id)
         AS ordered
FROM outcomes o
WHERE o.record_id = %s AND o.stage = 'personas' AND o.outcome = 'ok'
"""


class Ordered(NamedTuple):
    """A new set: its number, and how many personas it keeps and has made anew."""

    community: str
    set: int
    kept: int
    anew: int


def regenerate(settings: Settings, target: Found) -> Ordered:
    """Order a new set: of a community all that nobody locked or edited, or one persona alone.

    Raises HeadraceError where there is nothing to make anew, or an earlier order is under way.
    """
    topology = topologies.load(settings)
    standing = decisions.standing(settings)
    with postgres.connect(settings, readonly=True) as connection:
        made, ordered = _sets(connection, target.community)
        bodies = _bodies(connection, target.community)
        profile = connection.execute(_PROFILE, [target.community]).fetchone()
    if ordered is not None and ordered > made:
        _queue(settings, topology, target.community)
        raise HeadraceError(
            f"{target.community}: set {ordered} was ordered and is not made yet; it stands on"
            " personas.redo: `headrace run personas` makes it"
        )
    keep = kept(bodies, target.persona, standing)
    anew = max(settings.personas.count, len(bodies)) - len(keep)
    if target.persona is not None:
        anew = 1
        if profile is not None:
            keep.append({"kind": "community", **profile[0]})
    if anew < 1:
        raise HeadraceError(
            f"{target.community}: every persona is locked or edited; `headrace personas unlock`"
            " gives one free"
        )
    reason = f"regenerate {target.persona or target.community}"
    ledger = Ledger(settings, STAGE, "regenerate")
    try:
        number = ledger.raise_set(target.community, keep, reason)
    finally:
        ledger.close()
    _queue(settings, topology, target.community)
    persons = sum(body["kind"] == "persona" for body in keep)
    return Ordered(target.community, number, persons, anew)


def kept(
    bodies: Sequence[Mapping[str, Any]],
    persona: str | None,
    standing: Mapping[tuple[str, str], object],
) -> list[dict[str, Any]]:
    """The bodies that a new set keeps: all but `persona`, or those that somebody locked or edited
    (and did not hide). Raises HeadraceError where `persona` is locked."""
    if persona is not None:
        if (persona, "lock") in standing:
            raise HeadraceError(f"{persona} is locked: `headrace personas unlock` gives it free")
        return [dict(body) for body in bodies if body["id"] != persona]
    return [
        dict(body)
        for body in bodies
        if (body["id"], "lock") in standing
        or ((body["id"], "edit") in standing and (body["id"], "hide") not in standing)
    ]


def edited(assignments: Sequence[str], before: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an edit says with these `field=value` over an earlier one; a field without a value goes
    back to what the model said. None: nothing is left of it. Raises HeadraceError."""
    fields = dict(before)
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip()
        if not equals or name not in making.FIELDS:
            raise HeadraceError(
                f"{assignment!r}: write FIELD=VALUE; the fields are {', '.join(making.FIELDS)}"
            )
        if value.strip():
            fields[name] = _value(name, value.strip())
        else:
            fields.pop(name, None)
    return fields or None


def decide(settings: Settings, ids: Collection[str], action: Action, value: Any) -> None:
    decisions.decide(settings, ids, action, value)


def _value(name: str, text: str) -> str | list[str]:
    if name == "age_range" and text not in making.AGES:
        raise HeadraceError(f"age_range is one of {', '.join(making.AGES)}")
    if name in making.TEXTS:
        return " ".join(text.split())
    entries: object = [entry.strip() for entry in text.split(BETWEEN.strip())]
    if text.startswith("["):
        try:
            entries = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise HeadraceError(f"{name}: it is no JSON array: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(one, str) for one in entries):
        raise HeadraceError(f"{name}: write entries with semicolons between, or a JSON array")
    found = [one.strip() for one in entries if one.strip()]
    if not found:
        raise HeadraceError(f"{name}: no entry is left; leave the value out to take the edit back")
    return found


def _sets(connection: psycopg.Connection, community: str) -> tuple[int, int | None]:
    row = connection.execute(_STANDS, [community]).fetchone()
    if row is None:
        raise HeadraceError(f"{community} has no personas yet: `headrace run personas` makes them")
    return int(row[0]), row[1]


def _bodies(connection: psycopg.Connection, community: str) -> list[reading.Row]:
    cursor = connection.cursor(row_factory=dict_row)
    rows = cursor.execute(_BODIES, [community]).fetchall()
    fields = [name for name in making.FIELDS if name != "name"]
    return [
        {
            "kind": "persona",
            "id": row["id"],
            "name": row["name"],
            **{name: row["properties"].get(name) for name in fields},
        }
        for row in rows
    ]


def _queue(settings: Settings, topology: topologies.Topology, community: str) -> None:
    group = topology.group(STAGE)
    sent = sending.queue(settings, topology, group, [community], "regenerate", kind="regenerate")
    if not sent.queued and not _is_queued(settings, community):
        raise HeadraceError(
            f"{community} could not be queued: nothing is stored of it to make it from"
        )


def _is_queued(settings: Settings, community: str) -> bool:
    with postgres.connect(settings, readonly=True) as connection:
        row = connection.execute(
            "SELECT FROM redo WHERE \"group\" = 'personas' AND record_id = %s", [community]
        ).fetchone()
    return row is not None


def is_made(settings: Settings, order: Ordered) -> bool:
    """Whether a set that was ordered is stored."""
    with postgres.connect(settings, readonly=True) as connection:
        return _sets(connection, order.community)[0] >= order.set
