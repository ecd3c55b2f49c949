"""headrace.models.sentiment: sense, stability, and what it shipped with."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.models import sentiment
from headrace.models.sentiment import SentimentModel


@pytest.fixture(scope="module")
def model() -> SentimentModel:
    return SentimentModel.load()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I love this phone, it is absolutely wonderful!", "positive"),
        ("Thank you so much, great service :)", "positive"),
        ("Worst airline ever. They lost my bag and nobody cares.", "negative"),
        ("This is not good at all, I hate waiting", "negative"),
        ("The train to Boston leaves at 9 on Monday", "neutral"),
    ],
)
def test_plain_cases(model: SentimentModel, text: str, label: str) -> None:
    assert model.classify(text).label == label


@given(st.lists(st.text(max_size=80), max_size=6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_answer_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    model = SentimentModel.load()
    together = model.classify_all(texts)
    assert together == [SentimentModel.load().classify(text) for text in texts[:1]] + together[1:]
    assert together[::-1] == model.classify_all(texts[::-1])
    for found in together:
        assert -1 <= found.score <= 1
        assert 1 / 3 <= found.confidence <= 1


def test_another_process_says_the_same_to_the_bit(model: SentimentModel) -> None:
    texts = ["I don't like #mondays 😀 but coffeee helps!!", "ok", "", "so so bad :( http://x.y"]
    code = (
        "import json, sys\n"
        "from headrace.models.sentiment import SentimentModel as M\n"
        "m = M.load()\n"
        "print(json.dumps([list(map(str, (f.label, f.score, f.confidence))) "
        "for f in m.classify_all(json.load(sys.stdin))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PYTHONHASHSEED": "77", "PATH": ""},
    )
    own = [[f.label, str(f.score), str(f.confidence)] for f in model.classify_all(texts)]
    assert json.loads(done.stdout) == own


def test_only_the_beginning_of_a_long_text_is_read(model: SentimentModel) -> None:
    begins = "I love this wonderful thing. " * 2_000
    assert model.classify(begins) == model.classify(begins + "I hate it. " * 100_000)


def test_the_file_fits_the_features(model: SentimentModel) -> None:
    seen = sentiment.features("Some words, not many")
    with resources.as_file(resources.files("headrace.models") / "data") as folder:
        assert (folder / "sentiment.npz").stat().st_size < 1_500_000
        about = json.loads((folder / "sentiment.json").read_text())
    assert about["version"] == model.version
    assert about["settings"]["buckets"] == sentiment.BUCKETS
    assert about["texts"]["held_out_copies_excluded"] > 1_000
    assert len(seen.dense) == 31
