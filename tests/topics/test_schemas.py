"""The schemas: their examples, what they refuse, and what may change in one that is released."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from headrace import config
from headrace.errors import ConfigError, HeadraceError
from headrace.stream import asyncapi, schemas, topology
from headrace.stream.compatibility import problems

RELEASED = Path(__file__).resolve().parents[1] / "schemas_released"
SETTINGS = config.load({"config": "/dev/null"})
NAMES = schemas.names(SETTINGS)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_fits_strictly_and_tolerantly(name):
    schema = schemas.load(SETTINGS, name)
    assert schema["$id"] == f"urn:headrace:{name}"
    assert len(schema["examples"]) > 0
    strict = schemas.validator(SETTINGS, name)
    tolerant = schemas.validator(SETTINGS, name, tolerant=True)
    for example in schema["examples"]:
        assert schemas.complaint(strict, example) is None
        newer = {**example, "of_a_later_day": 1}
        assert not strict.is_valid(newer)
        # A deletion holds nothing but the identity, whoever reads it.
        assert tolerant.is_valid(newer) or example.get("deleted")


def test_every_topic_names_a_schema_that_exists():
    assert {topic.schema for topic in topology.load(SETTINGS).topics.values()} - {None} == set(
        NAMES
    )
    with pytest.raises(HeadraceError, match=r"there is no schema raw_post\.v9; there are: alert"):
        schemas.load(SETTINGS, "raw_post.v9")


POST = {"id": "post:reddit:a", "kind": "post", "platform": "reddit", "text": ""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": None}, "text: "),
        ({"text": 5}, "text: 5 is not of type"),
        ({"id": "a\u0000b"}, "id: "),
        ({"id": "x" * 501}, "id: "),
        ({"id": ""}, "id: "),
        ({"platform": "Reddit"}, "platform: "),
        ({"created_at": "2026-03-01 12:00"}, "created_at: "),
        ({"created_at": "2026-03-01T12:00:00+02:00"}, "created_at: "),
        ({"metrics": {"likes": "5"}}, "metrics.likes: "),
        ({"labels": {"a": []}}, "labels.a: "),
        ({"deleted": False}, "deleted: "),
        ({"deleted": True}, "more than 4 properties"),
        ({"txt": "a"}, "txt"),
    ],
)
def test_a_raw_post_that_is_none_is_refused_with_a_reason(change, reason):
    validator = schemas.validator(SETTINGS, "raw_post.v1")
    assert schemas.complaint(validator, POST) is None
    assert reason in (schemas.complaint(validator, POST | change) or "")


def test_a_reason_is_short_however_long_the_value():
    validator = schemas.validator(SETTINGS, "raw_post.v1")
    assert len(schemas.complaint(validator, POST | {"text": ["x" * 1_000_000]}) or "") < 400


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"outcome": "ok", "result": {"entities": []}}, True),
        ({"outcome": "ok"}, False),
        ({"outcome": "drop", "reason": "language: ms"}, True),
        ({"outcome": "drop"}, False),
        ({"outcome": "deleted"}, True),
        ({"outcome": "deleted", "result": {"entities": []}}, False),
        ({"outcome": "gone"}, False),
    ],
)
def test_an_outcome_has_what_belongs_to_it(change, fits):
    envelope = {
        "id": "post:reddit:a",
        "kind": "post",
        "platform": "reddit",
        "stage": "entities",
        "version": "1",
        "at": "2026-03-01T12:00:00Z",
    }
    assert schemas.validator(SETTINGS, "enriched_entities.v1").is_valid(envelope | change) is fits


@pytest.mark.parametrize("name", sorted(path.stem for path in RELEASED.glob("*.json")))
def test_what_is_released_is_not_broken(name):
    """A schema may gain optional properties; anything else is a new version beside it."""
    released = schemas.read(RELEASED / f"{name}.json")
    present = schemas.load(SETTINGS, name)
    assert list(problems(released, present)) == []


def test_every_schema_is_released():
    assert {path.stem for path in RELEASED.glob("*.json")} == set(NAMES), (
        "a new schema is released by a copy in tests/schemas_released"
    )


def _edit(schema, *path):
    *keys, last, value = path
    for key in keys:
        schema = schema[key]
    if value is None:
        del schema[last]
    else:
        schema[last] = value


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (("properties", "likes", {"type": "integer"}), None),
        (("properties", "text", "description", "Other words."), None),
        (("examples", []), None),
        (("properties", "url", None), "/properties/url is gone"),
        (("properties", "url", "maxLength", 10), "/properties/url/maxLength was 8192, is 10"),
        (("properties", "url", "maxLength", None), "/properties/url/maxLength is gone"),
        (("properties", "url", "minLength", 1), "/properties/url/minLength is new"),
        (("properties", "text", "type", ["string", "null"]), "/properties/text/type was"),
        (("properties", "native_id", "type", 0, "number"), "/properties/native_id/type/0 was"),
        (("required", ["id", "kind"]), "platform is required no longer"),
        (("required", ["id", "kind", "platform", "url"]), "url is required now"),
        (("else", "required", ["text", "url"]), "/else/required: url is required now"),
        (("additionalProperties", True), "/additionalProperties was False, is True"),
        (
            ("properties", "extra", "properties", {"a": {"type": "string"}}),
            "/properties/extra/properties/a is new",
        ),
    ],
)
def test_an_incompatible_edit_is_refused(path, problem):
    released = schemas.load(SETTINGS, "raw_post.v1")
    present = copy.deepcopy(released)
    _edit(present, *path)
    found = list(problems(released, present))
    assert (found == []) if problem is None else (problem in "\n".join(found))


def test_a_broken_schema_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read as JSON"):
        schemas.read(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="schema urn:x: "):
        schemas.compiled({"$id": "urn:x", "type": "strin"})


def test_asyncapi_is_whole():
    document = asyncapi.build(SETTINGS)

    def references(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "$ref":
                    yield inner
                else:
                    yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    assert document["asyncapi"] == "3.0.0"
    found = set(references(document))
    assert len(found) > 20
    for reference in found:
        at = document
        for key in reference.removeprefix("#/").split("/"):
            at = at[key]
    channel = document["channels"]["raw_posts_platform"]
    assert channel["address"] == "headrace.raw.posts.{platform}"
    assert "reddit" in channel["parameters"]["platform"]["enum"]
    operation = document["operations"]["text_reads_raw_posts_platform"]
    assert operation["action"] == "receive"
    assert operation["bindings"]["kafka"]["groupId"]["enum"] == ["headrace.text"]
    assert document["operations"]["text_writes_enriched_text"]["action"] == "send"
    assert document["operations"]["publish_raw_communities"]["action"] == "send"
