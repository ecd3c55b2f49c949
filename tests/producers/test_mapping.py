"""Mappings: conversions, choosing by columns, what is refused, and the shipped ones."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError, HeadraceError
from producers import convert
from producers.check import check
from producers.convert import Unfit
from producers.formats import open_rows
from producers.mapping import (
    FileName,
    Mapped,
    MappedRows,
    Mapping,
    Mappings,
    Rejected,
    RowRejected,
    load_mappings,
    map_rows,
)

ROOT = Path(__file__).parents[2]
EAST = timezone(timedelta(hours=1))
FILE = FileName("posts_2026.csv.gz", "posts_2026", "reddit")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = orjson.loads((ROOT / "schemas/raw_post.v1.json").read_bytes())
    return jsonschema_rs.validator_for(schema)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Mappings]:
    return load_mappings(ROOT / "config/platforms")


def mapping(tmp_path: Path, body: str, platform: str = "reddit") -> Mapping:
    path = tmp_path / f"{platform}.yaml"
    path.write_text("mappings:\n  one:\n" + "".join(f"    {line}\n" for line in body.splitlines()))
    return Mappings.load(path).get("one")


def record(tmp_path: Path, body: str, row: dict[str, Any], number: int = 1) -> dict[str, Any]:
    found = mapping(tmp_path, "match: [id]\n" + body).mapper().map(row, number, FILE)[0]
    return {k: v for k, v in found.items() if k not in ("kind", "platform")}


# -- conversions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1), (" 12 ", 12), ("3.0", 3), ("-2.5", -2.5), ("1,234,567", 1234567), ("1.2K", 1200),
        ("3M", 3_000_000), ("5.40E+17", 540000000000000000), (7, 7), (7.0, 7), (7.5, 7.5),
        ("", None), ("nan", None), (math.nan, None), (None, None), ("NULL", None), ("-", None),
        ("many", "noted"), (True, "noted"), ("1e400", "noted"), (2**70, "noted"), ([1], "noted"),
        (Decimal("2.50"), 2.5),
    ],
)  # fmt: skip
def test_numbers(value: Any, expected: Any) -> None:
    noted: list[str] = []
    found = convert.number(value, noted.append, "f")
    assert (("noted" if noted else None) if found is None else found) == expected
    assert noted in ([], ["f"])


@pytest.mark.parametrize(
    ("value", "formats", "zone", "expected"),
    [
        ("1351527128.0", (), None, "2012-10-29T16:12:08Z"),
        (1351527128, (), None, "2012-10-29T16:12:08Z"),
        ("1351527128123", (), None, "2012-10-29T16:12:08.123000Z"),
        (1351527128.5, (), None, "2012-10-29T16:12:08.500000Z"),
        ("2026-11-01T10:00:00Z", (), None, "2026-11-01T10:00:00Z"),
        ("2026-02-30T10:00:00Z", (), None, "noted"),
        ("2026-11-01 10:00:00+02", (), None, "2026-11-01T08:00:00Z"),
        ("2026-11-01T10:00:00.000+0000", (), None, "2026-11-01T10:00:00Z"),
        ("2024-09-28", (), None, "2024-09-28T00:00:00Z"),
        ("20240928103000", (), None, "2024-09-28T10:30:00Z"),
        ("2024-09-28 10:30:00 UTC", (), None, "2024-09-28T10:30:00Z"),
        ("Tue Oct 31 22:10:47 +0000 2017", (), None, "2017-10-31T22:10:47Z"),
        ("Tue Oct 31 22:10:47 +0130 2017", (), None, "2017-10-31T20:40:47Z"),
        ("Sat, 28 Sep 2024 10:30:00 +0200", (), None, "2024-09-28T08:30:00Z"),
        ("2/24/2015 9:35", ("%m/%d/%Y %H:%M",), None, "2015-02-24T09:35:00Z"),
        ("24.02.2015 09:35", ("%d.%m.%Y %H:%M",), "Europe/Berlin", "2015-02-24T08:35:00Z"),
        ("2/24/2015 9:35", (), None, "noted"),  # nobody can tell day from month
        ("2021", (), None, "noted"),
        ("45000", (), None, "noted"),
        (math.inf, (), None, "noted"),
        (1e300, (), None, "noted"),
        ("soon", (), None, "noted"),
        (True, (), None, "noted"),
        ("", (), None, None),
        ("NaN", (), None, None),
        (datetime(2026, 1, 2, 3, tzinfo=EAST), (), None, "2026-01-02T02:00:00Z"),
        ("9999-12-31T23:59:59-05:00", (), None, "noted"),
    ],
)  # fmt: skip
def test_moments(value: Any, formats: tuple[str, ...], zone: str | None, expected: Any) -> None:
    noted: list[str] = []
    at = convert.zone_named(zone) if zone else None
    found = convert.moment(value, formats, at, noted.append, "f")
    assert (("noted" if noted else None) if found is None else found) == expected


@given(st.integers(100_000_000, 9_999_999_999), st.sampled_from([1, 1000, 10**6, 10**9]))
@settings(derandomize=True, deadline=None)
def test_every_second_since_1973_is_read_in_every_unit(second: int, unit: int) -> None:
    expected = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert convert.moment(str(second * unit), (), None, pytest.fail, "f") == expected
    assert convert.moment(expected, (), None, pytest.fail, "f") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12a4ab", "12a4ab"), (" x1 ", "x1"), (570306133677760513, "570306133677760513"),
        (3.0, "3"), ("3.0", "3"), ("1e10", "1e10"), ("10643211755_10154526339006756",) * 2,
        ("", ""), (None, ""), ("nan", ""), (math.nan, ""), ("null", ""), ("żółw/1", "żółw/1"),
    ],
)  # fmt: skip
def test_ids(value: Any, expected: str) -> None:
    assert convert.ident(value) == expected


@pytest.mark.parametrize(
    "value",
    ["5.40E+17", "5.4e17", "1e+18", "540000000000000000.0", 5.4e17, True, "a\0b", "a\nb", [1], {}],
)  # fmt: skip
def test_ids_that_cannot_be_trusted(value: Any) -> None:
    with pytest.raises(Unfit):
        convert.ident(value)


def test_ids_from_content_tell_fields_apart() -> None:
    one = convert.digest("reddit", ["ab", "c"])
    assert one == convert.digest("reddit", ["ab", "c"])
    assert (
        len({one, convert.digest("reddit", ["a", "bc"]), convert.digest("tiktok", ["ab", "c"])})
        == 3
    )
    assert convert.digest("reddit", ["", ""]) == ""
    assert one[14] == "5" and one[19] in "89ab"  # a uuid5


@given(st.lists(st.text(max_size=4), min_size=3, max_size=3), st.sampled_from(["", "(", "\n\n"]))
def test_templates_leave_no_gaps(parts: list[str], between: str) -> None:
    a, b, c = parts
    found = convert.glue("", a, between, b, between, c, "")
    assert found == between.join(filter(None, parts))
    assert convert.glue("", a, between, b, "") == between.join(filter(None, [a, b]))


# -- what a definition can say -------------------------------------------------------------------


def test_columns_paths_templates_and_constants(tmp_path: Path) -> None:
    body = r"""
