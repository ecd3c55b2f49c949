"""Weaviate becomes what PostgreSQL is, whatever happens on the way."""

from __future__ import annotations

import numpy as np

from consumers.search.projector import SearchLoop
from headrace.backlog import doctor, lag
from headrace.models import embedding
from headrace.search import collections, compare
from headrace.search.versions import key
from tests.search.conftest import Search

GROUPS = ("text", "entities", "sentiment")


def test_an_object_holds_the_whole_record(search: Search):
    world = search.world
    world.post(
        ids=["1"], texts=["I love the new Nike shoes #running"], title="Shoes", author="ann",
        community="Sneaker Talk", created_at="2024-05-01T12:00:00Z", metrics={"likes": 3},
    )  # fmt: skip
    world.run("postgres")
    search.project()
    early = search.objects()["post:reddit:1"]
    assert early["text"] == "I love the new Nike shoes #running"
    assert early["sentiment_status"] == "pending" and early["sentiment"] is None
    world.run(*GROUPS)
    search.project()
    late = search.objects()["post:reddit:1"]
    assert late["row_version"] > early["row_version"]
    assert (late["sentiment"], late["sentiment_status"]) == ("positive", "ok")
    assert late["entities"] == ["Nike"] and late["entity_keys"] == ["nike"]
    assert (late["community"], late["community_key"]) == ("Sneaker Talk", "sneaker-talk")
    assert (late["language"], late["hashtags"]) == ("en", ["running"])
    assert late["created_at"].isoformat() == "2024-05-01T12:00:00+00:00"
    assert search.compare().apart == 0

    world.delete("post:reddit:1")
    world.run("postgres")
    search.project()
    assert search.objects() == {}
    assert search.compare().apart == 0
    # A write that comes late, after the deletion.
    late = search.client.collections.use(next(iter(search.names()))).data
    late.insert({"record_id": "post:reddit:1", "row_version": 5}, uuid=key("post:reddit:1"))
    assert search.compare().apart == 1 and search.objects() == {}
    search.project()
    assert search.compare().apart == 0
    # And one that is not even a row any more.
    world.post(ids=["2"])
    world.run("postgres")
    search.project()
    assert set(search.objects()) == {"post:reddit:2"}
    world.sql("DELETE FROM records WHERE id = 'post:reddit:2'")
    assert search.compare().unknown == 1
    search.project()
    assert search.objects() == {} and search.compare().unknown == 0


def test_a_rebuild_serves_all_the_while(search: Search, monkeypatch):
    world = search.world
    world.post(n=30)
    world.post("youtube", n=5)
    world.run("postgres")
    search.project()
    before = search.names()
    project = f"{world.project[0].upper()}{world.project[1:]}"
    assert before == {
        f"{project}_RedditPost": [f"{project}_RedditPost_v1"],
        f"{project}_YoutubePost": [f"{project}_YoutubePost_v1"],
    }
    monkeypatch.setattr(SearchLoop, "_turn_over", lambda *_: None)
    world.command("search", "rebuild", "--no-wait")
    world.post(ids=["late"])
    world.run("postgres")
    search.project()
    assert search.names()[f"{project}_RedditPost"] == [
        f"{project}_RedditPost_v1",
        f"{project}_RedditPost_v2",
    ]
    for name in search.names()[f"{project}_RedditPost"]:  # a change goes to both
        total = search.client.collections.use(name).aggregate.over_all().total_count
        assert total == 31
    assert "post:reddit:late" in search.objects()  # the alias still shows the first
    # What Weaviate loses of the new ones is seen before they serve.
    new = search.client.collections.use(f"{project}_RedditPost_v2")
    new.data.delete_by_id(key("post:reddit:3"))
    world.sql("UPDATE search_written SET written_at = now() - interval '1 hour'")
    search.loop._swept = 0.0
    search.loop.work()
    search.project()
    assert new.aggregate.over_all().total_count == 31
    monkeypatch.undo()
    search.project()
    assert search.names() == {
        f"{project}_RedditPost": [f"{project}_RedditPost_v2"],
        f"{project}_YoutubePost": [f"{project}_YoutubePost_v2"],
    }
    assert len(search.objects()) == 31 and len(search.objects("YoutubePost")) == 5
    assert not search.client.collections.exists(f"{project}_RedditPost_v1")
    assert search.compare().apart == 0
    # The command itself does the whole of it.
    told = world.command("search", "rebuild").stdout
    assert "36 records to project" in told and "the new collections serve" in told
    assert search.names()[f"{project}_RedditPost"] == [f"{project}_RedditPost_v3"]
    assert len(search.objects()) == 31


def test_what_comes_while_a_rebuild_begins_is_not_left_out(search: Search):
    world = search.world
    world.post(n=3)
    world.run("postgres")
    search.project()
    with search.connection() as own, own.transaction():
        collections.begin_rebuild(own, search.client, search.settings)
        world.post(ids=["late"])  # no mark of the rebuild's
        world.run("postgres")
        search.project()
    search.project()
    assert [name[-3:] for found in search.names().values() for name in found] == ["_v2"]
    assert len(search.objects()) == 4


def test_a_rebuild_is_where_search_begins(searches):
    search = searches(flags={"search.enabled": False})
    world = search.world
    world.post(n=20)
    world.run("postgres")
    assert search.waiting() == 0
    world.command("search", "rebuild")
    assert len(search.objects()) == 20 and search.compare().apart == 0


