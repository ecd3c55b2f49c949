"""A schema with its tables, empty for each test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.stores.conftest import Database, databases

__all__ = ["databases"]


@pytest.fixture(scope="module")
def schema(databases: Callable[..., Database]) -> Database:
    return databases()


@pytest.fixture
def database(schema: Database) -> Database:
    schema.empty()
    schema.sql("TRUNCATE job_runs, job_current, metrics, gate_states, windows")
    return schema
