"""A job that fails in the middle of its work."""

from __future__ import annotations

import psycopg

from headrace.jobs import Context


def run(connection: psycopg.Connection, context: Context) -> None:
    connection.execute("CREATE TEMPORARY TABLE half_done (n integer)")
    raise ValueError("no\nsuch luck")


def publish(connection: psycopg.Connection, context: Context, result: None) -> None: ...
