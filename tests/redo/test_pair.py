"""A stage upgraded that reads another's vectors: each message is made anew from the tables."""

from __future__ import annotations

import json
from collections.abc import Callable

import yaml

from tests.stream.asking import readers
from tests.world import World, wait_for

TEXTS = ["I love the new phone, it is great", "The delivery was late and the box is broken", ""]

OUTCOMES = """
SELECT o.record_id, o.outcome, o.reason, o.version, o.rank, o.result, o.input_rank, o.root_topic_id,
       o.root_offset, o.root_appended, o.input_topic, o.input_partition, o.input_offset
FROM outcomes o WHERE stage = 'sentiment_ml' ORDER BY 1
"""


def test_a_stage_that_reads_vectors_is_upgraded(worlds: Callable[..., World]) -> None:
    world = worlds(platforms=("reddit", "youtube"))
    world.post(n=7, texts=TEXTS)
    world.post("youtube", ids=["ms"], texts=["Saya suka sangat telefon baru ini, memang terbaik"])
    world.post(ids=["0"], texts=["I hate this, it is the worst phone"])  # a second revision
    world.run("embeddings", "sentiment_ml", "postgres")
    before = {row[0]: row[1:] for row in world.sql(OUTCOMES)}
    dropped = {record for record, row in before.items() if row[1] == "upstream"}
    assert sorted(dropped) == ["post:reddit:2", "post:reddit:5"]
    kinds = sorted(row[0] for record, row in before.items() if record not in dropped)
    assert kinds == ["drop", *["ok"] * 5]

    path = world.home / "topics.yaml"
    content = yaml.safe_load(path.read_text())
    content["groups"]["sentiment_ml"] |= {"version": "2", "rank": 3}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    world.start_worker("sentiment_ml", "--now")
    world.start_worker("postgres")
    wait_for(lambda: readers(world, "sentiment_ml") and readers(world, "postgres"))
    done = json.loads(world.command("upgrade", "sentiment_ml", "--yes", "--wait", "--json").stdout)
    assert (done["queued"], done["left_out"]) == (6, 0)
    assert len(world.read("sentiment_ml.redo")) == 6

    # The same revision, the same input and its rank, the same answer to the last digit: so the
    # vector was the same.
    after = {row[0]: row[1:] for row in world.sql(OUTCOMES)}
    for record, (outcome, reason, version, rank, *rest) in before.items():
        new = (version, rank) if record in dropped else (f"2{version.removeprefix('1')}", 3)
        assert after[record] == (outcome, reason, *new, *rest)
    served = "SELECT DISTINCT stage, rank, stale FROM served WHERE facet = 'sentiment'"
    assert world.sql(served) == [("sentiment_ml", 3, False)]
    assert world.sql("SELECT count(*) FROM redo") == [(0,)]
