"""headrace.text: what is read out of a text, for any text."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace import text

ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)
PIECES = (
    "&amp|&amp;amp|&#39|&#x27|;|\\u2019|\\ud83d\\ude00|https://t.co/a|)|#|@|tag| |\n|[a]("
    "|www.x.com|\u200d|\u200b|\x00|👩|اب|हि"
)
SNIPPETS = st.lists(st.sampled_from(PIECES.split("|")), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Tom &amp; Jerry &lt;3", "Tom & Jerry <3"),
        ("Tom &amp;amp; Jerry &#39;s", "Tom & Jerry 's"),
        ("I\\u2019m \\ud83d\\ude00 ok", "I’m 😀 ok"),
        ("C:\\users \\u12", "C:\\users \\u12"),
        ("see https://x.com/a?b=1&amp;c=2, ok", "see , ok"),
        ("see [the page](https://x.com/a_(b)) and [r](/r/all)", "see the page and r"),
        ("a\u200bb\ufeff\u00adc\x00d\u202e", "abcd"),
        ("  a\r\n\tb\u2028c\xa0d ", "a b c d"),
        ("\ud800half", "half"),
        ("a\u200db", "ab"),
        ("👨\u200d👩\u200d👧!", "👨\u200d👩\u200d👧!"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("链接http://t.cn/abc好", "链接 好"),
        ("a/b and e.g. c", "a/b and e.g. c"),
    ],
)
def test_cleaning(raw: str, clean: str) -> None:
    assert text.clean(raw) == clean


def test_tags_people_and_links_are_read() -> None:
    read = text.read(
        "RT @NASA: Look! #Mars #2024 #Mars #हिन्दी_दिवस #اردو x#no a@mail.org u/Some_one "
        "(https://en.wikipedia.org/wiki/Mars_(planet)) pic.twitter.com/Ab1 https://t.co/x."
    )
    assert read.hashtags == ("mars", "हिन्दी_दिवस", "اردو")
    assert read.mentions == ("nasa", "some_one")
    assert read.links == (
        "https://en.wikipedia.org/wiki/Mars_(planet)",
        "pic.twitter.com/Ab1",
        "https://t.co/x",
    )


def test_an_address_in_a_link_is_no_hashtag() -> None:
    assert text.hashtags("https://x.com/page#part") == ()
    assert text.mentions("https://x.com/@someone") == ()


@pytest.mark.parametrize(
    ("raw", "words", "sentences", "emoji"),
    [
        ("", 0, 0, 0),
        ("One. Two! Three?", 3, 3, 0),
        ("don't stop e-mail", 3, 1, 0),
        ("line\nline", 2, 2, 0),
        ("हिन्दी में लिखा।", 3, 1, 0),
        ("مرحبا بالعالم۔ نعم؟", 3, 2, 0),
        ("好的。", 2, 1, 0),
        ("👍🏽👩\u200d👧 🇩🇪", 0, 1, 3),
    ],
)
def test_counts(raw: str, words: int, sentences: int, emoji: int) -> None:
    read = text.read(raw)
    assert (read.words, read.sentences, read.emoji) == (words, sentences, emoji)
    assert read.characters == len(read.clean)


@pytest.mark.parametrize("raw", ["", " \n", "...", "\u200b", "https://t.co/a", "!?-_"])
def test_empty(raw: str) -> None:
    assert text.read(raw).is_empty


@pytest.mark.parametrize("raw", ["a", "1", "😀", "好", "❤"])
def test_not_empty(raw: str) -> None:
    assert not text.read(raw).is_empty


@given(ANY | SNIPPETS)
@example("&#0;\ud800\\ud83d")
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_gives_something_that_can_be_published(raw: str) -> None:
    read = text.read(raw)
    orjson.dumps([read.clean, read.hashtags, read.mentions, read.links])
    assert "\x00" not in read.clean
    assert read.clean == " ".join(read.clean.split())
    assert read.clean == text.clean(raw)
    assert (read.hashtags, read.mentions, read.links) == (
        text.hashtags(raw),
        text.mentions(raw),
        text.links(raw),
    )
    assert all(tag == tag.lower() and tag for tag in read.hashtags)
    assert len(set(read.links)) == len(read.links)


@given(st.text(alphabet=st.characters(categories=["L", "N"]), max_size=80))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_plain_letters_stay_as_they_are(raw: str) -> None:
    assert text.clean(raw) == raw


@pytest.mark.parametrize(
    "piece", ["&amp;", "#", "@", "http://x)", "[a](", "](/", "a.", "\u200d", "("]
)
def test_a_megabyte_of_anything_is_read_once_through(piece: str) -> None:
    assert text.read(piece * (1_000_000 // len(piece))).characters <= 1_000_000
