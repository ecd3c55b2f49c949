"""Whether a community's personas are what they should be. Pure, but for `read`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from consumers.personas import making, reading
from headrace import words
from headrace.config import Settings

LEAST_AGES = 4  # of the age ranges there are, in a set of ten and more …
MOST_OF_ONE_AGE = 0.5  # … and the share of any of them
LEAST_OCCUPATIONS = 0.8  # different ones, as a share of the personas
ENOUGH = 10  # personas that a spread can be told of
NAMED = 5  # of each kind of trouble

_VECTORS = """
SELECT v.record_id, v.vector FROM vectors v
JOIN nodes n ON n.id = v.record_id
WHERE n.root_id = %s AND n.kind = 'persona' AND n.superseded_at IS NULL AND v.stage = 'personas'
  AND v.space = (SELECT w.space FROM vectors w WHERE w.record_id = n.root_id
                 AND w.stage = 'personas' ORDER BY w.stored_at DESC LIMIT 1)
"""


@dataclass(frozen=True, slots=True)
class Report:
    """`findings` are what is wrong, a line each; nothing: all is well."""

    community: str
    name: str
    personas: int
    hidden: int
    evidence: int  # different posts that speak for them
    ages: int
    occupations: int
    closest: tuple[float, str, str] | None
    findings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            words.count(self.personas, "persona"),
            f"evidence from {words.count(self.evidence, 'post')}",
            f"{self.ages} of {len(making.AGES)} age ranges",
            words.count(self.occupations, "occupation"),
        ]
        if self.hidden:
            parts.insert(1, f"{self.hidden} hidden")
        if self.closest is not None:
            parts.append("closest pair {:.2f} ({}, {})".format(*self.closest))
        return f"{self.name}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        closest = self.closest
        return {
            "community": self.community,
            "personas": self.personas,
            "hidden": self.hidden,
            "evidence_posts": self.evidence,
            "age_ranges": self.ages,
            "occupations": self.occupations,
            "closest": None
            if closest is None
            else {"cosine": round(closest[0], 4), "personas": list(closest[1:])},
            "findings": self.findings,
        }


def read(connection: psycopg.Connection, settings: Settings, row: reading.Row) -> Report:
    """The report on one community, a row of reading.communities."""
    personas = list(reading.personas(connection, row["id"]))
    ids = sorted({id for one in personas for id in one["evidence"] or ()})
    there = reading.posts(connection, ids)
    vectors = {
        id: np.frombuffer(vector, dtype="<f4")
        for id, vector in connection.execute(_VECTORS, [row["id"]]).fetchall()
    }
    own = settings.personas
    return check(row, personas, there.keys(), vectors, count=own.count, similarity=own.similarity)


def check(
    row: reading.Row,
    personas: Sequence[Mapping[str, Any]],
    posts: Collection[str],
    vectors: Mapping[str, NDArray[np.float32]],
    *,
    count: int,
    similarity: float,
) -> Report:
    """`posts`: ids of evidence that exist; `vectors` by persona's id."""
    wrong: list[str] = []
    hidden = int(row["hidden"] or 0)
    if len(personas) + hidden < count:
        there = f"{len(personas) + hidden} of {count} are there"
        wrong.append(f"too few: {there}")
    missing = [name for name in ("about", "tone", "themes") if not row[name]]
    _add(wrong, "empty fields of the community", missing)
    empty = [
        f"{one['id']} ({', '.join(blank)})"
        for one in personas
        if (blank := [name for name in making.FIELDS if not _filled(one[name])])
    ]
    _add(wrong, "with empty fields", empty)
    gone = {one["id"]: [id for id in one["evidence"] or () if id not in posts] for one in personas}
    _add(wrong, "whose evidence is not there", [
        f"{id} ({', '.join(missing)})" for id, missing in gone.items() if missing
    ])  # fmt: skip
    odd = [f"{one['id']} ({one['age_range']})" for one in personas
           if one["age_range"] and one["age_range"] not in making.AGES]  # fmt: skip
    _add(wrong, "of no age range that there is", odd)
    names = Counter(str(one["name"]).casefold() for one in personas)
    _add(wrong, "names that several have", [name for name, often in names.items() if often > 1])
    with_vector = [one for one in personas if one["id"] in vectors]
    if len(with_vector) < len(personas):
        _add(wrong, "without a vector", [
            one["id"] for one in personas if one["id"] not in vectors
        ])  # fmt: skip
    closest, near = _pairs(with_vector, vectors, similarity)
    _add(wrong, f"pairs more alike than {similarity:g}", near)
    ages = Counter(one["age_range"] for one in personas)
    jobs = {str(one["occupation"]).casefold() for one in personas}
    if len(personas) >= ENOUGH:
        if len(ages) < LEAST_AGES:
            wrong.append(f"only {words.count(len(ages), 'age range')}: {', '.join(sorted(ages))}")
        age, most = ages.most_common(1)[0]
        if most > MOST_OF_ONE_AGE * len(personas):
            wrong.append(f"{most} of {len(personas)} are {age}")
        if len(jobs) < LEAST_OCCUPATIONS * len(personas):
            wrong.append(f"only {words.count(len(jobs), 'occupation')} among {len(personas)}")
    evidence = {id for one in personas for id in one["evidence"] or ()}
    return Report(
        row["id"],
        reading.title(row),
        len(personas),
        hidden,
        len(evidence),
        len(ages),
        len(jobs),
        closest,
        wrong,
    )


def _pairs(
    personas: Sequence[Mapping[str, Any]],
    vectors: Mapping[str, NDArray[np.float32]],
    similarity: float,
) -> tuple[tuple[float, str, str] | None, list[str]]:
    """The closest two, and a line for each pair that is too close."""
    if len(personas) < 2:
        return None, []
    rows = np.stack([vectors[one["id"]] for one in personas])
    cosines = np.triu(rows @ rows.T, k=1) - np.tril(np.full((len(rows), len(rows)), 2.0))
    first, second = np.unravel_index(int(cosines.argmax()), cosines.shape)
    closest = (
        float(cosines[first, second]),
        str(personas[int(first)]["name"]),
        str(personas[int(second)]["name"]),
    )
    near = [
        f"{personas[int(a)]['id']} and {personas[int(b)]['id']} ({float(cosines[a, b]):.2f})"
        for a, b in np.argwhere(cosines > similarity)
    ]
    return closest, near


def _filled(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_filled(one) for one in value)
    return isinstance(value, str) and bool(value.strip())


def _add(wrong: list[str], what: str, found: Sequence[str]) -> None:
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        wrong.append(f"{len(found)} {what}: {'; '.join(found[:NAMED])}{more}")
