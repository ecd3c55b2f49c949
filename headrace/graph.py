"""Names of nodes and edges. Pure."""

from __future__ import annotations

import uuid

_EDGES = uuid.UUID("b52f1f5c-3c0e-5d0b-8f43-6d7f2a1c9e04")
_PERSONA, _COMMUNITY = "persona:", "community:"


def persona_id(community: str, set: int, place: int) -> str:
    """persona:<platform>:<slug>:<set>-<place>, of a community's record id; places from 1."""
    return f"{_PERSONA}{community.removeprefix(_COMMUNITY)}:{set}-{place:02}"


def record_of(node: str) -> str:
    """The record that a node was made of, by the node's id (in SQL: function record_of)."""
    if not node.startswith(_PERSONA):
        return node
    return f"{_COMMUNITY}{node.removeprefix(_PERSONA).rpartition(':')[0]}"


def edge_id(kind: str, source: str, target: str) -> uuid.UUID:
    return uuid.uuid5(_EDGES, f"{kind}\n{source}\n{target}")
