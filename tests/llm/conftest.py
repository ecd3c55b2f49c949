from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.llm.books import Books
from tests.stores.conftest import Database, database, databases, shared_database

__all__ = ["database", "databases", "shared_database"]  # fixtures of tests/stores


@pytest.fixture
def books(database: Database) -> Iterator[Books]:
    made = Books(database)
    yield made
    made.close()
