"""What a mapping may say of a field, and the Python code that does it.

    title                                a column, or a path: user.name, media[0].url
    "{title}\\n\\n{selftext}"              a template
    [tweet_id, id]                       the first that is something
    {from: permalink, regex: "/r/(\\w+)"} a part of it; also `values` (other names), `type`,
                                         and for moments `formats` and `zone`
    {const: en}                          always this
    "@stem"                              the file's name without endings; also @name, @folder, @row

A mapping is compiled once to one Python function, since it runs for every row: an expression
becomes a line of source over the functions of producers.convert. Only names and constants taken
from YAML go into the source, always by repr().
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

Kind = Literal["text", "number", "date", "id", "bool", "label", "json"]
_PLACE = re.compile(r"\{([^{}]+)\}")
_STEP = re.compile(r"[^.\[\]]+")
_FILE = {"@name": "file.name", "@stem": "file.stem", "@folder": "file.folder", "@row": "row_number"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Part(Strict):
    """An expression with more to say than a name."""

    source: Expression | None = Field(default=None, alias="from")
    const: str | int | float | bool | None = None
    regex: str | None = None
    values: dict[str, str | int | float | bool | None] | None = None
    type: Kind | None = None
    formats: tuple[str, ...] = ()
    zone: str | None = None

    @field_validator("formats", mode="before")
    @classmethod
    def _one_format(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("regex")
    @classmethod
    def _is_regex(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from None
        return value

    @field_validator("zone")
    @classmethod
    def _is_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, ValueError, OSError):
                raise ValueError(f"no time zone: {value}; write it as Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _has_source(self) -> Part:
        if (self.source is None) == (self.const is None):
            raise ValueError("needs either from or const")
        return self


class Digest(Strict):
    """An id made from identifying fields."""

    hash: tuple[Expression, ...] = Field(min_length=1)


def _known_file_part(value: str) -> str:
    if not value:
        raise ValueError("is empty")
    for name in columns_of(value):
        if name.startswith("@") and name not in _FILE:
            raise ValueError(f"{name} is not known; there are {', '.join(_FILE)}")
    return value


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return "digest" if "hash" in value else "part"
    if isinstance(value, BaseModel):
        return "digest" if isinstance(value, Digest) else "part"
    return "list" if isinstance(value, list | tuple) else "name"


_Named = Annotated[str, AfterValidator(_known_file_part), Tag("name")]
_Parted = Annotated[Part, Tag("part")]
# By shape, so that a complaint is about what was meant and not about all that it might have been.
Single = Annotated[_Named | _Parted, Discriminator(_shape)]
Expression = Annotated[
    _Named | _Parted | Annotated[tuple[Single, ...], Tag("list")], Discriminator(_shape)
]
Identity = Annotated[
    _Named
    | _Parted
    | Annotated[Digest, Tag("digest")]
    | Annotated[
        tuple[
            Annotated[_Named | _Parted | Annotated[Digest, Tag("digest")], Discriminator(_shape)],
            ...,
        ],
        Tag("list"),
    ],
    Discriminator(_shape),
]


def columns_of(expression: Any) -> Iterable[str]:
    """Every column or path that an expression names."""
    if isinstance(expression, str):
        yield from _PLACE.findall(expression) or [expression]
    elif isinstance(expression, Part):
        if expression.source is not None:
            yield from columns_of(expression.source)
    elif isinstance(expression, Digest):
        for part in expression.hash:
            yield from columns_of(part)
    elif isinstance(expression, tuple | list):
        for part in expression:
            yield from columns_of(part)


def steps_of(path: str) -> tuple[str, ...]:
    return tuple(_STEP.findall(path))


class Source:
    """Turns expressions into Python source; `names` holds the constants that it speaks of."""

    def __init__(self, platform: str, names: dict[str, Any], constant: Callable[[Any], str]):
        self._platform = platform
        self.names = names
        self._constant = constant

    def assign(self, expression: Any, kind: Kind, field: str) -> list[str]:
        """Lines that leave the expression's value in `value`; a lacking column costs no call."""
        if not isinstance(expression, str) or _PLACE.search(expression):
            return [f"value = {self.value(expression, kind, field)}"]
        column = self._column(expression)
        converted = self.value(expression, kind, field).replace(column, "value", 1)
        return [f"value = {column}", f"if value is not None: value = {converted}"]

    def value(self, expression: Any, kind: Kind, field: str) -> str:
        """Source of the expression's value as the kind; "" or None at run time for nothing."""
        if isinstance(expression, tuple | list):
            return f"first({', '.join(self.value(e, kind, field) for e in expression)})"
        if isinstance(expression, Digest):
            parts = ", ".join(self.value(e, "text", field) for e in expression.hash)
            return f"digest({self._platform!r}, [{parts}])"
        formats: tuple[str, ...] = ()
        zone = None
        if isinstance(expression, Part):
            kind = expression.type or kind
            formats, zone = expression.formats, expression.zone
            if expression.const is not None and kind in ("text", "label", "json"):
                return repr(expression.const)
        if isinstance(expression, str) and kind == "id" and _PLACE.search(expression):
            return self._template(expression, "glue_all", "ident")
        raw = self._raw(expression, field)
        if kind == "text":
            return raw if raw.startswith(("glue(", "search(")) else f"text({raw})"
        if kind == "number":
            return f"number({raw}, note, {field!r})"
        if kind == "date":
            at = f"zone_named({zone!r})" if zone else "None"
            return f"moment({raw}, {formats!r}, {at}, note, {field!r})"
        if kind == "id":
            return f"ident({raw})" if field == "id" else f"reference({raw}, note, {field!r})"
        if kind == "bool":
            return f"flag({raw}, note, {field!r})"
        return f"label({raw})" if kind == "label" else f"extra({raw})"

    def _raw(self, expression: Any, field: str) -> str:
        if isinstance(expression, str):
            if _PLACE.search(expression):
                return self._template(expression, "glue", "text")
            return self._column(expression)
        if isinstance(expression, tuple | list):
            return f"first({', '.join(self._raw(e, field) for e in expression)})"
        raw = (
            repr(expression.const)
            if expression.source is None
            else self._raw(expression.source, field)
        )
        if expression.regex is not None:
            raw = f"search({self._constant(re.compile(expression.regex))}, {raw})"
        if expression.values is not None:
            raw = f"lookup({self._constant(dict(expression.values))}, {raw})"
        return raw

    def _template(self, template: str, glue: str, convert: str) -> str:
        pieces = _PLACE.split(template)
        code = [
            f"{convert}({self._column(piece)})" if place % 2 else repr(piece)
            for place, piece in enumerate(pieces)
        ]
        return f"{glue}({', '.join(code)})"

    def _column(self, name: str) -> str:
        if name in _FILE:
            return _FILE[name]
        steps = steps_of(name)
        if steps == (name,) or not steps:
            return f"get({name!r})"
        return f"dig(row, {name!r}, {steps!r})"


for _model in (Part, Digest):
    _model.model_rebuild()
