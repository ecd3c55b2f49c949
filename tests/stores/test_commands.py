"""`headrace sql` and `headrace migrate` as people call them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable

import orjson

from headrace.stores import commands, migrate
from tests.stores.conftest import Database
from tests.world import CLONE


def headrace(database: Database, *words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    dsn = database.settings.postgres.dsn
    assert dsn is not None
    own = {
        "HEADRACE_PROJECT": database.project,
        "HEADRACE_POSTGRES__DSN": dsn.get_secret_value(),
    }
    return subprocess.run(
        [sys.executable, "-m", "headrace", *words],
        capture_output=True, text=True, input=said, env=os.environ | own, cwd=CLONE, timeout=120,
        check=False,
    )  # fmt: skip


def test_sql_shows_a_table_csv_and_json(database: Database) -> None:
    database.write([database.raw("a", 1, text="line\nend [bold] \x1b[31m", metrics={"score": 1})])
    query = "SELECT id, text, metrics, created_at, 1.50 AS number FROM posts"
    table = headrace(database, "sql", query)
    assert "post:reddit:a" in table.stdout
    assert "1 row" in table.stdout
    assert "[bold]" in table.stdout
    assert "\x1b" not in table.stdout
    rows = list(csv.DictReader(io.StringIO(headrace(database, "sql", "--csv", query).stdout)))
    assert rows[0]["text"] == "line\nend [bold] \x1b[31m"
    assert rows[0]["created_at"] == ""
    answer = orjson.loads(headrace(database, "sql", "--json", "-", said=query).stdout)
    assert answer[0]["metrics"] == {"score": 1}
    assert answer[0]["number"] == 1.5
    empty = headrace(database, "sql", "--json", "SELECT * FROM posts WHERE false")
    assert orjson.loads(empty.stdout) == []


def test_sql_changes_nothing_and_says_mistakes_in_a_line(database: Database) -> None:
    database.write([database.raw("a", 1)])
    for query, words in (
        ("DELETE FROM records", "only reads"),
        ("SELECT nothing FROM posts", "nothing"),
        ("SELEC 1", "syntax error"),
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("", "sql:"),
    ):
        result = headrace(database, "sql", query)
        assert result.returncode == 2, query
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
    assert database.sql("SELECT count(*) FROM records") == [(1,)]


def test_migrate_says_what_it_did(databases: Callable[..., Database]) -> None:
    database = databases()
    for words in ("are now", "were already"):
        result = headrace(database, "migrate")
        assert result.returncode == 0, result.stderr
        assert f"{words} at version {migrate.head()}" in result.stdout


def test_more_columns_than_fit_stand_below_each_other(monkeypatch, capsys):
    monkeypatch.setattr(commands, "_WIDE", 100)
    names = [f"c{number}" for number in range(11)]
    commands._as_table(names, [tuple(range(11))])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["row", "1"], ["c0", "0"]]
    commands._as_table(names[:10], [tuple(range(10))])
    assert capsys.readouterr().out.splitlines()[1].split() == names[:10]
