"""What is read, in which batches, and when nothing is left."""

from headrace.stream.commands import choose
from headrace.stream.remaining import in_order
from tests.stages import groups
from tests.stream.asking import lag, outcomes, posted


def test_lag_is_zero_behind_markers(worlds):
    world = worlds(change=groups(words={}, shout={"reads": ["enriched.words"]}))
    world.post(n=500)
    result = world.run()
    assert "caught up in" in result.stdout
    assert "words: 500 ok" in result.stdout
    assert lag(world) == lag(world, "shout") == 0
    assert outcomes(world, "shout") == posted(*range(500))
    again = world.run()
    assert "words: nothing to do" in again.stdout


def test_batches_are_cut_by_count_and_bytes(worlds):
    small = {"batch": {"records": 7, "bytes": 4_000_000, "milliseconds": 500}}
    light = {"batch": {"records": 100_000, "bytes": 20_000, "milliseconds": 500}}
    world = worlds(change=groups(words=small, shout=light))
    world.post(n=300, texts=["x" * 1000])
    world.run("--only", "words", "shout")
    records = {"words": [], "shout": []}
    for event in world.values("status"):
        records[event["group"]].append(event["records"])
    assert sum(records["words"]) == sum(records["shout"]) == 300
    assert max(records["words"]) == 7
    assert len(records["shout"]) >= 5


def test_lost_data_is_said_and_the_rest_is_read(worlds):
    world = worlds(change=groups(words={}))
    world.post(n=40)
    parts = [(f"{world.project}.raw.posts.reddit", n) for n in range(2)]
    world.admin.alter_offsets(f"{world.project}.words", dict.fromkeys(parts, 1_000_000))
    result = world.run()
    assert result.stderr.count("DATA_LOSS") == 2
    assert outcomes(world) == posted(*range(40))


def test_a_named_stage_brings_its_stores(worlds):
    topology = worlds().topology
    shorts = lambda *chosen: [group.short for group in choose(topology, *chosen)]  # noqa: E731
    assert shorts(["sentiment"], None, False) == ["sentiment", "postgres"]
    assert shorts(["sentiment"], None, True) == ["sentiment"]
    always = [short for short, group in topology.groups.items() if group.when.always]
    assert shorts([], "full", False) == always
    assert "embeddings" not in always
    order = [group.short for group in in_order(topology, topology.groups.values())]
    assert order.index("postgres") > max(order.index(stage.short) for stage in topology.stages())
