"""`headrace forget` through everything, looked into byte by byte."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from threading import Thread
from typing import Any

import orjson
import pytest

from consumers.search.projector import SearchLoop, build
from headrace import decisions, servers
from headrace.backlog import doctor
from headrace.forget.orders import Selection
from headrace.forget.work import Forgetting
from headrace.graph import persona_id
from headrace.redo import sending
from headrace.snapshots import creation, folder
from headrace.stores import postgres as stores
from headrace.stores import weaviate
from headrace.stream.metrics import Metrics
from headrace.stream.watchdog import Watchdog
from headrace.stream.wire import Lineage, Position, Revision
from headrace.stream.worker import Post
from producers import forgetting
from producers.rejects import read_rejects
from tests.forget.conftest import Broker, Workers, tables_with, topics_with
from tests.stores.graphs import result
from tests.world import World, wait_for

MARK = b"Qzxvkwjq"  # in the author's name and in everything that the author wrote
AUTHOR = f"ann {MARK.decode()}"
QUICK = ("text", "entities", "sentiment", "postgres")


@pytest.fixture(scope="module")
def search_flags(weaviate: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    port = os.environ.get("HEADRACE_WEAVIATE__GRPC_PORT")
    if port is None:
        found = servers.running(request.getfixturevalue("servers_dir")).get("weaviate")
        port = str(found.ports["grpc"]) if found else "50051"
    return {"weaviate.url": weaviate, "weaviate.grpc_port": int(port)}


def only_quick(content: dict[str, Any]) -> None:
    """Without what works at night: an order waits for it."""
    for group in ("embeddings", "sentiment_ml", "metrics", "status"):
        content["groups"].pop(group, None)
    for topic in ("enriched.embeddings.{platform}", "enriched.sentiment_ml"):
        del content["topics"][topic]
    content["modes"] = {"fast": [*QUICK, "search"], "full": "all", "batch": []}


def row(number: int, author: str, text: str) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "title": f"On {text}",
        "selftext": f"{text} loves Nike in London",
        "permalink": f"/r/jars/{number}/",
        "author": author,
        "created_utc": 1_700_000_000 + number,
        "score": 100 - number,
    }


def projector(world: World) -> SearchLoop:
    post = Post(
        world.settings, 0, Metrics(world.settings, "search"), Watchdog(), lambda: False
    )  # fmt: skip
    return build(post, world.topology, world.topology.projectors["search"])


def work(workers: Workers, search: SearchLoop) -> None:
    workers.catch_up()
    while search.work():
        pass


def objects_with(world: World, mark: str) -> list[str]:
    client = weaviate.connect(world.settings)
    found = []
    try:
        for name in client.collections.list_all(simple=True):
            if name.lower().startswith(f"{world.project}_"):
                found += [
                    f"{name} {item.properties['record_id']}"
                    for item in client.collections.use(name).iterator()
                    if mark in str(item.properties)
                ]
    finally:
        client.close()
    return found


def files_with(world: World) -> list[str]:
    """Rejects files and snapshots."""
    found = [str(path) for path in world.home.rglob("*.rejects.jsonl") if MARK in path.read_bytes()]
    for path in world.home.rglob("*.zst"):
        content = b"".join(folder.unpack(path))
        if MARK in content or MARK.hex().encode() in content:
            found.append(str(path))
    return found


def test_no_byte_is_left(
    here: Callable[..., World], broker: Broker, search_flags: dict[str, Any], tmp_path: Path
) -> None:
    world = here({**search_flags, "kafka.client": {"compression.type": "none"}}, change=only_quick)
    world.apply()
    mine = [row(number, AUTHOR, MARK.decode()) for number in range(4)]
    others = [row(number, "bob", "this") for number in range(4, 9)]
    rejected = [row(20, AUTHOR, MARK.decode()), row(21, "bob", "this")]
    lines = [*mine, *others, *({**one, "title": ""} for one in rejected)]
    file = world.home / "posts.jsonl"
    torn = orjson.dumps(row(0, "bob", MARK.decode()))[:-20] + b"\n"
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines) + torn)
    world.command("publish", file, "--platform", "reddit", "--kind", "communities", "--with-posts")
    file.unlink()
    # A dead letter: what stands on the raw topic is of the author, and no record.
    broken = b'{"id": "post:reddit:p30", "author": "' + AUTHOR.encode() + b'", "text": '
    world.send("raw.posts.reddit", "post:reddit:p30", broken)
    workers, search = Workers(world, *QUICK), projector(world)
    work(workers, search)
    world.command("snapshot", "create", "before")
    ((topic_id, partition, offset, appended),) = world.sql(
        'SELECT topic_id, partition, "offset", appended FROM records WHERE id = %s',
        ["post:reddit:p1"],
    )
    assert topics_with(world, MARK)
    assert broker.files_with(world.project, MARK)
    assert {"records", "dim_author", "dead_letters"} <= set(tables_with(world, MARK))
    assert objects_with(world, MARK.decode())
    assert len(files_with(world)) >= 2

    with Forgetting(world.settings, forgetting.take_out) as forget:
        found = forget.look(Selection(author=AUTHOR))
    assert found["records"] == 4 and found["outcomes"] == 12 and found["communities"] == 1
    assert found["dead_letters"] == 4 and found["rejects"] == 2 and found["snapshots"] > 0

    # Nobody runs: the deletions are out, the rest waits and says so.
    told = world.command(
        "forget", "--author", AUTHOR, "--yes", "--wait", "0", "--json", check=False
    )
    order = json.loads(told.stdout)
    assert told.returncode == 3 and order["state"] == "open" and order["waits"], told.stderr
    # The old revision comes once more, late: to a stage and to the store.
    raw = world.topology.topic("raw.posts.reddit").name
    lineage = Lineage(
        Revision(topic_id, partition, offset, appended),
        "", 0, 0, (), Position(raw, partition, offset),
    )  # fmt: skip
    late = {
        "id": "post:reddit:p1", "kind": "post", "platform": "reddit", "author": AUTHOR,
        "text": MARK.decode(),
    }  # fmt: skip
    for group in ("entities", "postgres"):
        world.send(f"{group}.redo", "post:reddit:p1", orjson.dumps(late), {"hr": lineage.pack()})
    work(workers, search)
    assert set(tables_with(world, MARK)) <= {"dead_letters", "forget_orders", "dim_author"}

    told = world.command("forget", "--resume", "--wait", "120")
    assert "is done: " in told.stdout
    # Others' work goes on between, in the same files.
    world.post("reddit", ids=["p40"], texts=["this is new"], author="bob")
    work(workers, search)
    told = world.command("forget", "--purge", "--wait", "120", "--json", check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert [one["state"] for one in json.loads(told.stdout)] == ["purged"]

    assert topics_with(world, MARK) == []
    assert tables_with(world, MARK) == []
    assert objects_with(world, MARK.decode()) == []
    assert files_with(world) == []
    wait_for(
        lambda: not broker.files_with(world.project, MARK),
        message=lambda: str(broker.files_with(world.project, MARK)),
    )

    assert world.sql("SELECT state, records FROM runs WHERE run = %s", [order["order"]]) == [
        ("done", 6)  # four posts, what died, and the community
    ]
    # What is not meant stays, and the topics are as they were.
    assert world.sql("SELECT count(*) FROM posts WHERE author = 'bob' AND text <> ''") == [(6,)]
    assert world.sql("SELECT count(*) FROM outcomes WHERE outcome = 'ok'") == [(18,)]
    (rejects,) = world.home.rglob("*.rejects.jsonl")
    assert [reject.row and reject.row["id"] for reject in read_rejects(rejects)] == ["p21"]
    ((quoting,),) = world.sql(
        "SELECT value::jsonb->'best_posts' FROM records WHERE kind = 'community'"
    )
    assert [post["id"] for post in quoting] == [f"post:reddit:p{n}" for n in range(4, 9)]
    assert world.sql("SELECT count(*) FROM forget_configs") == [(0,)]
    own = world.admin.own_configs([raw])[raw]
    assert not {"segment.ms", "min.cleanable.dirty.ratio"} & own.keys(), own
    audit = world.sql("SELECT o::text FROM forget_orders o")
    assert order["order"] in audit[0][0]  # and no mark in it, as in no table
    workers.close()
    search.close()


def scheduled(content: dict[str, Any]) -> None:
    """One quick stage, and one at night that reads what it writes."""
    stage = {
        "description": "For tests.", "kind": "stage", "module": "tests.stages.words",
        "version": "1", "rank": 1,
    }  # fmt: skip
    for topic in [topic for topic in content["topics"] if topic.startswith("enriched.")]:
        del content["topics"][topic]
    for name in ("words", "later"):
        content["topics"][f"enriched.{name}"] = {
            "description": "For tests.", "key": "record id", "cleanup": "delete",
            "retention": "30 days",
        }  # fmt: skip
    content["groups"] = {
        "words": {**stage, "reads": ["raw.posts.{platform}"], "writes": "enriched.words"},
        "later": {
            **stage, "reads": ["enriched.words"], "writes": "enriched.later",
            "when": 'cron "0 1 * * *"',
        },
        "postgres": content["groups"]["postgres"],
    }  # fmt: skip
    content["modes"] = {"fast": ["words", "postgres"], "full": "all", "batch": []}


def test_killed_it_goes_on_and_keeps_what_others_have_yet_to_read(
    here: Callable[..., World],
) -> None:
    world = here(change=scheduled)
    world.post("reddit", 4_000, texts=[MARK.decode()], author=AUTHOR)
    world.post("youtube", 10)
    quick, night = Workers(world, "words", "postgres"), Workers(world, "later")
    quick.catch_up()
    process = world.start("forget", "--platform", "reddit", "--yes", "--purge", "--wait", "0")
    out = 'SELECT count(*) FROM forget_records WHERE "offset" IS NOT NULL'
    wait_for(lambda: world.sql(out) > [(0,)], message=lambda: world.log_of(process))
    os.killpg(process.pid, 9)
    process.wait(30)
    assert world.sql("SELECT state FROM forget_orders") == [("open",)]
    told = world.command("forget", "--resume", "--wait", "0", "--json", check=False)
    assert told.returncode == 3, told.stderr
    assert world.sql(out) == [(4_000,)]
    quick.catch_up()

    def purged() -> Any:
        told = world.command("forget", "--resume", "--wait", "1", "--json", check=False)
        (order,) = json.loads(told.stdout)
        assert told.returncode == 3 and order["state"] == "open"
        return order if not any("cleaner" in wait for wait in order["waits"]) else None

    order = wait_for(purged, timeout=120)
    assert any(wait.startswith("later has ") for wait in order["waits"]), order["waits"]
    assert "enriched.words is kept for later, which has yet to read it" in order["waits"]
    words = world.topology.topic("enriched.words").name
    assert set(world.admin.starts([(words, 0), (words, 1)]).values()) == {0}
    assert topics_with(world, MARK)
    assert [place for place in topics_with(world, MARK) if ".raw." in place] == []

    night.catch_up()
    quick.catch_up()
    told = world.command("forget", "--resume", "--wait", "120", check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert topics_with(world, MARK) == []
    assert tables_with(world, MARK) == []
    assert world.sql("SELECT state FROM forget_orders") == [("purged",)]
    assert world.sql("SELECT count(*), count(text) FROM records WHERE deleted") == [(4_000, 0)]
    assert world.sql("SELECT count(*) FROM records WHERE NOT deleted") == [(10,)]
    for workers in (quick, night):
        workers.close()


def only_words(content: dict[str, Any]) -> None:
    scheduled(content)
    del content["groups"]["later"], content["topics"]["enriched.later"]


# Whoever has counted messages that are gone waits here before that is written down.
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NEW; END $$;
CREATE TRIGGER hold BEFORE UPDATE ON forget_orders FOR EACH ROW
  WHEN (NEW.counts ? 'messages') EXECUTE FUNCTION hold();
"""


