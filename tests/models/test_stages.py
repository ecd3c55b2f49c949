"""The stages with local models: one outcome each, results as their schemas say."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from headrace.config import Sentiment, Settings
from headrace.errors import ConfigError
from headrace.models.embedding import decoded
from headrace.stream.stage import Context, Outcome, Process, Record

ROOT = Path(__file__).parents[2]
TEXTS = [
    "I love my new iPhone &amp; the #camera! Thanks @Apple https://t.co/x 😀",
    "Terima kasih banyak kak, wangi sangat bau dia",
    "यह बहुत अच्छा है",
    "",
    "...",
    "https://t.co/abc",
    "lol",
    "😀😀",
    "\x00\ud800 Obama said “no” in Boston \u202e",
    "a " * 50_000,
]


def stage(name: str, settings: Settings | None = None) -> Process:
    module = importlib.import_module(f"consumers.{name}.stage")
    process: Process = module.build(Context(settings or Settings(home=ROOT), name))
    return process


def records(texts: list[str]) -> list[Record]:
    return [
        Record(f"post:reddit:{number}", "post", "reddit", {"text": text})
        for number, text in enumerate(texts)
    ]


def envelope(name: str, record: Record, outcome: Outcome, version: str) -> dict[str, Any]:
    message = {
        "id": record.id,
        "kind": record.kind,
        "platform": record.platform,
        "stage": name,
        "outcome": outcome.kind,
        "version": version,
        "at": "2026-11-21T09:00:00.123Z",
        "reason": outcome.reason,
        "result": outcome.result,
    }
    return {key: value for key, value in message.items() if value is not None}


@pytest.mark.parametrize("name", ["text", "entities", "sentiment"])
def test_outcomes_fit_the_schema_and_do_not_depend_on_the_batch(name: str) -> None:
    schema = json.loads((ROOT / "schemas" / f"enriched_{name}.v1.json").read_text())
    validator = jsonschema_rs.Draft202012Validator(schema)
    process = stage(name)
    version = process.version  # type: ignore[attr-defined]
    batch = records(TEXTS)
    outcomes = list(process(batch))
    assert len(outcomes) == len(batch)
    for record, outcome in zip(batch, outcomes, strict=True):
        validator.validate(json.loads(json.dumps(envelope(name, record, outcome, version))))
    assert list(process(batch[::-1])) == outcomes[::-1]
    assert [process([record])[0] for record in batch] == outcomes
    assert process([]) == []
    assert process([Record("r", "post", "x", {"id": "r", "text": None})])[0].reason == "empty"


@cache
def embedded() -> list[Record]:
    """What the stage embeddings makes of the texts it takes."""
    batch = records(TEXTS)
    outcomes = stage("embeddings")(batch)
    return [
        record._replace(value=outcome.result)
        for record, outcome in zip(batch, outcomes, strict=True)
        if outcome.result is not None
    ]


def test_embeddings_carry_text_and_vector_whatever_the_batch() -> None:
    process = stage("embeddings")
    batch = records(TEXTS)
    outcomes = list(process(batch))
    schema = json.loads((ROOT / "schemas" / "enriched_embeddings.v1.json").read_text())
    validator = jsonschema_rs.Draft202012Validator(schema)
    for record, outcome in zip(batch, outcomes, strict=True):
        validator.validate(envelope("embeddings", record, outcome, "1"))
    assert list(process(batch[::-1])) == outcomes[::-1]
    assert [process([record])[0] for record in batch] == outcomes
    assert process([]) == []
    dropped = [TEXTS[n] for n, outcome in enumerate(outcomes) if outcome.reason == "no words"]
    assert dropped == ["", "...", "https://t.co/abc", "😀😀"]
    first = outcomes[0].result
    assert first is not None
    assert first["clean"] == "I love my new iPhone & the #camera! Thanks @Apple 😀"
    assert len(decoded(first["vector"], first["dimensions"])) == 384
    assert len(outcomes[-1].result["clean"]) < 4_001  # type: ignore[index]


def test_sentiment_ml_reads_vectors() -> None:
    process = stage("sentiment_ml")
    schema = json.loads((ROOT / "schemas" / "enriched_sentiment_ml.v1.json").read_text())
    validator = jsonschema_rs.Draft202012Validator(schema)
    outcomes = list(process(embedded()))
    for record, outcome in zip(embedded(), outcomes, strict=True):
        validator.validate(envelope("sentiment_ml", record, outcome, process.version))  # type: ignore[attr-defined]
    assert list(process(embedded()[::-1])) == outcomes[::-1]
    assert [process([record])[0] for record in embedded()] == outcomes
    assert outcomes[0].result is not None
    assert (outcomes[0].result["label"], outcomes[0].result["language"]) == ("positive", "en")
    assert outcomes[1].reason in ("language: ms", "language: id")
    moods = {
        "The flight was delayed again and nobody told us why": "negative",
        "What a wonderful day, thank you all": "positive",
        "The meeting starts at 10 in room 4": "neutral",
    }
    batch = records(list(moods))
    made = [ok.result for ok in stage("embeddings")(batch)]
    found = process([one._replace(value=result) for one, result in zip(batch, made, strict=True)])
    assert [one.result["label"] for one in found] == list(moods.values())  # type: ignore[index]


def test_sentiment_ml_leaves_other_models_vectors_alone() -> None:
    first = embedded()[0]
    other = first._replace(value={**first.value, "model": "large"})
    assert stage("sentiment_ml")([other])[0].reason == "space: large-384"


def test_text_says_what_it_read() -> None:
    result = stage("text")(records(TEXTS))[0].result
    assert result is not None
    assert result["clean"] == "I love my new iPhone & the #camera! Thanks @Apple 😀"
    assert (result["language"], result["hashtags"], result["mentions"], result["links"]) == (
        "en",
        ["camera"],
        ["apple"],
        ["https://t.co/x"],
    )


def test_sentiment_drops_what_it_cannot_read() -> None:
    found = [(o.kind, o.reason) for o in stage("sentiment")(records(TEXTS))]
    assert found[0] == ("ok", None)
    assert found[1] in (("drop", "language: ms"), ("drop", "language: id"))
    assert found[2:8] == [
        ("drop", "language: hi"),
        ("drop", "empty"),
        ("drop", "empty"),
        ("drop", "empty"),
        ("drop", "language: und"),
        ("drop", "language: und"),
    ]


@pytest.mark.parametrize("name", ["sentiment", "sentiment_ml"])
def test_sentiment_refuses_a_language_that_its_model_lacks(name: str) -> None:
    settings = Settings(home=ROOT, sentiment=Sentiment(languages=("en", "ms")))
    with pytest.raises(ConfigError, match="cannot read ms"):
        stage(name, settings)


def test_entities_obey_the_threshold() -> None:
    record = Record("r", "post", "reddit", {"text": "We flew to Boston with Barack Obama"})
    (outcome,) = stage("entities")([record])
    assert outcome.result is not None
    assert [e["name"] for e in outcome.result["entities"]] == ["Boston", "Barack Obama"]
    never = Settings(home=ROOT).model_copy(
        update={"entities": Settings().entities.model_copy(update={"threshold": 1.0})}
    )
    (outcome,) = stage("entities", never)([record])
    assert outcome.result == {"entities": []}


def test_a_platform_may_name_another_list(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "platforms"
    folder.mkdir(parents=True)
    (folder / "forum.yaml").write_text("title: Forum\ndictionary: reddit.tsv\n")
    process = stage("entities", Settings(home=tmp_path, platforms=folder))
    term = next(iter((ROOT / "config/dictionaries/reddit.tsv").read_text().split("\n\n")))
    name = next(line.split("\t")[0] for line in term.splitlines() if not line.startswith("#"))
    text = f"we spoke about {name} with {name} people"
    (outcome,) = process([Record("post:forum:1", "post", "forum", {"text": text})])
    assert name in [found["text"] for found in (outcome.result or {})["entities"]]

    (folder / "forum.yaml").write_text("title: Forum\ndictionary: nothing.tsv\n")
    with pytest.raises(ConfigError, match=r"forum.yaml: dictionary: there is no nothing.tsv"):
        stage("entities", Settings(home=tmp_path, platforms=folder))
