"""A schema with its tables, empty for each test; gates use it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.stream.topology import Job
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


@pytest.fixture
def job(database: Database) -> Job:
    return database.topology.jobs["metrics"]
