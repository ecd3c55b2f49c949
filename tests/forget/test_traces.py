"""Traces beside the way of records: of what a file has deleted, and of a purge that was killed."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import cli
from headrace.backlog import doctor
from headrace.errors import HeadraceError
from headrace.forget import orders, purge, sending
from headrace.forget.orders import Selection
from headrace.forget.work import Forgetting
from headrace.redo.sending import Sender
from headrace.stores import postgres
from producers import forgetting
from tests.forget.conftest import Workers
from tests.world import World, wait_for


def best(number: int) -> dict[str, object]:
    return {"id": f"post:reddit:{number}", "title": f"title {number}", "score": number}


def test_what_files_have_deleted_is_quoted_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.post("reddit", 3, author="ann", community="jars")
    world.publish(
        [
            {
                "id": "community:reddit:jars", "kind": "community", "platform": "reddit",
                "name": "jars", "slug": "jars", "posts": 3,
                "best_posts": [best(number) for number in range(3)],
            }
        ]
    )  # fmt: skip
    world.delete("post:reddit:1")
    workers = Workers(world, "postgres")
    workers.catch_up()
    quoted = (
        "SELECT jsonb_path_query_array(value::jsonb, '$.best_posts[*].id') FROM records"
        " WHERE kind = 'community'"
    )
    send = sending.Sender.send

    def killed(sender: sending.Sender, records: Any) -> None:
        send(sender, records)
        raise KeyboardInterrupt

    with Forgetting(world.settings, forgetting.take_out) as work:
        order = work.make(Selection(deleted=True), purge=False)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sending.Sender, "send", killed)
            work.step(order)
        (order,) = work.orders(order.id)
        work.step(order)
        assert order.waits and order.counts["communities"] == 1
        workers.catch_up()
        work.step(order)
        ((first, end),) = order.progress["quotes"][f"{world.project}.raw.communities"].values()
        assert end == first + 1  # it is out, and known
        assert world.sql(quoted) == [(["post:reddit:0", "post:reddit:2"],)]
        assert order.counts.get("authors", 0) == 0
        # All groups but the store are yet to come.
        assert any(wait.startswith("text has ") for wait in order.waits), order.waits
        again = work.look(Selection(deleted=True))
        assert again["communities"] == 0
        with (
            pytest.raises(HeadraceError, match="another"),
            Forgetting(world.settings, forgetting.take_out),
        ):
            pass
    workers.close()


def test_what_is_being_queued_again_is_waited_for(world: World) -> None:
    world.post("reddit", 1)
    workers = Workers(world, "postgres")
    workers.catch_up()
    group = world.topology.group("text")
    with Forgetting(world.settings, forgetting.take_out) as work:
        order = work.make(Selection(ids=("post:reddit:0",)), purge=False)
        with Sender(world.settings, world.topology, group):  # has read what it is yet to send
            work.step(order)
            workers.catch_up()
            work.step(order)
            assert order.waits == ["another command is queueing work of text"]
            world.send("text.redo", "post:reddit:0", b"{}")
        work.step(order)
        assert sum(order.progress["ends"][group.redo.name].values()) == 1
    workers.close()


def test_what_came_back_is_forgotten_by_its_id_and_not_by_its_deletion(world: World) -> None:
    world.post("reddit", 2)
    world.delete("post:reddit:0")
    world.delete("post:reddit:1")
    workers = Workers(world, "postgres")
    workers.catch_up()
    stands = "SELECT id FROM records WHERE NOT deleted"
    with Forgetting(world.settings, forgetting.take_out) as work:
        by_id = work.make(Selection(ids=("post:reddit:0",)), purge=False)
        world.post("reddit", 1)  # of which the store knows nothing yet
        work.step(by_id)
        workers.catch_up()
        assert world.sql(stands) == []
        deleted = work.make(Selection(deleted=True), purge=False)
        with postgres.connect(world.settings, autocommit=True) as connection:
            orders.select(connection, deleted)
            world.post("reddit", ids=["1"])
            workers.catch_up()
            sending.deletions(connection, sending.Sender(world.settings, deleted), deleted)
            assert list(orders.chunks(connection, deleted)) == []
    workers.catch_up()
    assert world.sql(stands) == [("post:reddit:1",)]
    workers.close()


def test_a_killed_purge_leaves_nothing_changed(world: World) -> None:
    world.apply()
    topic = world.topology.topic("raw.posts.reddit").name
    world.admin.alter_configs({topic: {"segment.ms": "3600000"}})
    wait_for(lambda: "segment.ms" in world.admin.own_configs([topic])[topic])
    before = world.admin.own_configs([topic])[topic]
    with postgres.connect(world.settings, autocommit=True) as connection:
        purge.lower(connection, world.admin, [topic], {"segment.ms": "500"})
        purge.let_clean(connection, world.admin, [topic])
        purge.lower(connection, world.admin, [topic], {"segment.ms": "500"})
    now = world.admin.own_configs([topic])[topic]
    assert (now["segment.ms"], float(now["min.cleanable.dirty.ratio"])) == ("500", 0.0)
    found = [str(finding) for finding in doctor.examine(world.settings).findings]
    assert any("has a purge's min.cleanable.dirty.ratio, segment.ms still" in f for f in found)
    world.command("forget", "--resume")
    assert world.admin.own_configs([topic])[topic] == before
    assert world.sql("SELECT count(*) FROM forget_configs") == [(0,)]


def test_what_is_asked_must_be_plain(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in world.env().items():
        monkeypatch.setenv(name, value)

    def said(*words: str, code: int = 2) -> str:
        assert cli.main(["forget", *words]) == code
        return "".join(capsys.readouterr())

    assert "say what is to be forgotten" in said()
    assert "one of them" in said("post:reddit:1", "--author", "ann")
    assert "go alone" in said("--list", "--author", "ann")
    assert "no record's id" in said("1abc", "--dry-run")
    assert "platform nowhere is not known" in said("--platform", "nowhere", "--dry-run")
    assert "give --yes too" in said("post:reddit:1", "--json")
    assert "nobody is there to be asked" in said("post:reddit:1")
    assert "--dry-run is for what is to be forgotten" in said("--resume", "--dry-run")
    assert "order 1 is not known" in said("--status", "1")
    assert "nothing was forgotten yet" in said("--list", code=0)
    with Forgetting(world.settings, forgetting.take_out) as work:
        work.make(Selection(author="ann"), purge=True)
    told = said("--list", code=0)
    assert "is on its way: nothing" in told