id: id
title: title
text: "{title}\n\n{body} ({user.name})"
author: [nick, user.name]
community: {from: link, regex: "/r/(\\w+)"}
url: "https://example.org/{id}"
created_at: {from: "{year}-{month}", formats: "%Y-%B", zone: Asia/Tokyo}
lang: {const: en}
thread_id: "@stem"
parent_id: "media[1].id"
metrics: {likes: likes, "odd name": "a.b", none: nothing}
labels: {kind: {from: kind, values: {"1": good, "2": bad}}, sure: {from: sure, type: bool}, n: n}
extra: [tags, empty, when]
"""
    row = {
        "id": 7, "title": " T ", "body": "", "user": {"name": "Ana"}, "link": "x/r/tea/1",
        "year": 2026, "month": "May", "media": [{"id": 1}, {"id": 22}], "likes": "1,200",
        "a.b": "5", "kind": 2, "sure": "yes",
        "n": 1.5, "tags": ["a", {"b": None}], "empty": "", "when": datetime(2026, 1, 2),
    }  # fmt: skip
    assert record(tmp_path, body, row) == {
        "id": "post:reddit:7",
        "native_id": "7",
        "title": "T",
        "text": "T (Ana)",
        "author": "Ana",
        "community": "tea",
        "url": "https://example.org/7",
        "created_at": "2026-04-30T15:00:00Z",
        "lang": "en",
        "thread_id": "posts_2026",
        "parent_id": "22",
        "metrics": {"likes": 1200, "odd name": 5},
        "labels": {"kind": "bad", "sure": True, "n": 1.5},
        "extra": {"tags": ["a", {"b": None}], "when": datetime(2026, 1, 2)},
    }


def test_an_id_falls_back_to_a_hash(tmp_path: Path) -> None:
    body = "id: [id, {hash: [author, text]}]\ntext: text"
    assert record(tmp_path, body, {"id": "a", "text": "x"})["native_id"] == "a"
    one = record(tmp_path, body, {"id": "", "text": "x", "author": "y"})
    assert one["native_id"] is None
    assert one["id"] == "post:reddit:" + convert.digest("reddit", ["y", "x"])
    with pytest.raises(RowRejected, match="id is missing"):
        record(tmp_path, body, {"id": None})
    with pytest.raises(RowRejected, match="rounded"):
        record(tmp_path, body, {"id": "5.40E+17", "text": "x"})
    with pytest.raises(RowRejected, match="id is missing"):
        record(tmp_path, 'id: "t-{id}-{n}"\ntext: text', {"id": "1", "n": "", "text": "x"})
    by_place = record(tmp_path, 'id: "{@stem}-{@row}"\ntext: text', {}, 9)
    assert by_place["native_id"] == "posts_2026-9"


def test_required_fields_and_limits(tmp_path: Path) -> None:
    body = """id: id
