"""What stands of a record in a stage after several outcomes came, in whatever order they came.

The order of outcomes is (root revision, rank of the input, own rank, place in enriched.<stage>);
the latest stands. `merge` is commutative and associative, so any order of arrival ends the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

NO_WHOLE = -1  # input_rank of a state that has parts only


class Place(NamedTuple):
    """Where a message stands: incarnation of its topic, partition, offset, time in milliseconds."""

    topic_id: str
    partition: int
    offset: int
    at: int

    def after(self, other: Place) -> bool:
        """Within an incarnation offsets decide (a key has one partition), else the time does."""
        if self.topic_id == other.topic_id:
            return self.offset > other.offset
        return (self.at, self.topic_id) > (other.at, other.topic_id)


class Vector(NamedTuple):
    """A vector that came with a result; its numbers are little-endian float32."""

    space: str
    dimensions: int
    numbers: bytes


class Served(NamedTuple):
    """An ok result that is served while a later outcome is not ok."""

    result: Mapping[str, Any]
    version: str
    rank: int
    input_rank: int
    root: Place
    out: Place
    at: str
    vector: Vector | None = None


class State(NamedTuple):
    """One row of table outcomes.

    parts    name of a part → [input rank, rank, *place of its message]; its value is result[name].
             Parts that are not ok have none: they stand behind every whole outcome
    earlier  the last ok result where the outcome is not ok itself
    floor    the newest deletion, which no older ok result may pass, where there is no `earlier`
    vector   came with the result; a row that was read from its table has none
    """

    record_id: str
    stage: str
    outcome: str
    reason: str | None
    result: Mapping[str, Any] | None
    version: str
    rank: int
    input_rank: int
    root: Place
    input: tuple[str, int, int]
    out: Place
    at: str
    parts: Mapping[str, list[Any]] | None = None
    earlier: Served | None = None
    floor: Place | None = None
    vector: Vector | None = None

    @property
    def served(self) -> Served | None:
        if self.outcome != "ok":
            return self.earlier
        return Served(
            self.result or {},
            self.version,
            self.rank,
            self.input_rank,
            self.root,
            self.out,
            self.at,
            self.vector,
        )


def later(one: State | Served, other: State | Served) -> bool:
    """Whether `one` comes after `other` in the order of outcomes."""
    if not _same_place(one.root, other.root):
        return one.root.after(other.root)
    ranks, others = (one.input_rank, one.rank), (other.input_rank, other.rank)
    return ranks > others if ranks != others else one.out.after(other.out)


def merge(stored: State, came: State) -> State:
    """Both in one; `stored` itself where nothing changes."""
    top, low = (came, stored) if later(came, stored) else (stored, came)
    if (stored.parts or came.parts) and _same_place(stored.root, came.root):
        top = _with_parts(top, low)
    if top.outcome == "ok":
        earlier = floor = None
    else:
        floor = _latest_floor(stored, came)
        earlier = None
        for candidate in (top.earlier, low.served):
            if candidate is None or (floor and not candidate.root.after(floor)):
                continue
            if earlier is None or later(candidate, earlier):
                earlier = candidate
        if earlier is not None:
            floor = None  # what came before it comes before `earlier` too
    if top.earlier is not earlier or top.floor is not floor:
        top = top._replace(earlier=earlier, floor=floor)
    return stored if top == stored else top


def _same_place(one: Place, other: Place) -> bool:
    return one.topic_id == other.topic_id and one.offset == other.offset


def _latest_floor(one: State, other: State) -> Place | None:
    floor = None
    for state in (one, other):
        own = state.root if state.outcome == "deleted" else state.floor
        if own is not None and (floor is None or own.after(floor)):
            floor = own
    return floor


def _with_parts(base: State, rest: State) -> State:
    """The later whole outcome of a revision, with the parts that are later still."""
    parts: dict[str, list[Any]] = {}
    values: dict[str, Any] = {}
    for state in (rest, base):
        for name, order in (state.parts or {}).items():
            if base.input_rank != NO_WHOLE and not _later_part(order, _order(base)):
                continue
            if name in parts and not _later_part(order, parts[name]):
                continue
            parts[name], values[name] = order, (state.result or {}).get(name)
    if not parts:
        return base
    # A base that is not ok leaves the parts alone to stand; its place in the order is kept.
    result = {**(base.result or {}), **values}
    return base._replace(outcome="ok", reason=None, result=result, parts=parts)


def _order(state: State) -> list[Any]:
    return [state.input_rank, state.rank, *state.out]


def _later_part(one: list[Any], other: list[Any]) -> bool:
    if one[:2] != other[:2]:
        return one[:2] > other[:2]
    return Place(*one[2:]).after(Place(*other[2:]))
