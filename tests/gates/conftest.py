"""The schema of jobs' tests."""

from tests.jobs.conftest import database, databases, schema

__all__ = ["database", "databases", "schema"]