text: text
title: title
metrics: {likes: likes}
required: [title, metrics.likes]"""
    for row, reason in (
        ({"id": "1", "likes": 1}, "title is missing"),
        ({"id": "1", "title": "t", "likes": "?"}, "metrics.likes is missing"),
        ({"id": "x" * 600, "title": "t", "likes": 0}, "the id is too long"),
    ):
        with pytest.raises(RowRejected, match=reason):
            record(tmp_path, body, row)
    assert record(tmp_path, body, {"id": "1", "title": "t", "likes": 0})["metrics"] == {"likes": 0}


def test_nul_goes_from_texts_and_large_numbers_become_text(tmp_path: Path, validator: Any) -> None:
    mapper = mapping(
        tmp_path, "match: [id]\nid: id\ntext: text\nextra: [n, d]\nparent_id: parent"
    ).mapper(validator)
    row = {"id": "1", "text": "a\0b \\u0000 c", "n": 2**80, "d": Decimal("1.5"), "parent": 1e20}
    found, value = mapper.map(row, 1, FILE)
    assert found["text"] == "ab \\u0000 c" and mapper.nul_removed == 1
    assert orjson.loads(value)["extra"] == {"n": str(2**80), "d": "1.5"}
    assert "parent_id" not in found and mapper.left_out == Counter(parent_id=1)
    mapper.map({"id": "1", "text": "\\u0000"}, 1, FILE)
    assert mapper.nul_removed == 1


def test_records_are_held_to_their_schema(tmp_path: Path, validator: Any) -> None:
    mapper = mapping(tmp_path, "match: [id]\nid: id\ntext: text\nauthor: who").mapper(validator)
    with pytest.raises(RowRejected, match="author does not fit the schema"):
        mapper.map({"id": "1", "text": "x", "who": "a" * 2000}, 1, FILE)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("match: [id]\nid: id", "mappings.one.text: is required"),
        ("match: [id]\nid: id\ntxt: a\ntext: b", "txt: unknown key; did you mean text"),
        ("match: [id]\nid: id\ntext: {from: a, regex: '('}", "no regular expression"),
        ("match: [id]\nid: id\ntext: {from: a, zone: Mars/One}", "no time zone"),
        ("match: [id]\nid: id\ntext: {form: a}", "form"),
        ("match: [id]\nid: id\ntext: '@year'", "@year is not known"),
        ("match: [id]\nid: id\ntext: a\nrequired: [tilte]", "tilte is no field"),
        ("match: {columns: [id], where: {id: '['}}\nid: id\ntext: a", "no regular expression"),
    ],
)
def test_a_wrong_definition_names_file_and_key(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        mapping(tmp_path, body)
    assert said in str(error.value) and "reddit.yaml:" in str(error.value)


def test_code_in_a_definition_stays_text(tmp_path: Path) -> None:
    evil = """'] + [__import__("os").abort()] + ['"""
    quoted = orjson.dumps(evil).decode()
    body = f"id: id\ntext: {quoted}\nlang: {{const: {quoted}}}"
    found = record(tmp_path, body, {"id": "1", evil: "fine"})
    assert found["text"] == "fine" and found["lang"] == evil


def test_a_version_follows_the_definition_alone(tmp_path: Path) -> None:
    one = mapping(tmp_path, "match: [id]\nid: id\ntext: text").version
    assert mapping(tmp_path, "description: x\nmatch: [id, text]\nid: id\ntext: text").version == one
    assert mapping(tmp_path, "match: [id]\nid: id\ntext: body").version != one
    assert mapping(tmp_path, "match: [id]\nid: id\ntext: text", "tiktok").version != one


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "id",
                "title",
                "selftext",
                "permalink",
                "score",
                "created_utc",
                "num_comments",
                "author",
                "link_flair_text",
                "domain",
            ]
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=12),
            st.lists(st.integers(), max_size=2),
            st.just("1351527128.0"),
        ),
    )
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_row_becomes_a_valid_record_or_a_reject(row: dict[str, Any]) -> None:  # fmt: skip
    mapper = _posts()
    try:
        found, value = mapper.map(row, 1, FILE)
    except RowRejected as reason:
        assert str(reason)
    else:
        assert mapper._validator is not None and mapper._validator.is_valid(orjson.loads(value))
        assert "\0" not in found["text"]


def _posts() -> Any:
    if not _CACHE:
        schema = orjson.loads((ROOT / "schemas/raw_post.v1.json").read_bytes())
        found = Mappings.load(ROOT / "config/platforms/reddit.yaml").get("posts")
        _CACHE.append(found.mapper(jsonschema_rs.validator_for(schema)))
    return _CACHE[0]


_CACHE: list[Any] = []


# -- choosing ----------------------------------------------------------------------------------

TWO = """
mappings:
  plain:
    match: [id, text]
    id: id
    text: text
  rich:
    match: [id, text, likes]
    id: id
    text: text
    metrics: {likes: likes}
  nested:
    match: [data.id]
    id: data.id
    text: data.text
  bare:
    match: {columns: [col1, col2], where: {col1: "^fb_"}, only: true}
    id: col1
    text: col2
