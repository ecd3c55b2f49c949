"""What scores come to: docs/scoring.md says it, and SQL reckons it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.stores import postgres as database
from headrace.stores import scoring
from tests.llm.desk import project, settings_of

DOCS = Path(__file__).parents[2] / "docs" / "scoring.md"


@pytest.fixture(scope="module")
def settings(postgres: str) -> Iterator[Settings]:
    with project(postgres) as name:
        yield settings_of(postgres, None, name)


@pytest.fixture
def connection(settings: Settings) -> Iterator[psycopg.Connection]:
    with database.connect(settings, autocommit=True) as made:
        made.execute("TRUNCATE scores")
        yield made


def weighing(settings: Settings, **weights: float) -> Settings:
    named = {name: {"description": name, "weight": weight} for name, weight in weights.items()}
    own = settings.scores.model_validate({"dimensions": named})
    return settings.model_copy(update={"scores": own})


def weighted(connection: psycopg.Connection, scores: dict[str, Any]) -> float | None:
    query = "SELECT weighted_score(%s::jsonb)"
    row = connection.execute(query, [json.dumps(scores)]).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def test_the_formula_of_the_docs_is_that_of_sql(
    connection: psycopg.Connection, settings: Settings
) -> None:
    text = DOCS.read_text()
    table = {
        name: [cell.strip() for cell in rest.split("|") if cell.strip()]
        for name, rest in re.findall(r"^\| (dimension|weight|score) \|(.+)$", text, re.M)
    }
    found = re.search(r"\((.+)\) ÷ \((.+)\) = ([\d.]+)$", text, re.M)
    assert found is not None
    products, weights, result = found.groups()
    sums = [[float(n) for n in product.split(" × ")] for product in products.split(" + ")]
    # It is reckoned right, and of the numbers in the table.
    assert [float(weight) for weight in table["weight"]] == [weight for weight, _ in sums]
    assert [weight for weight, _ in sums] == [float(weight) for weight in weights.split(" + ")]
    missing = [score for (_, score), told in zip(sums, table["score"], strict=True) if told == "–"]
    assert missing == [5.0]
    assert sum(w * s for w, s in sums) / sum(w for w, _ in sums) == pytest.approx(float(result))
    # And SQL says the same.
    named = dict(zip(table["dimension"], table["weight"], strict=True))
    scores = dict(zip(table["dimension"], table["score"], strict=True))
    scoring.recompute(
        connection, weighing(settings, **{name: float(weight) for name, weight in named.items()})
    )
    scores = {name: float(score) for name, score in scores.items() if score != "–"}
    assert weighted(connection, scores) == pytest.approx(float(result))


def test_what_counts_and_what_does_not(connection: psycopg.Connection, settings: Settings) -> None:
    scoring.recompute(connection, weighing(settings, relevance=1, urgency=3))
    assert weighted(connection, {}) == 5.0
    assert weighted(connection, {"relevance": 9, "urgency": 1}) == 3.0
    assert weighted(connection, {"relevance": 9, "urgency": 1, "taken_out": 10}) == 3.0
    assert weighted(connection, {"relevance": 9, "renamed": 1}) == 6.0
    assert weighted(connection, {"relevance": 9, "urgency": None}) == 6.0
    scoring.recompute(connection, weighing(settings, relevance=1, urgency=0))
    assert weighted(connection, {"relevance": 9, "urgency": 1}) == 9.0
    scoring.recompute(connection, weighing(settings, relevance=0, urgency=0))
    assert weighted(connection, {"relevance": 9, "urgency": 1}) is None


def test_scores_are_reckoned_anew_by_pages_and_by_one_at_a_time(
    connection: psycopg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 7)
    connection.execute(
        "INSERT INTO scores SELECT 'post:reddit:' || n, 'scores', '{\"relevance\": 8}', 8, 'v', 1,"
        " 't', 0, n, n FROM generate_series(1, 30) n"
    )
    told: list[int] = []
    wanted = weighing(settings, relevance=1, urgency=1)
    assert scoring.recompute(connection, wanted, told.append) == (30, 30)
    assert told == [7, 14, 21, 28, 30]
    assert connection.execute("SELECT DISTINCT weighted FROM scores").fetchall() == [(6.5,)]
    assert scoring.recompute(connection, wanted) == (30, 0)
    assert not scoring.differs(connection, wanted)
    with database.connect(settings, autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock({scoring._ONE})".encode())
        with pytest.raises(HeadraceError, match="another command is reckoning"):
            scoring.recompute(connection, wanted)
