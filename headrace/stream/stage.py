"""What a stage sees: records in, one outcome each. Nothing here knows Kafka, offsets or databases.

A stage is a module with a `build(context)` that returns a callable of a batch:

    def build(context: Context) -> Process:
        def process(batch: Sequence[Record]) -> list[Outcome]:
            return [ok({"words": len(record.text.split())}) for record in batch]
        return process

The callable may carry a `version` attribute (its model's, say); it is recorded with each outcome.
A method `committed` of it is called when a batch has been written for good (to tell so, say).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from headrace.config import Settings
from headrace.errors import Pause as Pause  # a stage may raise them
from headrace.errors import Retry as Retry

Kind = Literal["ok", "drop", "dead", "deleted", "deferred"]


class Record(NamedTuple):
    """One record as a stage reads it.

    `value` is the raw record's decoded value for a stage that reads raw topics, and the envelope's
    `result` for one that reads `enriched.<stage>`. `parts` names what alone is asked for, when a
    part of an outcome is to be done again; empty: the whole. An outcome of parts that is not ok
    leaves what stands as it is.
    """

    id: str
    kind: str
    platform: str
    value: Mapping[str, Any]
    parts: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text as published (or passed on); empty where there is none."""
        text = self.value.get("text")
        return text if isinstance(text, str) else ""


class Outcome(NamedTuple):
    """What became of one record in one stage. Made by ok(), drop(), dead() and deferred()."""

    kind: Kind
    result: Mapping[str, Any] | None = None
    reason: str | None = None
    parts: tuple[str, ...] = ()


def ok(result: Mapping[str, Any], parts: Sequence[str] = ()) -> Outcome:
    """The result, JSON-ready. Named `parts` merge into an earlier result, not replace it."""
    return Outcome("ok", result, None, tuple(parts))


def drop(reason: str) -> Outcome:
    """The stage has nothing to say of this record, and why (short, groupable: "language: ms")."""
    return Outcome("drop", reason=reason)


def dead(reason: str) -> Outcome:
    """The record cannot be worked on; its original bytes go to the dead letters."""
    return Outcome("dead", reason=reason)


def deferred(reason: str) -> Outcome:
    """Not now: the offset is committed, the record stays pending and comes back by redo."""
    return Outcome("deferred", reason=reason)


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may know when it is built: the settings and its group's own name.

    worker    host and slot, the same again after a restart
    stopping  whether it should come to an end: what takes long may raise Retry then
    waiting   messages that its worker has still to read, as far as is known
    """

    settings: Settings
    group: str
    options: Mapping[str, Any] = field(default_factory=dict)
    worker: str = ""
    stopping: Callable[[], bool] = lambda: False
    waiting: Callable[[], int] = lambda: 0


Process = Callable[[Sequence[Record]], Sequence[Outcome]]