"""


def two(tmp_path: Path, *platforms: str) -> dict[str, Mappings]:
    for platform in platforms:
        (tmp_path / f"{platform}.yaml").write_text(TWO)
    return load_mappings(tmp_path)


def chosen(tmp_path: Path, name: str, text: str, mappings: Any, **options: Any) -> MappedRows:
    path = tmp_path / name
    path.write_text(text)
    return map_rows(open_rows(path), mappings, **options)


def test_a_file_finds_its_mapping(tmp_path: Path) -> None:
    mappings = two(tmp_path, "facebook")
    for name, text, expected in (
        ("a.csv", "id,text,extra\n1,a,b\n", "plain"),
        ("a.csv", "id,text,likes\n1,a,3\n", "rich"),
        ("a.csv", "fb_1,hello you,\nfb_2,hello me,\n", None),
        ("a.csv", "fb_12345,hello\nfb_12346,bye\n", "bare"),
        ("a.jsonl", '{"data": {"id": 1, "text": "t"}}\n{"data": {"id": 2}}\n', "nested"),
    ):
        if expected is None:
            with pytest.raises(HeadraceError, match=r"no mapping of facebook fits .*col1, col2"):
                chosen(tmp_path, name, text, mappings)
        else:
            assert chosen(tmp_path, name, text, mappings).mapping.name == expected
    assert (
        chosen(tmp_path, "a.csv", "id,text,likes\n1,a,3\n", mappings, mapping="plain").mapping.name
        == "plain"
    )
    with pytest.raises(HeadraceError, match="no mapping other; there are"):
        chosen(tmp_path, "a.csv", "id,text\n1,a\n", mappings, mapping="other")
    with pytest.raises(HeadraceError, match=r"nearest, facebook.plain, wants id as well"):
        chosen(tmp_path, "a.csv", "text,number\na,1\nb,2\n", mappings)


def test_of_two_platforms_the_files_name_decides(tmp_path: Path) -> None:
    mappings = two(tmp_path, "facebook", "customer_care")
    text = "id,text\n1,a\n"
    assert chosen(tmp_path, "facebook-2026.csv", text, mappings).mapping.platform == "facebook"
    assert chosen(tmp_path, "Customer Care.csv", text, mappings).mapping.platform == "customer_care"
    with pytest.raises(HeadraceError, match="choose with --platform"):
        chosen(tmp_path, "a.csv", text, mappings)
    assert chosen(tmp_path, "a.csv", text, mappings["facebook"]).mapping.platform == "facebook"


def test_rows_come_mapped_or_rejected_in_order(tmp_path: Path) -> None:
    mappings = two(tmp_path, "facebook")["facebook"]
    text = '{"id": "1", "text": "a"}\n{"id": \n{"text": "no id"}\n{"id": "2", "text": "b"}\n'
    mapped = chosen(tmp_path, "a.jsonl", text, mappings)
    found = list(mapped)
    assert [type(row) for row in found] == [Mapped, Rejected, Rejected, Mapped]
    assert found[1] == Rejected(2, "is broken JSON", None, '{"id":')
    assert found[2] == Rejected(3, "the id is missing (id)", {"text": "no id"}, None)
    last = found[3]
    assert isinstance(last, Mapped) and orjson.loads(last.value) == last.record
    assert (last.number, last.id) == (4, "post:facebook:2")


def test_a_file_of_bad_rows_or_of_none(tmp_path: Path) -> None:
    mappings = two(tmp_path, "facebook", "reddit")
    broken = "{\n{\n"
    found = list(chosen(tmp_path, "a.jsonl", broken, mappings["facebook"]))
    assert len(found) >= 1 and all(isinstance(row, Rejected) for row in found)
    with pytest.raises(HeadraceError, match="no row that can be read"):
        chosen(tmp_path, "a.jsonl", broken, mappings)
    assert list(chosen(tmp_path, "a.json", "[]", mappings["facebook"])) == []
    assert list(chosen(tmp_path, "a.csv", "id,text\n", mappings["facebook"])) == []


# -- what is shipped ---------------------------------------------------------------------------

SAMPLES = {
    "customer_care_tickets.csv": ("customer_care", "tickets", 37, {"text is missing": 1}),
    "facebook_pages.csv": ("facebook", "page_feed", 35, {}),
    "instagram_posts.json": ("instagram", "scraper", 36, {}),
    "reddit_communities.jsonl.gz": ("reddit", "posts", 43, {}),
    "tiktok_videos.xlsx": ("tiktok", "videos", 36, {}),
    "youtube_comments.parquet": ("youtube", "channel_comments", 38, {}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_finds_its_platform(
    name: str, shipped: dict[str, Mappings], validator: Any
) -> None:
    mapped = map_rows(open_rows(ROOT / "samples" / name), shipped, validator=validator)
    report = check(mapped)
    platform, mapping, valid, reasons = SAMPLES[name]
    assert (report.platform, report.mapping, report.valid) == (platform, mapping, valid)
    assert report.reasons == Counter(reasons)
    assert not report.left_out and report.whole and len(report.records) == 5
    for record in report.records:
        assert record["text"] and record["community"] and record["created_at"].startswith("2026-")
    assert f"{valid} would be published" in str(report)
    assert orjson.loads(orjson.dumps(report.as_dict()))["rejected"] == sum(reasons.values())


def test_comments_are_told_from_posts(shipped: dict[str, Mappings]) -> None:
    for name, kind in (("youtube_comments.parquet", "comment"), ("tiktok_videos.xlsx", "post")):
        with open_rows(ROOT / "samples" / name) as rows:
            item = next(iter(map_rows(rows, shipped)))
        assert isinstance(item, Mapped) and item.record["kind"] == kind
        assert item.id == f"{kind}:{item.record['platform']}:{item.record['native_id']}"


def test_the_samples_are_all_known() -> None:
    assert {path.name for path in (ROOT / "samples").iterdir()} == {*SAMPLES, "README.md"}


def test_check_says_why_a_file_ends_early(tmp_path: Path, shipped: dict[str, Mappings]) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"name": "a", "comment": "b"}, {"name": "c", "comment": ""}, {]')
    report = check(map_rows(open_rows(path), shipped["instagram"]))
    assert (report.valid, report.rejected, report.whole) == (1, 1, False)
    assert "the rest cannot be read" in str(report) and "first on line 2" in str(report)
