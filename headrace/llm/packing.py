"""What is sent for some items, and what an answer says of each. Nothing here is sent or stored.

A task that packs one item renders the item's content and holds the answer to the task's schema.
One that packs more renders `items`, each with its number `n`, and the answer is
{"items": [{"n": 1, …}, …]}: joined by number, so that an item left out is known, and one that
nobody asked for is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.llm.endpoint import Endpoint
from headrace.llm.prompts import Messages, Prompt
from headrace.llm.redact import Redactor
from headrace.stream import schemas

_BYTES_A_TOKEN = 4  # about, in English; the ledger learns the true number afterwards
_ROOM = 2.0  # times what is expected …
_LEAST_ROOM = 256  # … and so many tokens
_QUOTED = 4_000  # characters of a bad answer that are shown to the model again
ROOM = ("max_tokens", "max_completion_tokens")  # the newer name is OpenAI's own
# What strict mode does not take. Answers are held to it all the same.
_LOOSE = frozenset(
    {
        *("$schema", "$id", "title", "default", "examples", "minLength", "maxLength"),
        *("uniqueItems", "minProperties", "maxProperties", "patternProperties", "propertyNames"),
        *("contains", "minContains", "maxContains"),
    }
)
_SORTED = orjson.OPT_SORT_KEYS


@dataclass(frozen=True)
class Reading:
    """How an answer is read.

    schema  JSON Schema of one item's answer
    pack    items in one call, at most
    """

    schema: Mapping[str, Any]
    pack: int

    @cached_property
    def validator(self) -> schemas.Validator:
        return schemas.compiled(dict(self.schema))


@dataclass(frozen=True)
class Task:
    """What is asked of every item.

    schema         JSON Schema of one item's answer
    pack           items in one call, at most
    output_tokens  expected of one item
    wanted         the schema that is sent, where it asks for more than `schema` insists on
    values         given to the prompt besides the items; part of the question
    """

    prompt: Prompt
    schema: Mapping[str, Any]
    pack: int = 1
    output_tokens: int = 500
    wanted: Mapping[str, Any] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.schema, self.pack)

    @property
    def validator(self) -> schemas.Validator:
        return self.reading.validator

    @property
    def reference(self) -> dict[str, Any]:
        """What makes an answer another one, besides its item and the model."""
        prompt = self.prompt
        said = {"prompt": [prompt.name, prompt.version, prompt.digest], "schema": self.schema}
        return said | ({"values": self.values} if self.values else {})


@dataclass(frozen=True)
class Item:
    """What is asked of one record (or one part of it).

    content  JSON-able, of this item alone: it is what the prompt is given, and what the key is of
    set      raised by regenerate only
    reason   why it is asked, for the ledger
    alone    parts that alone are asked for of the record: so it comes back from a batch
    """

    record: str
    part: str
    content: Mapping[str, Any] = field(hash=False)
    set: int = 1
    reason: str = "first"
    alone: tuple[str, ...] = ()

    def key(self, stage: str, task: Task, model: str) -> bytes:
        """What an answer is kept under: the same for the same question, whatever stands beside."""
        said = [stage, self.record, self.set, self.part, model, task.reference, self.content]
        return hashlib.sha256(orjson.dumps(said, default=_plain, option=_SORTED)).digest()


@dataclass(frozen=True)
class Request:
    """A request's body, the tokens that it is expected to take, and the most that it may answer."""

    body: dict[str, Any]
    input_tokens: int
    output_tokens: int
    most_tokens: int


@dataclass(frozen=True)
class Complaint:
    """What was wrong with an earlier answer, and that answer."""

    said: str
    answer: str


@dataclass
class Read:
    """What an answer says, by the items' places.

    good     values
    bad      why a value is none
    values   what the bad ones were
    fault    why nothing, or nothing after the last of these, could be read
    """

    good: dict[int, dict[str, Any]] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    fault: str | None = None

    def missing(self, count: int) -> list[int]:
        return [place for place in range(count) if place not in self.good and place not in self.bad]


def request(
    settings: Settings,
    endpoint: Endpoint,
    task: Task,
    items: Sequence[Item],
    *,
    room: float = 1.0,
    complaint: Complaint | None = None,
) -> Request:
    """One call for these items. `room`: times the tokens that an answer usually may take."""
    llm = settings.llm
    messages = _messages(settings, task, items)
    schema = _wanted(task, endpoint)
    if complaint is not None:
        # The schema in words: some endpoints leave response_format aside without saying so.
        messages += [
            {"role": "assistant", "content": complaint.answer[:_QUOTED]},
            {
                "role": "user",
                "content": f"This answer cannot be used: {complaint.said}. Answer once more, with "
                f"JSON that fits this schema and nothing else: {orjson.dumps(schema).decode()}",
            },
        ]
    expected = task.output_tokens * len(items)
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": _name(task.prompt), "strict": True, "schema": schema},
        },
    }
    if llm.temperature is not None:
        body["temperature"] = llm.temperature
    body[ROOM[endpoint.official]] = int(room * (_LEAST_ROOM + _ROOM * expected))
    if any(name in llm.request for name in ROOM):
        del body[ROOM[endpoint.official]]
    body |= llm.request
    most = next(body[name] for name in ROOM if name in body)
    if not isinstance(most, int):  # what a call may cost at most has to be known
        raise ConfigError(f"llm.request: max_tokens is a number, not {most}")
    size = sum(tokens(message["content"]) + 4 for message in messages)
    size += len(orjson.dumps(schema)) // _BYTES_A_TOKEN
    return Request(body, size, expected, most)


