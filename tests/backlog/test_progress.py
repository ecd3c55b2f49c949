"""The way of a run along the graph, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import config
from headrace.backlog.doctor import broker_findings, mirror_findings
from headrace.backlog.model import GroupLag, PartitionLag, State
from headrace.backlog.progress import progress
from headrace.backlog.receipts import Receipt
from headrace.backlog.wait import Walk, concerned
from headrace.stream import topology as topologies
from headrace.stream.topology import Topology

TOPOLOGY: Topology = topologies.load(config.load({"project": "p"}))
RAW = "p.raw.posts.reddit"
STAGES = [group.short for group in TOPOLOGY.stages() if group.when.always]
ALWAYS = [*STAGES, "postgres"]
DAY = 86_400_000


def receipt(*spans: tuple[int, int], records: int = 0, **more: Any) -> Receipt:
    """A run on reddit's topic, a span of offsets by partition."""
    return Receipt.of(
        {
            "run": "r",
            "state": "done",
            "records": records or sum(end - start for start, end in spans),
            "starts": {RAW: {str(n): start for n, (start, _) in enumerate(spans)}},
            "offsets": {RAW: {str(n): end for n, (_, end) in enumerate(spans)}},
            **more,
        }
    )


def sample(
    at: Mapping[str, int], made: Mapping[str, int] | None = None, *, raw_end: int = 100
) -> list[GroupLag]:
    """All groups, a partition a topic. `at`: "group" or "group<topic" → committed; `made`: ends."""
    made = made or {}
    lags = []
    for group in TOPOLOGY.groups.values():
        rows = []
        for topic in group.reads:
            end = raw_end if topic.is_raw else made.get(topic.short, 0)
            commit = at.get(
                f"{group.short}<{topic.short}", at.get(group.short) if topic.is_raw else None
            )
            rows.append(PartitionLag(topic.name, 0, 0, end, end, commit))
        lags.append(GroupLag(group.short, group.name, group.kind, "always", tuple(rows)))
    return lags


def by_name(lags: list[GroupLag]) -> dict[str, GroupLag]:
    return {lag.group: lag for lag in lags}


def test_a_store_is_reached_last_and_all_means_all() -> None:
    run = receipt((0, 100))
    half = progress(run, TOPOLOGY, sample(dict.fromkeys(STAGES, 50)))
    assert half.passed == 0 and not half.done
    assert {s.group: s.passed for s in half.steps if s.group in STAGES} == dict.fromkeys(STAGES, 50)

    made = {f"enriched.{short}": 80 for short in STAGES}
    stored = {f"postgres<{topic}": 80 for topic in made}
    most = progress(run, TOPOLOGY, sample({**dict.fromkeys(STAGES, 99), "postgres": 100}, made))
    kept = {s.what: s.passed for s in most.steps if s.what in (*STAGES, "records")}
    assert kept == {
        "records": 100,
        **dict.fromkeys(STAGES, 19),
    }
    everywhere = dict.fromkeys([*STAGES, "postgres"], 100)
    done = progress(run, TOPOLOGY, sample({**everywhere, **stored}, made))
    assert done.done and done.passed == 100


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=1),
    st.integers(1, 200),
    st.integers(0, 120),
)
def test_a_part_is_never_called_all(
    spans: list[tuple[int, int]], records: int, committed: int
) -> None:
    run = receipt(*((start, start + length) for start, length in spans), records=records)
    found = progress(run, TOPOLOGY, sample(dict.fromkeys(STAGES, committed), raw_end=120))
    end = max(start + length for start, length in spans)
    for step in found.steps:
        if step.group in STAGES:
            assert 0 <= step.passed <= step.records == records
            assert (step.passed == records) == (committed >= end)


def test_a_scheduled_group_does_not_hold_a_run_back() -> None:
    found = progress(receipt((0, 100)), TOPOLOGY, sample(dict.fromkeys(ALWAYS, 100)))
    assert found.done
    (step,) = (step for step in found.steps if step.group == "embeddings")
    assert (step.passed, step.left_out) == (0, 100)
    whats = [(step.group, step.what) for step in found.steps]
    assert len(set(whats)) == len(whats), "a stage with a topic a platform is told of once"
    assert concerned(TOPOLOGY, receipt((0, 100)), ["sentiment_ml"]) == [
        "embeddings",
        "sentiment_ml",
        "postgres",
    ]


