"""YAML files that people write: every complaint names the file and the line.

YAML 1.2's booleans (true and false only, so that `no` and `on` stay words) and no dates: a value
is what it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from headrace.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[str | int]


@dataclass(frozen=True)
class Document:
    """A YAML file's value (plain Python), and the line of every key and item in it."""

    path: Path
    value: Any
    lines: dict[tuple[str | int, ...], int]

    def where(self, location: Location = ()) -> str:
        """ "file:line" of a key, or of the nearest thing around it."""
        keys = tuple(location)
        while keys not in self.lines and keys:
            keys = keys[:-1]
        return f"{self.path}:{self.lines.get(keys, 1)}"

    def error(self, location: Location, message: str) -> ConfigError:
        key = dotted(location)
        return ConfigError(f"{self.where(location)}: {f'{key}: ' if key else ''}{message}")

    def check(self, model: type[Model], location: Location = ()) -> Model:
        """The value at `location` as a model; a ConfigError names what does not fit, and where."""
        value = self.value
        for key in location:
            value = value[key]
        try:
            return model.model_validate({} if value is None else value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            inner = known_location(value, first["loc"])
            raise self.error((*location, *inner), explain(first, model)) from None


def read(path: Path) -> Document:
    """The file as a Document. Raises ConfigError where it cannot be read or is not YAML."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    loader = _Loader(text)
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        node = loader.get_single_node()
        value = None if node is None else _construct(loader, node, (), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or error.context or "not YAML"
        raise ConfigError(f"{path}:{line}: {problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    return Document(path, value, lines)


def dotted(location: Location) -> str:
    return ".".join(str(key) for key in location)


def known_location(value: Any, location: Location) -> tuple[str | int, ...]:
    """The part of a pydantic location that exists in the value (tags of unions do not)."""
    known: list[str | int] = []
    for key in location:
        if isinstance(value, dict):
            if key not in value:
                if key == location[-1]:
                    known.append(key)
                continue
        elif not (isinstance(value, list | tuple) and isinstance(key, int) and key < len(value)):
            continue
        known.append(key)
        value = value[key]
    return tuple(known)


def explain(error: Any, model: type[BaseModel]) -> str:
    """A pydantic error in a person's words; an unknown key gets the nearest known one."""
    if error["type"] == "extra_forbidden":
        names = field_names(model, error["loc"][:-1])
        close = get_close_matches(str(error["loc"][-1]), names, 1)
        if close:
            return f"unknown key; did you mean {close[0]}?"
        return f"unknown key; known are {', '.join(names)}" if names else "unknown key"
    if error["type"] == "missing":
        return "is required"
    if error["type"] in (
        "model_type",
        "model_attributes_type",
        "dict_type",
        "dict_attributes_type",
    ):
        return "should be keys and values"
    if error["type"] == "string_pattern_mismatch":
        return f"should look like {error['ctx']['pattern']}, not {error.get('input')!r}"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return message
    wanted = (
        f"should be {message}" if message != error["msg"] else message[:1].lower() + message[1:]
    )
    shown = error.get("input")
    if isinstance(shown, str | int | float | bool) and len(str(shown)) <= 60:
        return f"{wanted}, not {shown!r}"
    return wanted


def field_names(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that a model knows at a location inside it; none where that is not a model."""
    current: Any = model
    for key in location:
        fields = getattr(current, "model_fields", None)
        if fields is None or key not in fields:
            # A mapping of names to models: step over the name.
            continue
        current = _model_in(fields[key].annotation)
        if current is None:
            return []
    return sorted(current.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's surprises."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _construct(
    loader: _Loader,
    node: yaml.Node,
    at: tuple[str | int, ...],
    lines: dict[tuple[str | int, ...], int],
) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*at, index), lines) for index, item in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    mapping: dict[Any, Any] = {}
    own = {id(key) for key, _ in node.value}
    loader.flatten_mapping(node)  # resolves `<<`
    written: set[Any] = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int):
            raise yaml.MarkedYAMLError(
                problem="a key must be a word or a number", problem_mark=key_node.start_mark
            )
        if id(key_node) in own:
            if key in written:
                raise yaml.MarkedYAMLError(
                    problem=f"{key}: the key stands here twice", problem_mark=key_node.start_mark
                )
            written.add(key)
        lines[(*at, key)] = key_node.start_mark.line + 1
        mapping[key] = _construct(loader, value_node, (*at, key), lines)
    return mapping