def test_what_weaviate_refuses_is_kept_and_shown(search: Search):
    world = search.world
    world.post(n=3)
    world.run("postgres")
    _give_vector(search, "post:reddit:0", 4)
    search.project()
    _give_vector(search, "post:reddit:1", 3)  # the collection's vectors have four numbers now
    search.project()
    ((record, reason),) = world.sql("SELECT record_id, reason FROM search_errors")
    assert record == "post:reddit:1" and "vector" in reason
    assert search.waiting() == 0
    assert "1 records refused" in lag.read(world.settings, ["search"])[0].reason
    assert "post:reddit:1" in world.command("search", "errors").stdout
    found = [one.what for one in doctor.examine(world.settings).findings if one.check == "search"]
    assert found == ["Weaviate refused 1 records"]
    world.sql("DELETE FROM vectors WHERE record_id = 'post:reddit:1'")
    world.command("search", "errors", "--retry")
    search.project()
    assert world.sql("SELECT count(*) FROM search_errors") == [(0,)]
    assert len(search.objects()["post:reddit:1"]) and search.compare().apart == 0


def test_what_differs_is_found_and_mended(search: Search):
    world = search.world
    world.post(n=10)
    world.run("postgres")
    search.project()
    (name,) = [c for found in search.names().values() for c in found]
    # A write that stalled lands late: an older picture over the newer one.
    search.client.collections.use(name).data.replace(
        key("post:reddit:3"), {"record_id": "post:reddit:3", "row_version": 1, "text": "old"}
    )
    search.client.collections.use(name).data.delete_by_id(key("post:reddit:4"))
    with search.connection() as own:
        apart = compare.differing(own, search.client, search.settings, ["post:reddit:3"])
        assert apart == ["post:reddit:3"]
    world.sql("UPDATE search_written SET written_at = now() - interval '1 hour'")
    search.loop._swept = 0.0
    search.loop.work()  # the sweep over what was written lately
    assert search.waiting() == 2
    search.project()
    assert search.objects()["post:reddit:3"]["text"] != "old"
    assert len(search.objects()) == 10
    # However many small writes there were, none waits for its turn.
    world.sql(
        "INSERT INTO search_written (record_ids, written_at)"
        " SELECT ARRAY['post:reddit:1'], now() - interval '1 hour' FROM generate_series(1, 25)"
    )
    search.loop._swept = 0.0
    for _ in range(3):
        search.loop.work()
    old = "SELECT count(*) FROM search_written WHERE written_at < now() - interval '30 minutes'"
    assert world.sql(old) == [(0,)]
    # Later only doctor sees it.
    world.sql("DELETE FROM search_written")
    search.client.collections.use(name).data.delete_by_id(key("post:reddit:5"))
    found = [one for one in doctor.examine(world.settings).findings if one.check == "search"]
    assert len(found) == 1 and "1 of 10 records otherwise" in found[0].what
    search.project()
    assert [f for f in doctor.examine(world.settings).findings if f.check == "search"] == []


def test_a_collection_that_weaviate_lost_is_made_anew(search: Search):
    world = search.world
    world.post(n=5)
    world.run("postgres")
    search.project()
    (name,) = [c for found in search.names().values() for c in found]
    search.client.collections.delete(name)
    search.loop.close()
    search.project()
    assert len(search.objects()) == 5 and search.compare().apart == 0
    # So is one that was to be followed by another; that one goes too.
    world.command("search", "rebuild", "--no-wait")
    ((serving, new),) = search.names().values()
    search.client.collections.delete(serving)
    search.loop.close()
    search.project()
    assert list(search.names().values()) == [[serving]]
    assert not search.client.collections.exists(new)
    assert len(search.objects()) == 5 and search.compare().apart == 0


def test_the_backlog_is_shown(search: Search):
    world = search.world
    (fresh,) = lag.read(world.apply().settings, ["search"])
    assert (fresh.state, fresh.lag) == ("NOT_STARTED", 0)
    world.post(n=7)
    world.run("postgres")
    (waits,) = lag.read(world.settings, ["search"])
    assert waits.lag == 7 and waits.seconds_behind is not None
    assert "search" in world.command("lag").stdout
    search.project()
    (done,) = lag.read(world.settings, ["search"])
    assert done.lag == 0 and done.caught_up
    assert [group.group for group in lag.read(world.settings)] == list(world.topology.groups)


def test_names_are_templates(searches):
    names = {"default": "Everything", "community": "{platform}Circles"}
    search = searches(flags={"search.collections": names})
    world = search.world
    world.post(n=2)
    world.post("youtube", n=2)
    world.run("postgres")
    search.project()
    assert len(search.objects("Everything")) == 4
    assert collections.alias(search.settings, "reddit", "community").endswith("_RedditCircles")


def _give_vector(search: Search, record: str, dimensions: int) -> None:
    """As the store does, with the mark."""
    search.world.sql(
        "INSERT INTO vectors (record_id, space, stage, dimensions, vector, version, rank,"
        " root_topic_id, root_partition, root_offset, root_appended)"
        " VALUES (%s, %s, 'embeddings', %s, %s, '1', 1, 't', 0, 0, 0)",
        [
            record,
            embedding.space_of(search.settings.embeddings),
            dimensions,
            np.ones(dimensions, "<f4").tobytes(),
        ],
    )
    search.world.sql("INSERT INTO search_dirty (record_id) VALUES (%s)", [record])
