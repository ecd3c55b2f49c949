"""What a stage misses comes back; what it has yet to reach, has dropped or has queued does not."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from headrace.redo.sending import queue
from headrace.stores import postgres
from tests.redo.conftest import Redo
from tests.world import wait_for


def test_only_what_is_missing_is_queued_and_once(redos: Callable[..., Redo]) -> None:
    redo = redos()
    world = redo.world
    lost = [f"lost{n}" for n in range(6)]
    world.post(ids=[*lost, "kept"], texts=["some words"])
    world.post(ids=["dropped", "dead", "late"], texts=["!drop", "!dead", "!defer"])
    world.post("youtube", ids=["tube"])
    world.post(ids=["large"], texts=["a word " * 200])
    redo.caught_up()
    world.sql("DELETE FROM outcomes WHERE record_id LIKE '%:lost_' OR record_id LIKE '%:tube'")
    world.post(ids=["new0", "new1"])  # not reached
    world.run("--only", "postgres")
    told = json.loads(world.command("doctor", "--json", check=False).stdout)
    assert not [f for f in told["findings"] if f["check"] == "redo"]

    counted = world.command("requeue", "words", "--missing", "--dry-run", "--json").stdout
    assert json.loads(counted)["found"] == 7
    first = json.loads(
        world.command(
            "requeue", "words", "--missing", "--platform", "reddit", "--limit", "2", "--json"
        ).stdout
    )
    assert (first["found"], first["queued"]) == (6, 2)
    second = json.loads(world.command("requeue", "words", "--missing", "--json").stdout)
    assert (second["found"], second["queued"]) == (5, 5)
    assert "misses nothing" in world.command("requeue", "words", "--missing").stdout
    every = sorted([f"post:reddit:{name}" for name in lost] + ["post:youtube:tube"])
    assert redo.queued() == every
    (lag,) = json.loads(world.command("lag", "words", "--json").stdout)
    assert (lag["lag"], lag["redo"]) == (2, 7)
    assert "queued for words again" in world.command("trace", "post:reddit:lost0").stdout

    redo.caught_up()
    assert redo.counts() == {"ok": 11, "dropped": 1, "dead": 1, "pending": 1}
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]
    again = world.command("requeue", "words", "--missing", "--deferred", "--json").stdout
    assert json.loads(again)["queued"] == 1
    group = world.topology.group("words")
    asked = ["post:reddit:kept", "post:reddit:late", "post:reddit:nobody"]
    assert queue(world.settings, world.topology, group, asked, "on demand")[:2] == (1, 2)
    # What Kafka does not take stays out, and in nobody's way.
    kafka = world.settings.kafka.model_copy(update={"client": {"message.max.bytes": 1000}})
    small = world.settings.model_copy(update={"kafka": kafka})
    asked = ["post:reddit:large", "post:reddit:lost1"]
    assert queue(small, world.topology, group, asked, "on demand")[:2] == (1, 1)
    assert world.sql("SELECT record_id, state FROM redo WHERE record_id = ANY(%s)", [asked]) == [
        ("post:reddit:lost1", "queued")
    ]


def test_a_killed_command_goes_on(redos: Callable[..., Redo]) -> None:
    redo = redos(**{"redo.chunk": 20})
    world = redo.world
    world.post(n=150)
    redo.caught_up()
    world.sql("TRUNCATE outcomes, entity_mentions")
    # The third chunk is produced, and the command is held before it can say so.
    world.sql(
        """CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF (SELECT count(*) FROM redo) >= 60 THEN
               PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 7); END IF;
             RETURN NULL; END $$;
           CREATE TRIGGER hold BEFORE UPDATE ON redo EXECUTE FUNCTION hold()"""
    )
    with postgres.connect(world.settings, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(hashtext(current_schema()), 7)")
        command = world.start("requeue", "words", "--missing")
        held = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'"
            f" AND application_name = 'headrace redo words {world.project}'"
        )
        (pid,) = wait_for(lambda: world.sql(held), message=lambda: world.log_of(command))[0]
        command.send_signal(signal.SIGKILL)
        command.wait(30)
        world.sql("SELECT pg_terminate_backend(%s)", [pid])
        wait_for(lambda: not world.sql(held))
    world.sql("DROP TRIGGER hold ON redo")
    states = dict(world.sql("SELECT state, count(*) FROM redo GROUP BY 1"))
    assert states == {"queued": 40, "sending": 20}

    report = json.loads(world.command("requeue", "words", "--missing", "--json").stdout)
    assert (report["resent"], report["queued"]) == (20, 90)
    every = sorted(f"post:reddit:{n}" for n in range(150))
    assert sorted(set(redo.queued())) == every
    redo.caught_up()
    assert redo.counts() == {"ok": 150}
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]
