"""A snapshot brings the stores back, whole or not at all, and the topics bring the rest."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer

from headrace.backlog import doctor, lag
from headrace.errors import HeadraceError
from headrace.snapshots import checking, creation, folder, restoring, tables
from headrace.stores import migrate, postgres
from headrace.stream import clients, topics
from tests.search.conftest import Search
from tests.snapshots.conftest import expire
from tests.world import World, wait_for

STAGES = ("entities", "embeddings")

# What a store must be after catching up, without the times and numbers of its own way there.
STATE = {
    "records": """
        SELECT to_jsonb(r) - '{ingested_at,updated_at,row_version,platform_id,author_id,
                               community_id,run_id}'::text[]
               || jsonb_build_object('platform', p.name, 'author', a.name, 'community', c.name,
                                     'run', u.run)
        FROM records r JOIN dim_platform p ON p.id = r.platform_id
        LEFT JOIN dim_author a ON a.id = r.author_id
        LEFT JOIN dim_community c ON c.id = r.community_id LEFT JOIN dim_run u ON u.id = r.run_id
        ORDER BY r.id""",
    "outcomes": """
        SELECT to_jsonb(o) - '{stored_at,row_version}'::text[] FROM outcomes o
        ORDER BY record_id, stage""",
    "mentions": """
        SELECT to_jsonb(m) - 'place_id' || jsonb_build_object('place', p.name)
        FROM entity_mentions m LEFT JOIN dim_place p ON p.id = m.place_id
        ORDER BY record_id, stage, start, m.name""",
    "vectors": "SELECT to_jsonb(v) - 'stored_at' FROM vectors v ORDER BY record_id, space",
    "letters": """
        SELECT to_jsonb(d) - 'id' FROM dead_letters d ORDER BY "group", topic, partition, "offset"
        """,
    "offsets": """
        SELECT to_jsonb(o) - 'updated_at' FROM offsets o ORDER BY "group", topic, partition""",
}


def state(world: World) -> dict[str, Any]:
    return {name: world.sql(query) for name, query in STATE.items()}


def ids(world: World) -> list[str]:
    return [row[0] for row in world.sql("SELECT id FROM records ORDER BY id")]


def fill(world: World, *natives: str, text: str = "some text") -> None:
    """Records as a store might have written them."""
    world.sql("INSERT INTO dim_platform (name) VALUES ('reddit') ON CONFLICT DO NOTHING")
    for number, native in enumerate(natives):
        world.sql(
            "INSERT INTO records (id, kind, platform_id, text, topic, topic_id, partition,"
            " \"offset\", appended) SELECT %s, 'post', id, %s, 't', 'i', 0, %s, 1"
            " FROM dim_platform",
            [f"post:reddit:{native}", text, number],
        )


def objects(search: Search) -> dict[str, Any]:
    own = ("row_version", "ingested_at")
    return {
        record_id: {name: value for name, value in found.items() if name not in own}
        for record_id, found in search.objects().items()
    }


def waits_for_a_lock(world: World) -> bool:
    found = world.sql(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND application_name LIKE %s",
        [f"headrace%{world.project}"],
    )
    return found != [(0,)]


def sessions(world: World, application: str) -> int:
    return len(
        world.sql(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s",
            [f"{application} {world.project}"],
        )
    )


def test_what_was_wrecked_is_as_if_nothing_had_been(search: Search) -> None:
    world = search.world
    words = ["I love my new Nike shoes", "Paris was awful\tand\\cold\nthat day", "It rains"]
    world.post(n=6, texts=words, author="ann", community="Talk")
    world.post("youtube", n=3, texts=words, run="r2")
    world.delete("post:reddit:5")
    world.send("raw.posts.reddit", "post:reddit:x", b"no record")
    world.run(*STAGES)
    search.project()
    world.command("snapshot", "create", "before")
    was = state(world)

    world.post(ids=["0", "5", "6"], texts=["Now I hate them", "back again"], author="bob")
    world.delete("post:reddit:1")
    world.send("raw.posts.reddit", "post:reddit:y", b"no record either")
    world.run(*STAGES)
    search.project()
    undisturbed, shown = state(world), objects(search)
    assert undisturbed != was and len(undisturbed["vectors"]) == 9

    world.sql("TRUNCATE outcomes, vectors, entity_mentions, offsets, dim_author, dead_letters")
    world.sql("DELETE FROM records WHERE id < 'post:reddit:3'")
    world.sql("UPDATE records SET text = 'wrecked', \"offset\" = 1000000")
    for name in search.names().values():
        search.client.collections.delete(name[0])
    search.loop.close()  # a projector looks what Weaviate has when it connects

    said = world.command("snapshot", "restore", "before", "--yes").stdout
    assert "messages came later" in said
    assert state(world) == was
    (stores,) = lag.read(world.settings, ["postgres"])
    assert stores.lag > 0 and not stores.caught_up

    world.run("postgres")
    search.project()
    assert state(world) == undisturbed
    assert objects(search) == shown
    compared = search.compare()
    assert (compared.apart, compared.unknown) == (0, 0)


def test_a_kill_leaves_what_was_there(world: World) -> None:
    world.apply()
    fill(world, "1", "2", "3")
    place = folder.root(world.settings)
    with postgres.connect(world.settings) as blocker:
        blocker.execute("LOCK TABLE vectors IN ACCESS EXCLUSIVE MODE")
        process = world.start("snapshot", "create", "torn")
        wait_for(lambda: waits_for_a_lock(world), message=lambda: world.log_of(process))
        process.kill()
        process.wait()
    assert (place / "torn.partial" / "records.copy.zst").exists()
    assert "torn.partial" in world.command("snapshot", "list").stdout
    assert checking_fails(world, "torn") == f"there is no snapshot torn in {place}; there are: none"
    creation.create(world.settings, "torn")
    assert sorted(path.name for path in place.iterdir()) == [".lock", "torn"]
    assert checking.verify(world.settings, "torn") == []

    world.sql("DELETE FROM records")
    fill(world, "new")
    with postgres.connect(world.settings) as blocker:
        blocker.execute("LOCK TABLE search_dirty IN SHARE MODE")
        process = world.start("snapshot", "restore", "torn", "--yes")
        wait_for(lambda: waits_for_a_lock(world), message=lambda: world.log_of(process))
        process.kill()
        process.wait()
    wait_for(lambda: not sessions(world, "headrace restore"))
    assert ids(world) == ["post:reddit:new"]
    restoring.restore(world.settings, "torn")
    assert ids(world) == [f"post:reddit:{n}" for n in "123"]
    marked = {row[0] for row in world.sql("SELECT record_id FROM search_dirty")}
    assert marked == {"post:reddit:new", *ids(world)}
    fill(world, "4")  # the sequences go on
    assert len(set(world.sql("SELECT row_version FROM records"))) == 4


def checking_fails(world: World, name: str) -> str:
    with pytest.raises(HeadraceError) as caught:
        checking.verify(world.settings, name)
    return str(caught.value)


def test_what_cannot_be_restored_is_refused_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.apply()
    fill(world, "1")
    made = creation.create(world.settings, "one")
    fill(world, "2")
    path = folder.root(world.settings) / "one"

    group = world.topology.group("postgres")
    member = Consumer(clients.consumer_conf(world.settings, group.name))
    member.subscribe([group.redo.name])
    wait_for(lambda: member.poll(0.1) or member.assignment())
    assert "1 worker of" in refused(world, "one")
    # One that joins later is noticed before the commit.
    looks = iter([lambda *_: None])
    look = restoring.nobody_works
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "nobody_works", lambda *said: next(looks, look)(*said))
        assert "1 worker of" in refused(world, "one")
    assert ids(world) == ["post:reddit:1", "post:reddit:2"]
    member.close()
    wait_for(lambda: not world.admin.members(group.name))

    packed = path / made.files["records"].name
    content = packed.read_bytes()
    packed.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    result = world.command("snapshot", "verify", "one", check=False)
    assert result.returncode == 1
    assert result.stdout.splitlines()[0] == ("records.copy.zst is damaged: its checksum is another")
    assert "records.copy.zst is damaged" in refused(world, "one")
    packed.write_bytes(content)
    assert checking.verify(world.settings, "one") == []

    newer = orjson.loads((path / folder.MANIFEST).read_bytes()) | {"revision": "9999"}
    manifest = (path / folder.MANIFEST).read_bytes()
    (path / folder.MANIFEST).write_bytes(orjson.dumps(newer))
    assert "version 9999" in refused(world, "one")
    (path / folder.MANIFEST).write_bytes(manifest)

    world.send("enriched.text", "post:reddit:1", b"{}")
    (topic, number), _ = expire(world, "enriched.text")
    gone = f"{topic} partition {number}: its messages from offset 0 to 0 are gone"
    assert gone in refused(world, "one")
    creation.create(world.settings, "two")
    (note,) = [one for one in doctor.examine(world.settings).findings if one.check == "snapshots"]
    assert note.what == f"one can no longer be restored: {gone}" and note.level == "note"
    assert "snapshot create" in note.do and "snapshot delete one" in note.do
    assert ids(world) == ["post:reddit:1", "post:reddit:2"]


def refused(world: World, name: str) -> str:
    with pytest.raises(HeadraceError) as caught:
        restoring.restore(world.settings, name)
    return str(caught.value)


def test_a_snapshot_of_an_older_schema_is_brought_up_to_date(worlds: Any) -> None:
    world = worlds()
    topics.ensure(world.settings, world.topology, world.admin)
    with postgres.connect(world.settings) as connection:
        connection.execute(f'CREATE SCHEMA "{world.project}"'.encode())
        migrate.run_alembic(connection, world.project, "0003")
        connection.execute(
            'INSERT INTO dead_letters ("group", topic, partition, "offset", reason, at, value)'
            " VALUES ('text', 't', 0, 7, 'a \\ and\na\ttab', now(), '\\x00ff')"
        )
    made = creation.create(world.settings, "old")
    assert (made.revision, made.rows) == ("0003", 1)
    assert ids(world) == []  # tables and views of today
    before = world.sql("SELECT * FROM dead_letters")
    world.sql("DELETE FROM dead_letters")
    restoring.restore(world.settings, "old")
    assert world.sql("SELECT * FROM dead_letters") == before
    assert world.sql("SELECT version_num FROM alembic_version") == [(migrate.head(),)]
    left = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    assert world.sql(left, [f"{world.project}$restore"]) == []


def test_every_table_is_copied_or_left_out_for_a_reason(world: World) -> None:
    world.apply()
    found = world.sql(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
    )
    assert {row[0] for row in found} == tables.INCLUDED.keys() | tables.LEFT_OUT.keys()
    assert not tables.INCLUDED.keys() & tables.LEFT_OUT.keys()
    columns = set(
        world.sql(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = current_schema()"
        )
    )
    named = {(table, content.record) for table, content in tables.INCLUDED.items() if content}
    assert named <= columns
