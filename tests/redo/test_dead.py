"""Dead letters: told by cause, shown safely, given back once the stage is mended."""

from __future__ import annotations

import json
from collections.abc import Callable

from headrace.backlog import doctor
from tests.redo.conftest import Redo
from tests.world import wait_for


def test_the_dead_live_once_the_stage_is_mended(redos: Callable[..., Redo]) -> None:
    redo = redos()
    world = redo.world
    texts = ["!raise"] * 6 + ["!dead"] * 2 + ["fine"] * 3
    world.post(n=len(texts), texts=texts)
    world.send("raw.posts.reddit", "post:reddit:broken", b'{"id": "\x1b[31mred')
    foreign = {"id": "post:reddit:foreign", "kind": "post", "platform": "reddit", "text": ""}
    world.send("raw.posts.reddit", "", json.dumps(foreign).encode())
    redo.caught_up()
    assert redo.states() == {"open": 10}
    causes = json.loads(world.command("dead", "list", "words", "--json").stdout)
    assert [(one["cause"], one["open"]) for one in causes[:2]] == [
        ("ValueError: cannot read …", 6),
        ("Unreadable: it says so", 2),
    ]
    assert {one["cause"].partition(":")[0] for one in causes[2:]} == {"Undecodable"}
    shown = world.command("dead", "show", "post:reddit:broken", "--group", "postgres").stdout
    assert "\\x1b[31mred" in shown and "\x1b" not in shown

    # Nothing is mended: the canary dies, and the others stay where they are.
    world.start_worker("words")
    world.start_worker("postgres")
    tried = world.command("dead", "redrive", "words", "--canary", "3", check=False)
    assert tried.returncode == 4
    assert "3 of 3 died again; the others were not sent" in tried.stdout
    assert len(redo.queued()) == 3
    assert redo.states() == {"open": 10}
    died = "SELECT count(*) FROM dead_letters WHERE deaths = 2 AND \"group\" = 'words'"
    wait_for(lambda: world.sql(died) == [(3,)], message="those that died again count again")

    redo.mended.touch()
    first = world.command("dead", "redrive", "words", "--cause", "cannot read *", "--wait")
    assert "6 of 6 went first and live" in first.stdout
    assert redo.states() == {"open": 4, "done": 6}
    record = ("--record", "post:reddit:6")
    world.command("dead", "redrive", "words", *record, "--no-canary", "--wait")
    rest = world.command(
        "dead", "redrive", "words", "--canary", "9", "--survive", "0.5", "--wait", "--json"
    )
    report = json.loads(rest.stdout)
    assert (report["canary"], report["survived"], report["still_dead"]) == (2, 1, 1)
    assert redo.counts() == {"ok": 11}
    assert redo.states() == {"open": 2, "done": 8}  # kept, and no longer in the list
    left = world.command("dead", "list", "words", "--cause", "not JSON").stdout
    assert left.startswith("words: Undecodable: its value is not JSON")
    assert "1 open, 1 died more than once; " in left and "e.g. post:reddit:broken (" in left
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]

    # Nobody will ever read these: they are put aside, and are open nowhere.
    asked = world.command("dead", "redrive", "words", "--cause", "no key").stdout
    assert "nothing to redrive; 1 cannot be read again: `headrace dead dismiss words`" in asked
    dry = world.command("dead", "dismiss", "words", "--dry-run", "--json").stdout
    assert json.loads(dry) == {"group": "words", "dismissed": 0, "found": 2}
    world.command("dead", "dismiss", "words", "--reason", "of a broken import")
    assert redo.states() == {"dismissed": 2, "done": 8}
    assert world.command("dead", "list", "words").stdout == "nothing is dead; 2 dismissed (--all)\n"
    every = json.loads(world.command("dead", "list", "words", "--all", "--json").stdout)
    assert sum(one["dismissed"] for one in every) == 2
    found = doctor.examine(world.settings).findings
    assert [f.what for f in found if f.check == "dead"] == ["postgres: 2 dead letters are open"]
    # What is named goes all the same, and counts again when it dies again.
    shown = world.command("dead", "show", "post:reddit:broken", "--group", "words").stdout
    assert ": dismissed\n" in shown and "UTC: of a broken import" in shown
    named = ("--record", "post:reddit:broken", "--no-canary", "--wait")
    assert "1 are still dead" in world.command("dead", "redrive", "words", *named).stdout
    assert redo.states() == {"open": 1, "dismissed": 1, "done": 8}


def test_a_store_takes_its_dead_letters_again(redos: Callable[..., Redo]) -> None:
    """As of where they stood first, with all that they were read with."""
    redo = redos()
    world = redo.world
    world.post(ids=["a", "b"], run="r9")
    redo.caught_up()
    columns = 'id, value, topic, topic_id, partition, "offset", appended, run_id, deleted'
    was = world.sql(f"SELECT {columns} FROM records ORDER BY id")
    outcome = (
        "record_id, outcome, version, rank, input_rank, root_topic_id, root_offset, root_appended,"
        " input_topic, input_partition, input_offset, out_topic_id, out_offset, out_appended"
    )
    stood = world.sql(f"SELECT {outcome} FROM outcomes ORDER BY record_id")
    for short in ("raw.posts.reddit", "enriched.words"):
        for message in world.read(short):
            headers = {name: (value or b"").decode() for name, value in message.headers() or []}
            world.sql(
                'INSERT INTO dead_letters ("group", record_key, topic, partition, "offset", reason,'
                " at, key, value, headers, topic_id, appended)"
                " VALUES ('postgres', %s, %s, %s, %s, 'disk full', now(), %s, %s, %s, %s, %s)",
                [
                    (message.key() or b"").decode(), message.topic(), message.partition(),
                    message.offset(), message.key(), message.value(), json.dumps(headers),
                    world.admin.topic_ids()[message.topic() or ""], message.timestamp()[1],
                ],
            )  # fmt: skip
    world.sql("TRUNCATE records, outcomes, entity_mentions")
    assert redo.states("postgres") == {"open": 4}
    world.command("dead", "redrive", "postgres", "--no-canary")
    world.run("--only", "postgres")
    # A record died twice here, and one message of it goes at a time.
    world.command("dead", "redrive", "postgres", "--no-canary")
    world.run("--only", "postgres")
    assert world.sql(f"SELECT {columns} FROM records ORDER BY id") == was
    assert world.sql(f"SELECT {outcome} FROM outcomes ORDER BY record_id") == stood
    assert redo.states("postgres") == {"done": 4}
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]
