"""The schema comes up once, whoever asks, and follows topics.yaml."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from headrace.errors import ConfigError, HeadraceError, ServerUnavailable
from headrace.stores import migrate, postgres, views
from tests.stores.conftest import Database


def test_a_second_upgrade_has_nothing_to_do(databases: Callable[..., Database]) -> None:
    database = databases()
    assert database.upgrade() is True
    assert database.upgrade() is False
    assert database.sql("SELECT version_num FROM alembic_version") == [(migrate.head(),)]


def test_upgrades_at_once_do_it_once(databases: Callable[..., Database]) -> None:
    database = databases()
    answers: list[object] = []
    begin = threading.Barrier(4)

    def work() -> None:
        try:
            begin.wait(30)
            answers.append(database.upgrade())
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(map(repr, answers)) == ["False", "False", "False", "True"]
    assert database.sql("SELECT count(*) FROM coverage") == [(0,)]


def test_views_follow_the_stages(databases: Callable[..., Database]) -> None:
    database = databases()
    database.upgrade()
    topology = database.topology
    fewer = {name: group for name, group in topology.groups.items() if name != "sentiment"}
    assert migrate.upgrade(database.settings, replace(topology, groups=fewer)) is True
    shown = database.connect().execute("SELECT * FROM record_status").description or ()
    assert {"text_status", "entities_status"} <= {column.name for column in shown}
    assert "sentiment_status" not in {column.name for column in shown}
    assert database.sql("SELECT count(*) FROM platform_metrics") == [(0,)]


def test_several_stages_may_provide_a_facet(databases: Callable[..., Database]) -> None:
    database = databases()
    topology = database.topology
    better = replace(topology.groups["sentiment"], short="sentiment_llm", outputs=())
    groups = {**topology.groups, "sentiment_llm": better}
    migrate.upgrade(database.settings, replace(topology, groups=groups))
    database.write([database.raw("a", 1), database.outcome("a", 1)])
    assert database.sql("SELECT sentiment, sentiment_stale FROM posts") == [("positive", False)]


def test_a_newer_schema_is_refused(databases: Callable[..., Database]) -> None:
    database = databases()
    database.upgrade()
    database.sql("UPDATE alembic_version SET version_num = '9999'")
    database.sql("UPDATE about SET value = 'of the future'")
    with pytest.raises(HeadraceError, match="newer version"):
        database.upgrade()
    assert database.sql("SELECT count(*) FROM coverage") == [(0,)], "the views stay"


def test_everything_is_explained(shared_database: Database) -> None:
    nameless = shared_database.sql(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace"
        " AND relkind IN ('r', 'v') AND relname <> 'alembic_version'"
        " AND obj_description(oid) IS NULL",
        shared_database.project,
    )
    assert nameless == []


def test_the_reader_reads_and_nothing_else(databases: Callable[..., Database]) -> None:
    role = f"reader_{databases().project}"
    database = databases(
        **{"postgres.reader_role": role, "postgres.reader_password": "it's secret"}
    )
    database.upgrade()
    try:
        parameters = postgres.address(database.settings) | {
            "user": role,
            "password": "it's secret",
            "options": f"-c search_path={database.project}",
        }
        with psycopg.connect(**parameters) as reader:  # type: ignore[arg-type]
            assert reader.execute("SELECT count(*) FROM platform_metrics").fetchone() == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute("DELETE FROM records")
    finally:
        database.sql(f"DROP OWNED BY {role}")
        database.sql(f"DROP ROLE {role}")


def test_an_address_that_is_none_keeps_its_secret(databases: Callable[..., Database]) -> None:
    wrong = databases().settings.model_copy(deep=True)
    for dsn, error, words in (
        ("postgre//me:hush@here/db", ConfigError, "cannot be read"),
        ("postgresql://me:hush@127.0.0.1:1/db", ServerUnavailable, "127.0.0.1:1"),
    ):
        section = type(wrong.postgres)(dsn=dsn)
        settings = wrong.model_copy(update={"postgres": section})
        with pytest.raises(error, match=words) as raised:
            postgres.connect(settings)
        assert "hush" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_timeouts_and_schema_are_those_of_the_settings(databases: Callable[..., Database]) -> None:
    database = databases(**{"postgres.lock_timeout": "1234ms"})
    with database.connect(readonly=True) as connection:
        for name, value in (
            ("lock_timeout", "1234ms"),
            ("search_path", database.project),
            ("transaction_read_only", "on"),
        ):
            assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)


def test_views_need_no_stage() -> None:
    assert all(isinstance(statement, str) for statement in views.statements([], 0.95))
