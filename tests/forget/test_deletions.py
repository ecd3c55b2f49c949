"""Deletions inside files, and rows of forgotten records inside rejects files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from headrace import config
from producers import forgetting
from producers.communities import Communities
from producers.formats import ReadOptions, open_rows
from producers.mapping import Mapped, Mappings, Rejected, map_rows
from producers.rejects import Reject, RejectsWriter, read_rejects

MAPPING = """
mappings:
  posts:
    match: [id]
    id: id
    text: body
    author: by
    deleted: {from: state, values: {removed: true}}
    required: [text]
"""


@pytest.fixture
def mappings(tmp_path: Path) -> Mappings:
    path = tmp_path / "reddit.yaml"
    path.write_text(MAPPING)
    return Mappings.load(path)


def mapped(mappings: Mappings, tmp_path: Path, *rows: dict[str, Any]) -> list[Mapped | Rejected]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    with open_rows(path, ReadOptions()) as opened:
        return list(map_rows(opened, mappings))


def test_a_row_that_says_so_is_a_deletion(mappings: Mappings, tmp_path: Path) -> None:
    found = mapped(
        mappings,
        tmp_path,
        {"id": "a", "body": "stays", "deleted": False, "state": "shown"},
        {"id": "b", "deleted": True},
        {"id": "c", "body": "was here", "state": "removed"},
        {"body": "whose?", "deleted": True},
        {"id": "d", "body": "stays", "deleted": "2026-01-01"},
    )
    records = [item.record if isinstance(item, Mapped) else item.reason for item in found]
    assert records[1:4] == [
        {"id": "post:reddit:b", "kind": "post", "platform": "reddit", "deleted": True},
        {"id": "post:reddit:c", "kind": "post", "platform": "reddit", "deleted": True},
        "the id is missing (id)",
    ]
    assert [record["text"] for record in (records[0], records[4])] == ["stays", "stays"]  # type: ignore[index]
    assert orjson.loads(found[1].value) == records[1]  # type: ignore[union-attr]


def test_a_mapping_without_a_word_on_deletions_keeps_its_version(tmp_path: Path) -> None:
    # What was published under it before is known still.
    path = tmp_path / "reddit.yaml"
    silent = "\n".join(line for line in MAPPING.splitlines() if "deleted" not in line)
    path.write_text(silent)
    before = Mappings.load(path).get("posts")
    assert before.version == "587c18a85f7b"
    path.write_text(MAPPING)
    assert Mappings.load(path).get("posts").version != before.version


def test_a_community_no_longer_shows_a_post_that_is_deleted_later_in_the_file() -> None:
    communities = Communities("reddit", best=2)
    for number in range(4):
        communities.add(
            {"id": f"post:reddit:{number}", "community": "jars", "text": "t", "metrics": {}}
        )
    communities.add({"id": "post:reddit:3", "deleted": True})
    (community,) = communities.records()
    assert [post["id"] for post in community["best_posts"]] == ["post:reddit:2"]
    assert communities.without == 0


class Wanted:
    names = ("Ann O'Nym",)

    def offsets(self, records: set[str]) -> dict[str, int]:
        return dict.fromkeys(records & {"post:reddit:gone"}, 1)

    def by(self, author: object, platform: str | None) -> bool:
        return platform == "reddit" and author in self.names


def test_lines_of_what_is_forgotten_go_and_nothing_moves(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "platforms"
    folder.mkdir(parents=True)
    (folder / "reddit.yaml").write_text(MAPPING)
    settings = config.load({"config": os.devnull, "home": tmp_path, "platforms": folder})
    path = tmp_path / "rejects" / "rows.csv.12345678.rejects.jsonl"
    writer = RejectsWriter(path)

    def reject(row: dict[str, Any] | None = None, raw: str | None = None) -> None:
        writer.write(Reject("rows.csv", 1, "why", "reddit", "posts", "posts", row, raw))

    reject({"id": "gone", "body": ""})
    reject({"id": "gone-not", "body": ""})
    reject({"id": "x", "by": "Ann O'Nym"})
    reject({"id": "y", "by": "Ann O'Nymous"})
    reject(raw='{"id": "gone", "body": "torn')
    reject(raw="a line by Ann O'Nym, torn")
    reject(raw="gones are not gone-for-good")
    kept = writer.flush()
    reject({"id": "gone"})  # behind what a killed publish had noted
    writer.flush()
    size = path.stat().st_size

    assert forgetting.take_out(settings, Wanted(), look=True) == 5
    assert len(list(read_rejects(path))) == 8
    assert forgetting.take_out(settings, Wanted()) == 5
    assert forgetting.take_out(settings, Wanted()) == 0
    assert path.stat().st_size == size
    left = [reject.row or reject.raw for reject in read_rejects(path)]
    assert left == [
        {"id": "gone-not", "body": ""},
        {"id": "y", "by": "Ann O'Nymous"},
        "gones are not gone-for-good",
    ]
    # A publish that goes on behind its note finds whole lines.
    again = RejectsWriter(path, kept)
    again.write(Reject("rows.csv", 9, "why", "reddit", "posts", "posts", {"id": "z"}))
    again.close()
    assert [reject.row for reject in read_rejects(path)][-1] == {"id": "z"}
