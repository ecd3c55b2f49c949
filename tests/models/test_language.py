"""headrace.models.language: short and noisy texts, and what cannot be told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.models.language import MIN_CONFIDENCE, UNDETERMINED, detect


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("This is the worst service I have ever had", "en"),
        ("love it", "en"),
        ("GREAT!!!", "en"),
        ("so goooood", "en"),
        ("suka sangat, bau dia wangi", "ms id"),
        ("nak beli dua botol boleh tak", "ms id"),
        ("pegawai pajak yang mana nih, kok gitu", "ms id"),
        ("kya baat hai bhai, bahut accha", "hi"),
        ("ye log kuch nahi karte hain yaar", "hi"),
        ("यह बहुत अच्छा है", "hi"),
        ("ہندوستان کی جانب سے مسلسل ڈرون حملے", "ur"),
        ("El servicio fue muy malo y no volveré nunca", "es"),
        ("Das ist leider überhaupt nicht angekommen", "de"),
        ("これはとても良いです", "ja"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert detect(text).code in code.split()


@pytest.mark.parametrize(
    "text", ["", "😀😀", "lol", "12:30", "@someone #tag https://t.co/x", "xqzt", "Wkwkwkwk", "\x00"]
)
def test_what_nobody_could_tell_is_undetermined(text: str) -> None:
    found = detect(text)
    assert found.code == UNDETERMINED
    assert found.confidence < MIN_CONFIDENCE


def test_a_tag_or_an_address_does_not_speak_for_the_text() -> None:
    assert detect("terima kasih kak #loveit #best #quality https://www.example.com/the").code in (
        "ms",
        "id",
    )


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=120))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_has_an_answer(text: str) -> None:
    found = detect(text)
    assert 0 <= found.confidence <= 1
    assert (found.code == UNDETERMINED) == (found.confidence < MIN_CONFIDENCE)
    assert found == detect(text)
