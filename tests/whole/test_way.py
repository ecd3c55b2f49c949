"""The way of files into tables, and what the commands say of it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.whole.corpus import TEXTS
from tests.whole.tables import Values, outcomes_of, stored
from tests.world import World


def write_files(folder: Path) -> tuple[list[Path], Values]:
    """A CSV of posts, with one row that is none and one that comes again, and comments as JSON
    lines; and the values of the records that they hold."""
    values: Values = {}
    posts = folder / "posts.csv"
    with posts.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "selftext", "permalink", "author", "score", "created_utc"])
        for number, text in enumerate([*TEXTS, "Said once more, and it is awful now"]):
            native = f"p{number % len(TEXTS)}"
            title = f"Title {number}" if number != 3 else ""
            link = f"https://www.reddit.com/r/DataScience/comments/{native}/x/"
            rows.writerow([native, title, text, link, "Ann", number, 1_700_000_000 + number])
            if title:
                values[f"post:reddit:{native}"] = {
                    "kind": "post",
                    "platform": "reddit",
                    "text": f"{title}\n\n{text}".strip(),
                    "title": title,
                    "author": "Ann",
                    "community": "DataScience",
                    "metrics": {"score": number},
                }
    comments = folder / "comments.jsonl.gz"
    with gzip.open(comments, "wt", encoding="utf-8") as file:
        for number, text in enumerate(TEXTS):
            row = {"COMMENT_ID": f"c{number}", "AUTHOR": "Bob", "DATE": "", "CONTENT": text}
            file.write(json.dumps(row) + "\n")
            values[f"comment:youtube:c{number}"] = {
                "kind": "comment",
                "platform": "youtube",
                "text": text,
                "title": None,
                "author": "Bob",
                "community": None,
                "metrics": None,
            }
    return [posts, comments], values


def told(world: World, *command: str) -> Any:
    return json.loads(world.command(*command, "--json").stdout)


def test_files_become_tables(worlds: Any, tmp_path: Path) -> None:
    world: World = worlds()
    files, values = write_files(tmp_path)
    published = told(world, "publish", *map(str, files))
    run = published["run"]
    rows = 2 * len(TEXTS) + 1
    assert published["state"] == "done"
    assert (published["records"], published["rejected"]) == (rows - 1, 1)
    rejected = next((world.home / "rejects").iterdir()).read_text()
    assert "title" in rejected

    assert told(world, "progress", run)["passed"] == 0
    late = world.command("wait", run, "--timeout", "0.1", check=False)
    assert late.returncode == 3
    assert "left on raw.posts.reddit" in late.stderr

    ended = world.run()
    assert "caught up in" in ended.stdout

    fields = ("kind", "platform", "text", "title", "author", "community", "metrics")
    found = {
        name: dict(zip(fields, rest, strict=True))
        for name, *rest in world.sql(f"SELECT id, {', '.join(fields)} FROM posts")
    }
    assert found == values
    wanted = outcomes_of(world, values)
    assert stored(world) == wanted
    mentions = sorted(
        (name, entity["start"], entity["end"], entity["name"], entity["type"])
        for (name, _), (_, _, result) in wanted.items()
        for entity in (result or {}).get("entities", ())
    )
    columns = 'record_id, start, "end", name, type'
    assert mentions and mentions == sorted(world.sql(f"SELECT {columns} FROM entity_mentions"))
    assert world.sql("SELECT * FROM dead_letters") == []

    lags = told(world, "lag")
    assert {lag["group"]: (lag["lag"], lag["state"]) for lag in lags} == dict.fromkeys(
        world.topology.groups, (0, "DONE")
    )
    assert f"Progress: {rows - 1}/{rows - 1}" in world.command("progress", run).stdout
    progress = told(world, "progress", run)
    assert (progress["done"], progress["superseded"]) == (True, 1)  # a record came twice
    assert told(world, "wait", run)["arrived"]
    coverage = told(world, "coverage")
    assert all(row["pending"] == row["dead"] == 0 for row in coverage)
    assert sum(row["records"] for row in coverage) == len(values) * len(world.topology.stages())
    assert_healthy(told_by_doctor(world))
    levels = world.sql("SELECT platform, processing_level FROM platform_metrics ORDER BY 1")
    assert levels == [("reddit", "full"), ("youtube", "full")]
    assert world.sql("SELECT DISTINCT processing_status FROM record_status") == [("full",)]

    # Once more, nothing of it is new.
    again = told(world, "publish", *map(str, files))
    assert again["records"] == 0
    assert {file["state"] for file in again["files"]} == {"known"}


def test_a_named_stage_brings_its_store(worlds: Any) -> None:
    world: World = worlds()
    values: Values = {value["id"]: value for value in world.post(texts=TEXTS)}
    wanted = outcomes_of(world, values)

    def only(*stages: str) -> Mapping[Any, Any]:
        return {key: said for key, said in wanted.items() if key[1] in stages}

    ended = world.run("text", "--only")
    assert "postgres" not in ended.stdout
    assert len(world.read("enriched.text")) == len(TEXTS)
    assert world.sql("SELECT * FROM records") == [] == world.sql("SELECT * FROM outcomes")

    ended = world.run("sentiment")
    assert "postgres" in ended.stdout
    assert world.sql("SELECT count(*) FROM records") == [(len(TEXTS),)]
    assert stored(world) == only("text", "sentiment")
    states = {lag["group"]: (lag["state"], lag["lag"]) for lag in told(world, "lag")}
    assert states["entities"] == ("NOT_STARTED", len(TEXTS))
    assert states["sentiment"] == states["text"] == ("DONE", 0)

    world.run()
    assert stored(world) == wanted
    assert_healthy(told_by_doctor(world))


def told_by_doctor(world: World) -> Any:
    """A broker that others have set up may forget offsets; that is not ours to mend here."""
    found = json.loads(world.command("doctor", "--json", check=False).stdout)
    found["findings"] = [
        one
        for one in found["findings"]
        if one["level"] == "finding" and one["check"] != "retention"
    ]
    return found


def assert_healthy(found: Any) -> None:
    assert found["findings"] == []
    assert found["sums"]
    assert all(sums["balanced"] and sums["pending"] == 0 for sums in found["sums"])
