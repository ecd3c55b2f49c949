"""The small parts, without a server; and invariant 6 for the stages that are shipped."""

import random
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from headrace.config import Settings
from headrace.stream import topology
from headrace.stream.faults import Exit, LimitReached
from headrace.stream.limits import DeadLetterCount
from headrace.stream.stage import Context, Record
from headrace.stream.topology import DeadLetterLimits
from headrace.stream.watchdog import Watchdog
from headrace.stream.worker import Backoff
from tests.world import wait_for

TEXTS = [
    "I love the new iPhone from Apple, it is great!", "Samsung in Berlin", "", "   ", "😡😡 worst",
    "Das Wetter ist heute wirklich schön in München", "saya suka makan nasi goreng sekali hari ini",
    "@maria look https://example.org/a?b=1 #battery #Microsoft", "not bad, not good", "\u202eabc",
]  # fmt: skip
# Those that read raw records; others have their own test in tests/models. What a language model
# answers may differ with what stands beside it: its recorded answer stands.
SHIPPED = [
    group.short
    for group in topology.load(Settings()).stages()
    if group.reads[0].is_raw and not group.paid
]


@pytest.fixture(scope="module")
def processes():
    plan = topology.load(Settings())
    return {
        name: import_module(plan.group(name).module).build(
            Context(Settings(), name, plan.group(name).options)
        )
        for name in SHIPPED
    }


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    texts=some.lists(some.sampled_from(TEXTS) | some.text(max_size=80), min_size=1, max_size=30),
    seed=some.integers(),
)
def test_an_outcome_does_not_depend_on_its_batch(processes, name, texts, seed):
    process = processes[name]
    records = [
        Record(f"post:reddit:{n}", "post", "reddit", {"text": text, "platform": "reddit"})
        for n, text in enumerate(texts)
    ]
    together = dict(zip(records_ids(records), process(records), strict=True))
    shuffled = records[:]
    random.Random(seed).shuffle(shuffled)
    middle = len(shuffled) // 2
    apart = [*process(shuffled[:middle]), *process(shuffled[middle:])] if middle else [
        *process(shuffled)
    ]  # fmt: skip
    assert dict(zip(records_ids(shuffled), apart, strict=True)) == together


def records_ids(records):
    return [record.id for record in records]


def test_limits_count_and_share():
    counted = DeadLetterCount("text", DeadLetterLimits(count=3, share=0.5, of_at_least=10))
    counted.add(5, ["a", "b"])  # 2 of 5: a large share, but of too few
    counted.add(20, ["c"])
    assert counted.room == 0
    counted.add(20, [])
    with pytest.raises(LimitReached, match=r"4 of 46 .*\(count 3\); 1 .*: d\. Nothing"):
        counted.add(1, ["d"])
    shared = DeadLetterCount("text", DeadLetterLimits(count=100, share=0.5, of_at_least=10))
    shared.add(10, list("aaaaa"))
    with pytest.raises(LimitReached, match=r"share 0\.5"):
        shared.add(2, ["b", "b"])


def test_the_watchdog_ends_a_step_that_hangs():
    ended = []
    watchdog = Watchdog(ended.append)
    with watchdog.step("commit", 60):
        pass
    with watchdog.step("commit", 0.1, Exit.STUCK):
        wait_for(lambda: ended)
    assert set(ended) == {Exit.STUCK}


def test_pauses_grow_up_to_the_longest():
    pause = Backoff(Settings())
    assert [pause.next() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    pause.reset()
    assert pause.next() == 1
