"""headrace.models.gazetteer: boundaries, longest match, offsets, case, platforms, bad files."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.models.gazetteer import FORMS, Gazetteer

SHIPPED = Path(__file__).parents[2] / "config" / "dictionaries"


def write(folder: Path, *, terms: str = "", everyday: str = "apple\n", **lists: str) -> Gazetteer:
    (folder / "terms.tsv.gz").write_bytes(gzip.compress(terms.encode()))
    (folder / "everyday.txt.gz").write_bytes(gzip.compress(everyday.encode()))
    for name, lines in lists.items():
        (folder / f"{name}.tsv").write_text(lines, encoding="utf-8")
    sure = {form: {"confidence": 0.9} for form in FORMS}
    classes = {
        "common.name": sure,
        "common.names": sure,
        "platform.name": {**sure, "handle": {"confidence": 1.0}},
        "common.word": {"exact": {"confidence": 0.85}, "lower": {"confidence": 0.1}},
        "full_name": sure,
        "given": {"exact": {"confidence": 0.5}},
        "town.rare": {
            "exact": {"confidence": 0.6},
            "lower": {"confidence": 0.1},
            "placed": {"confidence": 0.9},
            "placed_lower": {"confidence": 0.85},
        },
    }
    (folder / "confidence.json").write_text(json.dumps({"version": "t", "classes": classes}))
    return Gazetteer.load(folder)


def found(gazetteer: Gazetteer, text: str, platform: str = "") -> list[tuple[str, str]]:
    matches = gazetteer.find(text, platform)
    assert all(text[match.start : match.end] == match.text for match in matches)
    assert all(a.end <= b.start for a, b in itertools.pairwise(matches))
    return [(match.text, match.name) for match in matches]


def test_words_are_matched_whole_and_the_longest_wins(tmp_path: Path) -> None:
    gazetteer = write(
        tmp_path,
        common="York\tplace\nNew York\tplace\nNew York Times\torganisation\tNYT\nAT&T\tbrand\n",
    )
    assert found(gazetteer, "in New York, near Yorkshire") == [("New York", "New York")]
    assert found(gazetteer, "the new york\ttimes said") == [("new york\ttimes", "New York Times")]
    # A longer match that fails gives the words after it back.
    assert found(gazetteer, "New New York") == [("New York", "New York")]
    assert found(gazetteer, "old New Yorker, York") == [("York", "York")]
    assert found(gazetteer, "New. York") == [("York", "York")]
    assert found(gazetteer, "the NYT's view") == [("NYT", "New York Times")]
    assert found(gazetteer, "at t, AT&T; at&t AT&amp;T") == [("AT&T", "AT&T"), ("at&t", "AT&T")]


def test_offsets_are_code_points_of_the_text_as_given(tmp_path: Path) -> None:
    gazetteer = write(tmp_path, common="Nike\tbrand\n")
    text = "👟👨\u200d👩\u200d👧 \u202bسلام\u202c \x00 Nike's #nike https://nike.com/nike"
    matches = gazetteer.find(text)
    assert [text[m.start : m.end] for m in matches] == ["Nike", "#nike"]
    assert [m.start for m in matches] == [text.index("Nike"), text.index("#nike")]


def test_an_everyday_word_needs_its_capital(tmp_path: Path) -> None:
    gazetteer = write(tmp_path, common="Apple\tbrand\n")
    assert found(gazetteer, "I ate an apple") == []
    assert found(gazetteer, "I asked Apple about it") == [("Apple", "Apple")]


def test_doubtful_terms_stay_below_the_threshold_and_hide_what_they_hold(tmp_path: Path) -> None:
    gazetteer = write(
        tmp_path,
        terms="Salem Nike\tplace\ttown.rare\nSalem\tplace\ttown.rare\n",
        common="Nike\tbrand\n",
    )
    assert found(gazetteer, "we saw Salem Nike today") == []
    assert [m.confidence for m in gazetteer.find("we saw Salem", threshold=0.5)] == [0.6]


def test_a_place_is_surer_after_a_word_that_stands_before_places(tmp_path: Path) -> None:
    gazetteer = write(tmp_path, terms="Salem\tplace\ttown.rare\nIn\tbrand\ttown.rare\n")
    assert found(gazetteer, "we live in Salem, in salem; In: Salem") == [
        ("Salem", "Salem"),
        ("salem", "Salem"),
    ]
    assert found(gazetteer, "Salem, so Salem") == []


def test_people_are_a_given_name_and_a_surname(tmp_path: Path) -> None:
    gazetteer = write(
        tmp_path,
        terms="Maria\tperson\tgiven\nLopez\tperson\tsurname\n",
        common="Maria Store\tbrand\n",
    )
    assert found(gazetteer, "then Maria Lopez spoke") == [("Maria Lopez", "Maria Lopez")]
    assert found(gazetteer, "then Maria J. Lopez spoke") == [("Maria J. Lopez", "Maria J. Lopez")]
    assert found(gazetteer, "then maria lopez, Lopez, Maria. Lopez") == []
    assert found(gazetteer, "at Maria Store now") == [("Maria Store", "Maria Store")]


def test_a_platform_has_terms_of_its_own(tmp_path: Path) -> None:
    gazetteer = write(
        tmp_path, common="Delta\tbrand\n", care="Delta Air Lines\torganisation\t@Delta|Delta\n"
    )
    assert found(gazetteer, "hey @delta", "care") == [("@delta", "Delta Air Lines")]
    assert found(gazetteer, "hey @delta") == []
    assert found(gazetteer, "my Delta trip", "care") == [("Delta", "Delta Air Lines")]
    assert found(gazetteer, "my Delta trip", "reddit") == [("Delta", "Delta")]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"common": "Nike\tshoes\n"}, "common.tsv, line 1"),
        ({"common": "# note\nNike brand\n"}, "common.tsv, line 2"),
        ({"terms": "Nike\tbrand\n"}, "terms.tsv.gz, line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, lists: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        write(tmp_path, **lists)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dictionaries"):
        Gazetteer.load(tmp_path)


def test_the_shipped_dictionary() -> None:
    gazetteer = Gazetteer.load(SHIPPED)
    assert len(gazetteer) >= 10_000
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 3_000_000
    assert (SHIPPED / "NOTICE.md").read_text().count("CC") >= 2
    names = {
        m.name: m.type for m in gazetteer.find("He met Barack Obama in Chicago, with an iPhone.")
    }
    assert names == {"Barack Obama": "person", "Chicago": "place", "iPhone": "product"}
    assert gazetteer.find("you will have a nice reading on the mobile in the bath of hope") == []
    for platform in ("reddit", "youtube", "tiktok", "facebook", "instagram", "customer_care"):
        assert (SHIPPED / f"{platform}.tsv").exists()


ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=100)
PIECES = ("New York", "Nike", "#", "@", "Maria", "Lopez", " ", ".", "http://", "\n", "A", "&")


@given(ANY | st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_gives_ordered_spans_that_fit(text: str) -> None:
    gazetteer = Gazetteer.load(SHIPPED)
    found(gazetteer, text, "reddit")
    everything = gazetteer.find(text, "reddit", 0.0)
    assert all(0 <= match.confidence <= 1 and match.name for match in everything)
