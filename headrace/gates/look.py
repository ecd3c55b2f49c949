"""What a gate is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

from headrace import platforms
from headrace.config import Settings
from headrace.platforms import Platform
from headrace.stream.topology import Topology

State = Literal["pass", "fail", "unknown"]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer. `wanted` says for people what the value is held against ("> 0.8"); `what` is
    why it is not passed, `do` what to do about it."""

    platform: str | None  # None: the whole project
    state: State
    value: float | None
    threshold: float | None
    wanted: str
    what: str = ""
    do: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    description: str
    check: Callable[[Look], Iterable[Reading]]


class Look:
    """One snapshot for all gates, and what several of them ask for, asked once.

    `platforms` are those to look at; a gate says nothing of a platform without records.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        settings: Settings,
        topology: Topology,
        only: str | None = None,
    ) -> None:
        self.connection = connection
        self.settings = settings
        self.topology = topology
        self.only = only

    def rows(self, query: str, parameters: Any = None) -> list[Row]:
        cursor = self.connection.cursor(row_factory=dict_row)
        return cursor.execute(query.encode(), parameters).fetchall()

    def number(self, query: str, parameters: Any = None) -> int:
        """The one number that a query gives."""
        row = self.connection.execute(query.encode(), parameters).fetchone()
        return int(row[0]) if row and row[0] is not None else 0

    @cached_property
    def files(self) -> Mapping[str, Platform]:
        """The platforms' YAML files."""
        return platforms.load(self.settings)

    @cached_property
    def platforms(self) -> list[str]:
        """Those that have posts or comments, in order."""
        query = """
SELECT name FROM dim_platform p WHERE EXISTS (
  SELECT FROM records r WHERE r.platform_id = p.id AND NOT r.deleted AND r.kind <> 'community')
ORDER BY name
"""
        found = [str(row["name"]) for row in self.rows(query)]
        return [name for name in found if self.only in (None, name)]

    @cached_property
    def coverage(self) -> list[Row]:
        """The view coverage, of the platforms looked at."""
        found = self.rows("SELECT * FROM coverage ORDER BY platform, stage")
        return [row for row in found if row["platform"] in self.platforms]

    @cached_property
    def confidence(self) -> dict[str, Row]:
        """Per platform the mentions' mean and least confidence."""
        query = """
SELECT p.name AS platform, round(avg(m.confidence)::numeric, 6)::float8 AS mean,
       round(min(m.confidence)::numeric, 6)::float8 AS least, count(*) AS mentions
FROM entity_mentions m
JOIN records r ON r.id = m.record_id AND NOT r.deleted
JOIN dim_platform p ON p.id = r.platform_id
WHERE m.confidence IS NOT NULL
GROUP BY p.name
"""
        return {row["platform"]: row for row in self.rows(query)}
