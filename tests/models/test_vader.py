"""headrace.models.vader: the same figures as vaderSentiment's."""

from __future__ import annotations

import random

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from headrace.models import vader

SNIPPETS = (
    "good|bad|GREAT|no|not|never|so|this|without|doubt|least|at|very|VERY|kind|of|sort|but|BUT|the"
    "|shit|bomb|yeah|right|or|nor|just|enough|hate!|love?|😀|a😀b|🆙|isn't|REALLY|hardly|:)|to die"
    "|to die for|bad ass|kiss of death|train|(sad)|x"
)
WRITTEN = (
    "",
    " ",
    "!!!",
    "BUT",
    "Without a doubt, an excellent idea.",
    "It has never been this good!",
    "At least it isn't a horrible book.",
    "The plot was good, but the characters are bad and the dialog is not great.",
    "VADER is VERY SMART, uber handsome, and FRIGGIN FUNNY!!!",
    "Why? Why?? I can't stand it :-( 💔",
)


@pytest.fixture(scope="module")
def library() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def same(library: SentimentIntensityAnalyzer, text: str) -> None:
    found = vader.verdict(text.split(), vader.bare(text.lower().split()))
    told = library.polarity_scores(text)
    expected = (told["compound"], told["pos"], told["neg"], told["neu"])
    assert found == pytest.approx(expected, abs=1e-3), text


@pytest.mark.parametrize("text", WRITTEN)
def test_what_its_authors_say(library: SentimentIntensityAnalyzer, text: str) -> None:
    same(library, text)


def test_any_mixture_of_what_it_has_rules_for(library: SentimentIntensityAnalyzer) -> None:
    chance = random.Random(7)
    snippets = SNIPPETS.split("|")
    for _ in range(600):
        same(library, " ".join(chance.choices(snippets, k=chance.randint(0, 14))))
