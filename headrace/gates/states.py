"""How the gates stand now, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from headrace.backlog import database
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.gates.checks import GATES
from headrace.gates.look import Gate, Look, Reading, State
from headrace.stores import postgres
from headrace.stream import topology as topologies

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('headrace gates ' || current_schema()))"
_OPEN = "SELECT gate, platform, state, since FROM gate_states WHERE ended_at IS NULL"
_SAME = """
UPDATE gate_states SET value = %(value)s, threshold = %(threshold)s, looked_at = now()
WHERE gate = %(gate)s AND platform IS NOT DISTINCT FROM %(platform)s AND ended_at IS NULL
"""
_END = """
UPDATE gate_states SET ended_at = now()
WHERE gate = %(gate)s AND platform IS NOT DISTINCT FROM %(platform)s AND ended_at IS NULL
"""
_NEW = """
INSERT INTO gate_states (gate, platform, state, value, threshold)
VALUES (%(gate)s, %(platform)s, %(state)s, %(value)s, %(threshold)s) RETURNING since
"""


@dataclass(frozen=True, slots=True)
class Told:
    """One gate's answer for one platform (None: the project), and since when it is this state."""

    gate: str
    description: str
    reading: Reading
    since: datetime

    @property
    def state(self) -> State:
        return self.reading.state

    def as_dict(self) -> dict[str, Any]:
        reading = self.reading
        good = reading.state == "pass"
        return {
            "gate": self.gate,
            "platform": reading.platform,
            "state": reading.state,
            "value": reading.value,
            "threshold": reading.threshold,
            "wanted": reading.wanted,
            "since": self.since.isoformat(),
            "what": None if good else reading.what,
            "do": None if good else reading.do,
        }


def judge(
    settings: Settings, platform: str | None = None, gates: Sequence[Gate] = GATES
) -> list[Told]:
    """Look through every gate, of one platform or of all, and note where one has changed.

    Raises HeadraceError for a platform that has no file, ServerUnavailable without PostgreSQL.
    """
    topology = topologies.load(settings)
    if platform is not None and platform not in topology.platforms:
        known = ", ".join(topology.platforms)
        raise HeadraceError(f"platform {platform} is not known; there are: {known}")
    with database.reading(settings) as connection:
        look = Look(connection, settings, topology, platform)
        found = [(gate, reading) for gate in gates for reading in _readings(gate, look)]
    try:
        since = postgres.again(lambda: _note(settings, found, gates if platform is None else ()))
    except psycopg.errors.InsufficientPrivilege:
        raise HeadraceError(
            "gates are noted in table gate_states, which this role may not write: ask as the role"
            " that the groups work as"
        ) from None
    return [
        Told(gate.name, gate.description, reading, at)
        for (gate, reading), at in zip(found, since, strict=True)
    ]


def _readings(gate: Gate, look: Look) -> list[Reading]:
    if not look.platforms:
        return [Reading(look.only, "unknown", None, None, "", "no records yet", "publish some")]
    return list(gate.check(look))


def _note(
    settings: Settings, found: Sequence[tuple[Gate, Reading]], whole: Sequence[Gate]
) -> list[datetime]:
    """Since when each reading is as it is. Of the gates in `whole` there are no others than these:
    what they said before of anything else has ended."""
    with postgres.connect(settings, autocommit=True) as connection, connection.transaction():
        connection.execute(_LOCK)
        rows = connection.execute(_OPEN).fetchall()
        known = {(gate, platform): (state, at) for gate, platform, state, at in rows}
        names, told = {gate.name for gate in whole}, {(g.name, r.platform) for g, r in found}
        for gate, platform in known.keys() - told:
            if gate in names:
                connection.execute(_END, {"gate": gate, "platform": platform})
        return [_since(connection, known, gate.name, reading) for gate, reading in found]


def _since(
    connection: psycopg.Connection,
    known: dict[tuple[str, str | None], tuple[str, datetime]],
    gate: str,
    reading: Reading,
) -> datetime:
    told = {
        "gate": gate,
        "platform": reading.platform,
        "state": reading.state,
        "value": reading.value,
        "threshold": reading.threshold,
    }
    state, since = known.get((gate, reading.platform), (None, None))
    if state == reading.state and since is not None:
        connection.execute(_SAME, told)
        return since
    connection.execute(_END, told)
    row = connection.execute(_NEW, told).fetchone()
    assert row is not None
    begun: datetime = row[0]
    return begun
