"""Dependencies point inwards: what knows what, held against every import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parent.parent


def imported(folder: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((CLONE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: imports are absolute here"
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("headrace", ("producers", "consumers", "tests", "bench")),
        ("producers", ("consumers", "tests", "bench")),
        ("consumers", ("producers", "tests", "bench")),
        ("headrace/stream", ("headrace.backlog", "headrace.models")),
        ("headrace/stores", ("headrace.backlog", "headrace.models")),
        ("headrace/models", ("headrace.stream", "headrace.stores", "headrace.backlog")),
        ("headrace/servers", ("headrace.stream", "headrace.stores", "headrace.backlog")),
    ],
)
def test_dependencies_point_inwards(folder: str, never: tuple[str, ...]) -> None:
    # The Python use puts the parts together, as cli.py does (by name).
    found = [(path, name) for path, name in imported(folder) if path != CLONE / "headrace/api.py"]
    assert found
    wrong = [
        f"{path.relative_to(CLONE)} imports {name}"
        for path, name in found
        if any(name == outer or name.startswith(f"{outer}.") for outer in never)
    ]
    assert wrong == []


def test_a_stage_knows_nothing_of_kafka() -> None:
    for stage in sorted((CLONE / "consumers").glob("*/stage.py")):
        names = [name for path, name in imported(f"consumers/{stage.parent.name}") if path == stage]
        wrong = [name for name in names if name.split(".")[0] in ("confluent_kafka", "psycopg")]
        wrong += [
            name
            for name in names
            if name.startswith("headrace.stream.") and not name.startswith("headrace.stream.stage")
        ]
        assert wrong == [], stage
