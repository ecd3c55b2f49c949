"""JSON Schemas 2020-12 of the messages, one file a message type and version (`raw_post.v1.json`).

Who writes is held to a schema strictly; who reads tolerates what it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from headrace.config import Settings
from headrace.errors import ConfigError, HeadraceError

Validator = jsonschema_rs.Draft202012Validator

_CLOSED = ("additionalProperties", "unevaluatedProperties")
_REASON_CHARACTERS = 300


def names(settings: Settings) -> tuple[str, ...]:
    """Every schema there is: "raw_post.v1", …"""
    return tuple(sorted(path.stem for path in settings.path("schemas").glob("*.json")))


def load(settings: Settings, name: str) -> dict[str, Any]:
    """The schema as written. Raises HeadraceError where there is none, ConfigError for bad JSON."""
    folder = settings.path("schemas")
    return read(folder / f"{name}.json")


def read(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.json")))
        raise HeadraceError(f"there is no schema {path.stem}; there are: {known}") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a schema is a JSON object")
    return value


def validator(settings: Settings, name: str, *, tolerant: bool = False) -> Validator:
    """A compiled schema: `.is_valid(value)`, `.iter_errors(value)`. Make it once and keep it.

    tolerant: as a reader sees it, who lets unknown properties pass.
    """
    schema = load(settings, name)
    return compiled(tolerated(schema) if tolerant else schema)


def compiled(schema: dict[str, Any]) -> Validator:
    """Raises ConfigError where the schema itself is wrong."""
    try:
        return Validator(schema, validate_formats=False)
    except ValueError as error:
        raise ConfigError(f"schema {schema.get('$id', '')}: {_short(str(error))}") from None


def tolerated(schema: Any) -> Any:
    """The schema without its refusal of unknown properties, at every depth."""
    if isinstance(schema, dict):
        return {
            key: value if key in ("examples", "enum", "const") else tolerated(value)
            for key, value in schema.items()
            if not (key in _CLOSED and value is False)
        }
    if isinstance(schema, list):
        return [tolerated(value) for value in schema]
    return schema


def complaint(validator: Validator, value: Any) -> str | None:
    """Why a value does not fit, in one short line ("created_at: …"); None if it does."""
    for error in validator.iter_errors(value):
        where = ".".join(str(key) for key in error.instance_path)
        return _short(f"{where}: {error.message}" if where else error.message)
    return None


def _short(text: str) -> str:
    """Messages quote the value, however long it is."""
    text = " ".join(text[: 4 * _REASON_CHARACTERS].split())
    return text if len(text) <= _REASON_CHARACTERS else f"{text[:200]} … {text[-80:]}"
