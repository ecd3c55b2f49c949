"""What may change in a schema under its name and version: nothing that breaks a reader.

In one version optional properties may be added to an object, and its words (title, description,
examples) may change. Anything else is a new version, `raw_post.v2`, with an upcaster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_WORDS = frozenset({"$id", "$schema", "$comment", "title", "description", "examples", "deprecated"})
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "dependentSchemas"})


def problems(released: Any, present: Any, at: str = "") -> Iterator[str]:
    """Why `present` may not take the place of `released`, a line each; nothing if it may.

    Writers of the one and readers of the other must understand each other both ways, so a
    constraint is neither tightened nor loosened.
    """
    if not isinstance(released, dict) or not isinstance(present, dict):
        yield from _of_values(released, present, at)
        return
    for key in sorted((released.keys() | present.keys()) - _WORDS):
        where = f"{at}/{key}"
        if key == "properties":
            yield from _of_properties(released, present, where)
        elif key == "required":
            yield from _of_required(released.get(key, []), present.get(key, []), where)
        elif key not in present:
            yield f"{where} is gone"
        elif key not in released:
            yield f"{where} is new"
        elif key in _BY_NAME:
            yield from _of_names(released[key], present[key], where)
        else:
            yield from problems(released[key], present[key], where)


def _of_values(released: Any, present: Any, at: str) -> Iterator[str]:
    if isinstance(released, list) and isinstance(present, list) and len(released) == len(present):
        for index, (before, after) in enumerate(zip(released, present, strict=True)):
            yield from problems(before, after, f"{at}/{index}")
    elif released != present or isinstance(released, bool) != isinstance(present, bool):
        yield f"{at} was {released!r}, is {present!r}"


def _of_properties(released: Any, present: Any, at: str) -> Iterator[str]:
    before, after = released.get("properties", {}), present.get("properties", {})
    closed = False in (
        released.get("additionalProperties"),
        released.get("unevaluatedProperties"),
    )
    for name in sorted(before.keys() | after.keys()):
        where = f"{at}/{name}"
        if name not in after:
            yield f"{where} is gone"
        elif name in before:
            yield from problems(before[name], after[name], where)
        elif not closed:
            yield f"{where} is new, where messages could hold anything under that name"


def _of_required(before: list[str], after: list[str], at: str) -> Iterator[str]:
    for name in sorted(set(before) - set(after)):
        yield f"{at}: {name} is required no longer, but readers rely on it"
    for name in sorted(set(after) - set(before)):
        yield f"{at}: {name} is required now, but older messages lack it"


def _of_names(before: Any, after: Any, at: str) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"{at}/{name} is gone"
        elif name in before:
            yield from problems(before[name], after[name], f"{at}/{name}")
