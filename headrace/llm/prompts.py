"""Prompts are files beside their stage: `<package>/prompts/<name>.v<number>.j2`.

    --- system
    You describe communities.
    --- user
    {{ community.name }}: {{ posts | json }}

Each part is a message and a Jinja2 template of its own, so that no text in it can begin another.
The highest version is used; a changed file without a new number counts as changed all the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import orjson

from headrace.errors import HeadraceError

Messages = list[dict[str, str]]

_FILE = re.compile(r"(?P<name>.+)\.v(?P<version>\d+)\.j2")
_PART = re.compile(r"^--- (system|user|assistant)[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A prompt of one version; `digest` is of its file."""

    name: str
    version: int
    digest: str
    parts: tuple[tuple[str, jinja2.Template], ...] = field(compare=False, repr=False)

    def render(self, **values: Any) -> Messages:
        """The messages. Raises ValueError naming the prompt where a value is missing."""
        try:
            return [
                {"role": role, "content": template.render(values).strip()}
                for role, template in self.parts
            ]
        except jinja2.TemplateError as error:
            raise ValueError(f"prompt {self}: {error}") from error

    def __str__(self) -> str:
        return f"{self.name}.v{self.version}"


def load(package: str, name: str) -> Prompt:
    """The highest version of a prompt. Raises HeadraceError where there is none or it is wrong."""
    found: dict[int, Any] = {}
    folder = resources.files(package) / "prompts"
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = _FILE.fullmatch(entry.name)
        if match and match["name"] == name:
            found[int(match["version"])] = entry
    if not found:
        raise HeadraceError(f"there is no prompt {folder}/{name}.v1.j2")
    version = max(found)
    return made(name, version, found[version].read_text(encoding="utf-8"))


def made(name: str, version: int, source: str) -> Prompt:
    """A prompt from its file's content."""
    source = source.replace("\r\n", "\n")
    pieces = _PART.split(source)
    if pieces[0].strip() or len(pieces) < 3:
        raise HeadraceError(
            f"prompt {name}.v{version}: begin with a line `--- system` or `--- user`"
        )
    try:
        parts = tuple(
            (role, _environment.from_string(text))
            for role, text in zip(pieces[1::2], pieces[2::2], strict=True)
        )
    except jinja2.TemplateSyntaxError as error:
        raise HeadraceError(f"prompt {name}.v{version}: {error}") from None
    return Prompt(name, version, hashlib.sha256(source.encode()).hexdigest()[:16], parts)


def _json(value: Any) -> str:
    """Compact, and non-ASCII characters as they are: fewer tokens."""
    if isinstance(value, jinja2.Undefined):
        str(value)  # says which one it is
    if isinstance(value, Mapping):
        value = dict(value)
    return orjson.dumps(value).decode()


_environment = jinja2.Environment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # it is text, not HTML
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["json"] = _environment.filters["tojson"] = _json