def tokens(text: str) -> int:
    """About how many, where nobody has counted."""
    return len(text.encode()) // _BYTES_A_TOKEN


def read(task: Task | Reading, count: int, text: str) -> Read:
    """What an answer to `count` items says. What can be read of a broken one counts."""
    if task.pack == 1:
        found = Read()
        try:
            _judge(task, found, 0, orjson.loads(_bare(text)))
        except orjson.JSONDecodeError as error:
            found.fault = f"it is not JSON: {error}"
        return found
    rows, fault = _rows(text)
    found = Read(fault=fault)
    for row in rows:
        number = row.get("n") if isinstance(row, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= count:
            continue  # nobody asked for it
        if number - 1 not in found.good:
            _judge(task, found, number - 1, {k: v for k, v in row.items() if k != "n"})
    return found


def again(task: Task, found: Read, places: Sequence[int], text: str) -> Complaint | None:
    """What to say of an answer when these places are asked for once more (as 1, 2, …)."""
    if task.pack == 1:
        return Complaint(found.fault or found.bad[places[0]], text)
    bad = [(number, place) for number, place in enumerate(places, 1) if place in found.bad]
    if not bad:
        # Where the others are well, the old answer's numbers would mean other items.
        return None if found.good else Complaint(found.fault or "nothing was answered", text)
    rows = [{"n": number, **_object(found.values[place])} for number, place in bad]
    said = "; ".join(f"item {number}: {found.bad[place]}" for number, place in bad[:10])
    return Complaint(said, orjson.dumps({"items": rows}).decode())


def _judge(task: Task | Reading, found: Read, place: int, value: Any) -> None:
    complaint = schemas.complaint(task.validator, value)
    if complaint is None and isinstance(value, dict):
        found.good[place] = value
        found.bad.pop(place, None)
    else:
        found.bad[place] = complaint or "it is not an object"
        found.values[place] = value


def _messages(settings: Settings, task: Task, items: Sequence[Item]) -> Messages:
    contents: list[dict[str, Any]] = [dict(item.content) for item in items]
    if settings.llm.redact:
        redactor = Redactor(settings.llm.redact_names)
        contents = [redactor.value(content) for content in contents]
    if task.pack == 1:
        return task.prompt.render(**{**task.values, **contents[0]})
    numbered = [{"n": number, **content} for number, content in enumerate(contents, 1)]
    return task.prompt.render(**{**task.values, "items": numbered})


def _wanted(task: Task, endpoint: Endpoint) -> dict[str, Any]:
    schema: dict[str, Any] = dict(task.wanted or task.schema)
    if not endpoint.embedded:  # it holds itself to all of it
        schema = _strict(schema)
    if task.pack == 1:
        return schema
    item = {
        **schema,
        "properties": {"n": {"type": "integer"}, **schema.get("properties", {})},
        "required": ["n", *schema.get("required", ())],
    }
    return {
        "type": "object",
        "properties": {"items": {"type": "array", "items": item}},
        "required": ["items"],
        "additionalProperties": False,
    }


def _strict(schema: Any, names: bool = False) -> Any:
    """The schema without what strict mode does not take; `names`: its keys are properties."""
    if isinstance(schema, Mapping):
        kept = {
            key: value
            if key in ("enum", "const")
            else _strict(value, key in ("properties", "$defs") and not names)
            for key, value in schema.items()
            if names or key not in _LOOSE
        }
        if not names and "properties" in kept:
            kept["additionalProperties"] = False
        return kept
    if isinstance(schema, list | tuple):
        return [_strict(value) for value in schema]
    return schema


def _rows(text: str) -> tuple[list[Any], str | None]:
    """The objects of {"items": […]}, those before the place where it breaks."""
    bare = _bare(text)
    try:
        value = orjson.loads(bare)
    except orjson.JSONDecodeError as error:
        return _before(bare), f"it is not JSON: {error}"
    rows = value.get("items") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        return [], "it has no list of items"
    return rows, None


def _before(text: str) -> list[Any]:
    """Whole objects in the outermost list of a text that breaks off."""
    start = text.find("[")
    rows: list[Any] = []
    depth, began, quoted, escaped = 0, -1, False, False
    for place in range(start + 1, len(text)) if start >= 0 else ():
        sign = text[place]
        if quoted:
            if escaped:
                escaped = False
            elif sign == "\\":
                escaped = True
            elif sign == '"':
                quoted = False
        elif sign == '"':
            quoted = True
        elif sign in "{[":
            if not depth:
                began = place
            depth += 1
        elif sign in "}]":
            depth -= 1
            if depth < 0:
                break
            if not depth:
                try:
                    rows.append(orjson.loads(text[began : place + 1]))
                except orjson.JSONDecodeError:
                    break
    return rows


def _bare(text: str) -> str:
    """Without the fence that some models put around it."""
    text = text.strip()
    if text.startswith("```"):
        text = text.partition("\n")[2].rpartition("```")[0] or text
    return text


def _object(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"value": value}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _name(prompt: Prompt) -> str:
    return "".join(sign if sign.isalnum() else "_" for sign in prompt.name)[:64]
