"""Reading from the project's schema; what fails there is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.stores import postgres


@contextmanager
def in_words(settings: Settings) -> Iterator[None]:
    """What PostgreSQL fails with, as one line."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        raise HeadraceError(
            f"schema {settings.project} in PostgreSQL is not there, or older than this"
            " program: `headrace migrate` makes it"
        ) from None
    except psycopg.OperationalError as error:
        said = str(error).strip().splitlines()
        raise ServerUnavailable(
            f"PostgreSQL at {postgres.where(settings)} did not answer:"
            f" {said[0] if said else type(error).__name__}"
        ) from None


@contextmanager
def reading(settings: Settings) -> Iterator[psycopg.Connection]:
    """A read-only transaction with one snapshot for all of its questions."""
    with postgres.connect(settings, readonly=True) as connection, in_words(settings):
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        yield connection
