"""Each gate fails for its own reason and no other does; and how they stood is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace import cli, config, gates, jobs
from headrace.backlog import database as reading
from headrace.gates import Look, Reading
from headrace.gates.checks import GATES, required_fields, sums
from tests.stores.conftest import Database, embedded

Break = Callable[[Database], None]


def moved(database: Database, to: int) -> None:
    database.sql(
        'INSERT INTO offsets ("group", topic, partition, topic_id, next) VALUES'
        " ('postgres', 't', 0, 'A', %s)"
        ' ON CONFLICT ("group", topic, partition, topic_id) DO UPDATE SET next = excluded.next',
        to,
    )


def good(database: Database) -> None:
    """Three posts with everything that is asked for."""
    for number in range(3):
        messages = [database.raw(f"p{number}", number, author="somebody")]
        messages += [database.outcome(f"p{number}", number, s) for s in ("text", "entities")]
        messages += [database.outcome(f"p{number}", number, "sentiment")]
        messages += [database.outcome(f"p{number}", number, "embeddings", result=embedded(1.0))]
        assert database.write(messages) == []
    moved(database, 10)
    jobs.run(database.settings, database.topology, database.topology.jobs["metrics"])


def states(database: Database) -> dict[str, str]:
    found = gates.judge(database.settings)
    assert {told.reading.platform for told in found} == {"reddit", None}
    return {told.gate: told.state for told in found}


def blank_text(database: Database) -> None:
    database.write([database.raw("blank", 9, text=" "), database.outcome("blank", 9)])


def unsure(database: Database) -> None:
    database.sql("UPDATE entity_mentions SET confidence = 0.7")


def one_unsure(database: Database) -> None:
    database.sql("UPDATE entity_mentions SET confidence = 0.99")
    database.sql("UPDATE entity_mentions SET confidence = 0.75 WHERE record_id = 'post:reddit:p0'")


def no_record(database: Database) -> None:
    database.write([database.outcome("nobody", 9)])
    database.sql("UPDATE outcomes SET stored_at = now() - interval '2 hours'")


def stray_mention(database: Database) -> None:
    database.sql("DELETE FROM outcomes WHERE stage = 'entities' AND record_id LIKE '%p1'")


def lost_vector(database: Database) -> None:
    database.sql("DELETE FROM vectors WHERE record_id LIKE '%p2'")


def old_figures(database: Database) -> None:
    database.sql("UPDATE metrics SET taken_at = now() - interval '30 hours'")
    moved(database, 11)


def no_figures(database: Database) -> None:
    database.sql("DELETE FROM metrics")


def behind(database: Database) -> None:
    database.write([database.raw(f"new{n}", 20 + n) for n in range(3)])


@pytest.mark.parametrize(
    ("break_", "failing"),
    [
        (blank_text, {"required_fields"}),
        (unsure, {"entity_confidence", "entity_threshold"}),
        (one_unsure, {"entity_threshold"}),
        (no_record, {"outcomes"}),
        (stray_mention, {"mentions"}),
        (lost_vector, {"vectors"}),
        (old_figures, {"metrics"}),
        (no_figures, {"metrics"}),
        (behind, {"sentiment_coverage"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_gate_fails_for_its_own_reason(
    database: Database, break_: Break, failing: set[str]
) -> None:
    good(database)
    before = states(database)
    assert before == {gate.name: "pass" for gate in GATES}
    break_(database)
    assert {name for name, state in states(database).items() if state != "pass"} == failing


def test_required_fields_are_counted_wherever_they_stand(database: Database) -> None:
    said = {"author": "a", "created_at": "2026-01-01T00:00:00Z", "metrics": {"score": 0}}
    database.write(
        [
            database.raw("whole", 1, **said, labels={"flair": "x"}),
            database.raw("no label", 2, **said),
            database.raw("empty label", 3, **said, labels={"flair": ""}),
            database.raw("no author", 4, created_at="2026-01-01T00:00:00Z", metrics={"score": 1}),
        ]
    )
    for fields, share in (
        (("text", "created_at", "metrics.score"), 1),
        (("author",), 0.75),
        (("author", "labels.flair"), 0.25),
    ):
        wanted = database.settings.gates.model_copy(update={"required": fields})
        settings = database.settings.model_copy(update={"gates": wanted})
        with reading.reading(settings) as connection:
            (found,) = required_fields(Look(connection, settings, database.topology))
        assert (found.value, found.state) == (share, "pass" if share == 1 else "fail"), fields


def test_old_figures_that_know_everything_are_current(database: Database) -> None:
    good(database)
    database.sql("UPDATE metrics SET taken_at = now() - interval '30 days'")
    assert states(database)["metrics"] == "pass"


def test_sums_that_do_not_add_up(database: Database) -> None:
    good(database)
    with reading.reading(database.settings) as connection:
        look = Look(connection, database.settings, database.topology)
        (fine,) = sums(look)
        look.coverage[0]["ok"] += 1
        (wrong,) = sums(look)
    assert (fine.state, wrong.state, wrong.value) == ("pass", "fail", 1)


def test_changes_are_noted(database: Database) -> None:
    reading_ = Reading("reddit", "pass", 0.5, 0.4, "> 0.4")

    def told(reading: Reading) -> Any:
        gate = gates.Gate("mine", "one of our own", lambda look: [reading])
        (answer,) = gates.judge(database.settings, gates=[gate])
        return answer

    database.write([database.raw("a", 1)])
    first, second = told(reading_), told(reading_)
    assert first.since == second.since
    failed = told(Reading("reddit", "fail", 0.3, 0.4, "> 0.4", "too little", "more"))
    assert failed.since > first.since
    assert told(reading_).since > failed.since
    kept = database.sql(
        "SELECT state, value, ended_at IS NULL FROM gate_states WHERE gate = 'mine' ORDER BY since"
    )
    assert kept == [("pass", 0.5, False), ("fail", 0.3, False), ("pass", 0.5, True)]


def test_the_exit_status_is_for_scripts(
    database: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in config.as_environment(database.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("headrace.log.setup", lambda settings: None)  # it would stay for others

    def said(*words: str) -> tuple[int, str]:
        status = cli.main(["gates", *words])
        return status, capsys.readouterr().out

    status, text = said()
    assert status == 3 and "no records yet" in text, "nothing can be said yet"
    good(database)
    assert said()[0] == 0
    assert not database.sql(
        "SELECT FROM gate_states WHERE state = 'unknown' AND ended_at IS NULL"
    ), "what was said of an empty project has ended"
    no_figures(database)
    status, text = said()
    assert status == 1
    assert "fail" in text and "headrace job run metrics" in text
    status, text = said("--json", "--platform", "reddit")
    assert status == 1
    (failed,) = [told for told in json.loads(text) if told["state"] == "fail"]
    assert (failed["gate"], failed["platform"]) == ("metrics", "reddit")
    assert failed["do"] and failed["since"]
    assert cli.main(["gates", "--platform", "nobody"]) == 2
