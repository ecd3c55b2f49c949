"""A job that is at work until somebody ends it."""

from __future__ import annotations

import psycopg

from headrace.jobs import Context


def run(connection: psycopg.Connection, context: Context) -> None:
    connection.execute("SELECT pg_sleep(600)")


def publish(connection: psycopg.Connection, context: Context, result: None) -> None: ...