def test_a_purge_that_is_killed_leaves_nothing_behind(
    here: Callable[..., World], broker: Broker
) -> None:
    world = here({"postgres.lock_timeout": "120s"}, change=only_words)
    world.post("reddit", 20, texts=[MARK.decode()], author=AUTHOR)
    world.post("youtube", 10)
    workers = Workers(world, "words", "postgres")
    workers.catch_up()
    world.command("forget", "--platform", "reddit", "--yes", "--wait", "0", check=False)
    workers.catch_up()
    names = [world.topology.topic(short).name for short in ("raw.posts.reddit", "enriched.words")]
    before = world.admin.own_configs(names)
    state = "SELECT state FROM forget_orders"

    def lowered() -> set[str | None]:
        return {own.get("segment.ms") for own in world.admin.own_configs(names).values()}

    # While the topics' files are short: what sets them back finds its table locked.
    with stores.connect(world.settings) as first, stores.connect(world.settings) as second:
        first.execute("LOCK TABLE forget_configs IN ACCESS EXCLUSIVE MODE")
        process = world.start("forget", "--purge", "--wait", "120")
        wait_for(lambda: waiting(world) == 1, message=lambda: world.log_of(process))
        locking = Thread(
            target=second.execute, args=["LOCK TABLE forget_configs IN ACCESS EXCLUSIVE MODE"]
        )
        locking.start()
        wait_for(lambda: waiting(world) == 2)
        first.rollback()
        locking.join(60)
        wait_for(lambda: lowered() == {"500"}, message=lambda: world.log_of(process))
        wait_for(lambda: waiting(world) == 1, message=lambda: world.log_of(process))
        kill(world, process)
    assert lowered() == {"500"} and world.sql(state) == [("forgotten",)]
    assert any("has a purge's segment.ms still" in said for said in doctor_says(world))
    workers.catch_up()  # what ended the files is to be passed, as by groups that run

    # When messages are gone, and nobody has noted it.
    world.sql(HOLD)
    with stores.connect(world.settings) as first:
        first.execute("SELECT pg_advisory_lock(77)")
        process = world.start("forget", "--resume", "--wait", "120")
        places = [(names[1], number) for number in range(2)]
        wait_for(lambda: any(world.admin.starts(places).values()))
        wait_for(lambda: waiting(world) == 1, message=lambda: world.log_of(process))
        kill(world, process)
    world.sql("DROP TRIGGER hold ON forget_orders")
    assert world.sql(state) == [("forgotten",)]

    told = world.command("forget", "--resume", "--wait", "120", check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert world.sql(state) == [("purged",)]
    assert world.admin.own_configs(names) == before
    assert world.sql("SELECT count(*) FROM forget_configs") == [(0,)]
    workers.catch_up()
    workers.close()
    assert doctor_says(world) == []
    assert topics_with(world, MARK) == []
    assert tables_with(world, MARK) == []
    wait_for(
        lambda: not broker.files_with(world.project, MARK),
        message=lambda: str(broker.files_with(world.project, MARK)),
    )
    assert world.sql("SELECT count(*) FROM records WHERE NOT deleted") == [(10,)]


def only_personas(content: dict[str, Any]) -> None:
    for topic in [name for name in content["topics"] if name.startswith("enriched.")]:
        if topic != "enriched.personas":
            del content["topics"][topic]
    content["groups"] = {name: content["groups"][name] for name in ("personas", "postgres")}
    content["modes"] = {"fast": ["postgres"], "full": "all", "batch": ["personas"]}


def community(slug: str, posts: list[str]) -> dict[str, Any]:
    return {
        "id": f"community:reddit:{slug}", "kind": "community", "platform": "reddit", "name": slug,
        "slug": slug, "posts": 2,
        "best_posts": [{"id": f"post:reddit:{p}", "title": f"On {p}", "score": 1} for p in posts],
    }  # fmt: skip


def make_personas(world: World, record: str, mark: str, evidence: list[str]) -> None:
    """What the stage would say of a community as it stands, and what the ledger holds of it. A
    persona a post, the first one quotes."""
    ((topic_id, partition, offset, at),) = world.sql(
        'SELECT topic_id, partition, "offset", appended FROM records WHERE id = %s', [record]
    )
    topic = world.topology.topic("raw.communities").name
    lineage = Lineage(
        Revision(topic_id, partition, offset, at), "", 0, 1, (), Position(topic, partition, offset)
    )
    found = result(record, count=len(evidence))
    found["personas"][0]["typical_posts"] = [mark]
    for persona, post in zip(found["personas"], evidence, strict=True):
        persona["evidence"] = [f"post:reddit:{post}"]
    value = {
        "id": record, "kind": "community", "platform": "reddit", "stage": "personas",
        "outcome": "ok", "version": "1", "at": "2026-11-21T09:00:00Z", "result": found,
    }  # fmt: skip
    world.send("enriched.personas", record, orjson.dumps(value), {"hr": lineage.pack()})
    world.sql(
        "WITH asked AS (INSERT INTO llm_calls (stage, provider, model, prompt, version, transport,"
        " reason, session, worker, items, tokens, priced, day, sent_at, raw, records)"
        " VALUES ('personas', 'p', 'm', 'personas', 1, 'direct', 'first', '', 'w', 1, 1, false,"
        " current_date, now(), %(mark)s, ARRAY[%(record)s]) RETURNING id)"
        ' INSERT INTO llm_answers (key, stage, record_id, "set", part, prompt, version, model,'
        " answer, call, cost, tokens) SELECT sha256(%(record)s::bytea), 'personas', %(record)s, 1,"
        " '1/1', 'personas', 1, 'm', jsonb_build_object('said', %(mark)s), id, 0, 1 FROM asked",
        {"mark": mark, "record": record},
    )


def test_what_a_model_made_of_a_post_goes_with_it(
    here: Callable[..., World], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"llm.base_url": "http://127.0.0.1:9/v1", "llm.model": "m"}
    world = here(flags, change=only_personas)
    world.post("reddit", ids=["p1", "p2"], texts=[MARK.decode(), "this"])
    quoting, moved, other = (f"community:reddit:{name}" for name in ("jars", "moved", "other"))
    world.publish([community("jars", ["p1", "p2"]), community("moved", []), community("other", [])])
    dead = community("torn", ["p1"]) | {"slug": 7, "name": MARK.decode()}
    world.send("raw.communities", dead["id"], orjson.dumps(dead))
    world.publish([community("torn", [])])
    workers = Workers(world, "postgres")
    workers.catch_up()
    make_personas(world, quoting, MARK.decode(), ["p1", "p2", "p1", "p2"])
    make_personas(world, moved, MARK.decode(), ["p2", "p1"])
    make_personas(world, other, "harmless", ["p2", "p2"])
    said = b"Wyqjzzk"  # by a person
    ours, theirs = persona_id(quoting, 1, 2), persona_id(other, 1, 1)
    for place in (2, 3):
        decisions.decide(world.settings, persona_id(quoting, 1, place), "lock", True)
    decisions.decide(world.settings, ours, "edit", {"name": said.decode()})
    decisions.decide(world.settings, theirs, "edit", {"name": "Bea"})
    workers.catch_up()
    assert {"nodes", "llm_answers", "llm_calls", "dead_letters"} <= set(tables_with(world, MARK))
    creation.create(world.settings, "before")
    group = world.topology.group("personas")

    def go_on(_: object) -> None:
        """The stores, and a stage that has nothing to say."""
        workers.catch_up()
        there = world.admin.topics()
        names = [topic.name for topic in (*group.reads, group.redo)]
        places = [(name, number) for name in names for number in range(there[name])]
        world.admin.alter_offsets(group.name, world.admin.ends(places))

    def forget(*records: str) -> None:
        with Forgetting(world.settings, forgetting.take_out) as work:
            if records:
                work.make(Selection(ids=records), purge=True)
            (order,) = work.unfinished()
            work.go_on(order, seconds=60, tell=go_on)
            assert order.waits == [] and order.state == "purged"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sending, "queue", killed)
        forget("post:reddit:p1")
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]
    forget()
    assert tables_with(world, MARK) == topics_with(world, MARK) == files_with(world) == []
    assert world.sql("SELECT community_id FROM personas") == [(other,), (other,)]
    assert world.sql("SELECT root_id FROM nodes UNION SELECT root_id FROM edges") == [(other,)]
    assert world.sql("SELECT record_id FROM llm_answers") == [(other,)]
    # What somebody locked stays, unless it names the post. The others are queued to be made anew.
    assert world.sql(
        "SELECT record_id, number, jsonb_path_query_array(keep, '$[*].id') FROM llm_sets ORDER BY 1"
    ) == [(quoting, 2, [ours]), (moved, 2, [])]
    assert world.sql("SELECT record_id FROM redo ORDER BY 1") == [(quoting,), (moved,)]
    with stores.connect(world.settings) as connection:
        assert list(doctor._graph(connection)) == []

    forget(quoting)
    assert decisions.standing(world.settings).keys() == {(theirs, "edit")}
    assert world.sql("SELECT subject FROM decisions") == [(theirs,)]
    assert world.sql("SELECT record_id FROM llm_sets") == [(moved,)]
    assert topics_with(world, said) == tables_with(world, said) == []
    wait_for(
        lambda: not broker.files_with(world.project, said),
        message=lambda: str(broker.files_with(world.project, said)),
    )
    workers.close()


def waiting(world: World) -> int:
    """How many of the project's sessions wait for a lock."""
    ((count,),) = world.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND application_name LIKE %s",
        [f"% {world.project}"],
    )
    return int(count)


def kill(world: World, process: Popen[bytes]) -> None:
    """With what it has asked the database for, which else would still be done when it can be."""
    os.killpg(process.pid, 9)
    process.wait(30)
    mine = "application_name = 'headrace forget ' || current_schema()"
    world.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
    wait_for(lambda: not world.sql(f"SELECT FROM pg_stat_activity WHERE {mine}"))


def doctor_says(world: World) -> list[str]:
    return [str(one) for one in doctor.examine(world.settings).findings if one.level == "finding"]
