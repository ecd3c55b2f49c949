from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from headrace import cli, config
from headrace.config import Settings
from tests.llm.books import Books
from tests.stores.conftest import Database, database, databases, shared_database

__all__ = ["database", "databases", "shared_database"]  # fixtures of tests/stores


Say = Callable[..., str]


@pytest.fixture
def books(database: Database) -> Iterator[Books]:
    made = Books(database)
    yield made
    made.close()


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """`say(settings, "llm", "status")`: what the command prints, errors too."""
    handlers = logging.getLogger().handlers[:]

    def answer(settings: Settings, *words: str) -> str:
        capfd.readouterr()
        with monkeypatch.context() as environment:
            for name, value in config.as_environment(settings).items():
                environment.setenv(name, value)
            cli.main(words)
        told = capfd.readouterr()
        return told.out + told.err

    yield answer
    logging.getLogger().handlers[:] = handlers
