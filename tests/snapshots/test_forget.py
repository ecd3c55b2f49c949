"""What is forgotten is in no snapshot any more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from headrace.snapshots import checking, creation, folder, forget, restoring
from headrace.snapshots.manifest import Manifest
from tests.world import World

FILL = """
INSERT INTO dim_platform (id, name) VALUES (1, 'reddit'), (2, 'youtube');
INSERT INTO dim_author (id, platform_id, name) VALUES (1, 1, 'ann secret'), (2, 2, 'ann secret');
INSERT INTO records (id, kind, platform_id, text, author_id, topic, topic_id, partition, "offset",
                     appended)
VALUES (E'post:reddit:a\\\\b', 'post', 1, E'a secret\\nin two lines', 1, 't', 'i', 0, 0, 1),
       ('post:reddit:ab', 'post', 1, 'may stay', NULL, 't', 'i', 0, 1, 1),
       ('post:youtube:a', 'post', 2, 'may stay', 2, 't', 'i', 0, 2, 1);
INSERT INTO entity_mentions (record_id, stage, start, "end", text, name, type, revision, version)
SELECT id, 'entities', 0, 6, CASE WHEN id LIKE '%b' THEN 'secret' END, 'x', 'brand', 'r', '1'
FROM records WHERE id = E'post:reddit:a\\\\b';
INSERT INTO dead_letters ("group", record_key, topic, partition, "offset", reason, at, value)
VALUES ('text', E'post:reddit:a\\\\b', 't', 0, 0, 'why', now(), 'secret');
INSERT INTO records (id, kind, platform_id, deleted, topic, topic_id, partition, "offset", appended)
VALUES ('post:youtube:gone', 'post', 2, true, 't', 'i', 0, 3, 1);
INSERT INTO entity_mentions (record_id, stage, start, "end", text, name, type, revision, version)
VALUES ('post:youtube:gone', 'entities', 0, 6, 'left over', 'x', 'brand', 'r', '1');
SELECT setval('dim_author_id_seq', 2);
"""
SECRET = "post:reddit:a\\b"
ASKED = (SECRET, "t", b"secret")


def content(place: Path) -> bytes:
    """Everything that any file holds, whether a manifest names it or not."""
    return b"".join(piece for path in place.rglob("*.zst") for piece in folder.unpack(path))


def ids(world: World) -> list[str]:
    return [row[0] for row in world.sql("SELECT id FROM records ORDER BY id")]


def rows(world: World, table: str) -> int:
    return int(world.sql(f"SELECT count(*) FROM {table}")[0][0])


def test_no_snapshot_holds_what_is_forgotten(world: World, monkeypatch: Any) -> None:
    settings = world.apply().settings
    world.sql(FILL)
    creation.create(settings, "one")
    creation.create(settings, "two")
    place = folder.root(settings)
    assert content(place).count(b"secret") == 8
    assert content(place).count(b"secret".hex().encode()) == 2

    letters = {"one": 1, "two": 1}
    assert forget(settings, [], letters=lambda *said: said == ASKED, dry_run=True) == letters

    shutil.copytree(place / "one", place.parent / "elsewhere")
    gone = {"one": 4, "two": 4}
    wanted = {"authors": [("reddit", "ann secret")]}
    assert forget(settings, [SECRET], **wanted, dry_run=True) == gone

    # A kill before the new manifest stands changes nothing; the remains are swept.
    def killed(path: Path, manifest: Manifest) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder, "write", killed)
        forget(settings, [SECRET], **wanted)
    assert checking.verify(settings, "one") == []
    # One after it leaves files that nobody names: they are swept too.
    shutil.copytree(place / "one", place.parent / "copy")
    (place / "three.partial").mkdir()
    shutil.copy(place / "one" / "records.copy.zst", place / "three.partial")
    assert forget(settings, [SECRET], **wanted) == gone
    shutil.copy(place.parent / "copy" / "records.copy.zst", place / "one" / "records.copy.zst")
    assert forget(settings, [SECRET], **wanted) == {}
    shutil.rmtree(place.parent / "copy")

    # A snapshot that holds a newer revision than the deletion keeps it, and a deletion itself.
    assert forget(settings, {"post:reddit:ab": 0, "post:youtube:a": 2}) == {}
    one = {"one": 1, "two": 1}
    assert forget(settings, {"post:reddit:ab": 0, "post:youtube:a": 3}, dry_run=True) == one
    assert forget(settings, {"post:youtube:gone": 3}, dry_run=True) == one  # a mention is left
    assert forget(settings, ["post:youtube:gone"]) == one

    assert b"secret" in content(place)  # of youtube's ann, who is another
    assert content(place).count(b"secret") == 2
    assert b"secret".hex().encode() not in content(place)
    assert not list(place.glob("*.partial"))
    for name in gone:
        assert checking.verify(settings, name) == []
    restoring.restore(settings, "one")
    assert ids(world) == ["post:reddit:ab", "post:youtube:a", "post:youtube:gone"]
    assert (rows(world, "dead_letters"), rows(world, "entity_mentions")) == (0, 0)

    assert forget(settings, [], platforms=["youtube"]) == {"one": 2, "two": 2}
    assert b"secret" not in content(place)
    restoring.restore(settings, "two")
    assert ids(world) == ["post:reddit:ab", "post:youtube:gone"]

    # A copy that lay elsewhere brings nothing back either, but what is newer than the deletion.
    (place.parent / "elsewhere").rename(place / "elsewhere")
    world.sql(
        "INSERT INTO forget_records (order_id, record_id, kind, platform, topic, partition,"
        " \"offset\") VALUES ('o', %s, 'post', 'reddit', 't', 0, 7),"
        " ('o', 'post:reddit:ab', 'post', 'reddit', 't', 0, 0)",
        [SECRET],
    )
    restoring.restore(settings, "elsewhere")
    assert ids(world) == ["post:reddit:ab", "post:youtube:a", "post:youtube:gone"]
    assert (rows(world, "dead_letters"), rows(world, "entity_mentions")) == (0, 1)
    assert world.sql("SELECT platform_id FROM dim_author") == [(2,)]  # reddit's ann has no record