def test_what_is_left_out_does_not_hold_a_run_back() -> None:
    run = receipt((0, 100))
    lags = sample(dict.fromkeys([*STAGES, "postgres"], 100))
    rows = tuple(
        PartitionLag(p.topic, p.partition, 0, 100, 100, None, held=State.SCHEDULED)
        if p.topic == RAW
        else p
        for p in lags[0].partitions
    )
    lags[0] = GroupLag(lags[0].group, lags[0].name, lags[0].kind, "always", rows)
    found = progress(run, TOPOLOGY, lags)
    assert found.done
    assert next(s for s in found.steps if s.group == lags[0].group).left_out == 100
    walk = Walk(TOPOLOGY, run, ALWAYS)
    assert walk.update(run, by_name(lags)) == ()
    assert walk.left_out == (lags[0].group,)


def test_the_walk_goes_from_raw_to_the_ends_of_what_stages_made() -> None:
    run = receipt((0, 100))
    walk = Walk(TOPOLOGY, run, concerned(TOPOLOGY, run))
    made = {f"enriched.{short}": 40 for short in STAGES}
    behind = walk.update(run, by_name(sample({**dict.fromkeys(STAGES, 100), "text": 70}, made)))
    assert [(m.group, m.left) for m in behind] == [("text", 30), ("postgres", 100 + 40 * 2)]

    # Text passes: what stands behind its topic now is the run's. More by others does not count.
    made |= {"enriched.text": 55}
    walk.update(run, by_name(sample(dict.fromkeys([*STAGES, "postgres"], 100), made)))
    made |= {"enriched.text": 900}
    stored = {f"postgres<enriched.{short}": 40 for short in STAGES}
    at = {**dict.fromkeys([*STAGES, "postgres"], 100), **stored}
    (last,) = walk.update(run, by_name(sample(at, made)))
    assert (last.group, last.left, last.topics) == ("postgres", 15, ("enriched.text",))
    at["postgres<enriched.text"] = 55
    assert walk.update(run, by_name(sample(at, made))) == ()


def test_a_run_that_grows_begins_its_walk_again() -> None:
    run = receipt((0, 10), state="running")
    walk = Walk(TOPOLOGY, run, concerned(TOPOLOGY, run))
    assert walk.update(run, by_name(sample(dict.fromkeys([*STAGES, "postgres"], 10)))) == ()
    grown = receipt((0, 20))
    late = walk.update(grown, by_name(sample(dict.fromkeys([*STAGES, "postgres"], 10))))
    assert {m.group for m in late} == {*STAGES, "postgres"}


def test_a_named_stage_brings_the_stores_of_its_result_and_nothing_else() -> None:
    run = receipt((0, 10))
    assert concerned(TOPOLOGY, run, ["text"]) == ["text", "postgres"]
    assert concerned(TOPOLOGY, run) == ALWAYS
    communities = Receipt.of(
        {"run": "c", "state": "done", "offsets": {"p.raw.communities": {"0": 3}}, "records": 3}
    )
    assert concerned(TOPOLOGY, communities) == ["postgres"]


def test_communities_are_counted_apart_from_posts() -> None:
    both = Receipt.of(
        {
            "run": "c",
            "state": "done",
            "records": 103,
            "files": [{"communities": 3}],
            "offsets": {"p.raw.communities": {"0": 5}, RAW: {"0": 101, "1": 7}},
        }
    )
    assert both.counts == {"p.raw.communities": 3, RAW: 100}


@pytest.mark.parametrize(
    ("minutes", "rests", "found"),
    [
        (2**31 - 1, [(None, "lag >= 5")], 0),
        (10_080, [], 1),  # a week, but what groups read is kept for a month
        (60 * 24 * 40, [], 0),
        (60 * 24 * 40, [(60 * DAY, "cron")], 1),
        (60 * 24 * 40, [(None, "lag >= 5")], 1),
    ],
)
def test_the_broker_must_remember_longer_than_groups_rest(
    minutes: int, rests: list[tuple[int | None, str]], found: int
) -> None:
    broker = {"offsets.retention.minutes": str(minutes), "transactional.id.expiration.ms": "1"}
    said = list(broker_findings(broker, rests, [(30 * DAY, "enriched.text")]))
    assert len([one for one in said if one.level == "finding"]) == found
    assert bool(rests) == any(one.level == "note" for one in said)


def test_a_mirror_is_behind_or_ahead() -> None:
    apart = {("t", 0): 5, ("t", 1): 5}
    said = list(mirror_findings("postgres", apart, {("t", 0): 3, ("t", 1): 9}))
    assert ["behind" in said[0].what, "ahead" in said[1].what] == [True, True]
    assert not list(mirror_findings("postgres", {}, {("t", 0): 3}))
