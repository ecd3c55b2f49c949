"""Readers: what is detected, what is read, and what a damaged file comes to."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from producers.formats import BadRow, ReadOptions, Row, Rows, is_readable_name, open_rows
from tests.producers.files import xlsx

MIB = 2**20
ROWS = [{"id": str(i), "text": f"number {i}, “quoted”\nand more"} for i in range(3_000)]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path | str, **options: Any) -> tuple[Rows, list[Row | BadRow]]:
    with open_rows(path, ReadOptions(**options)) as rows:
        return rows, list(rows)


def values(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    found = read(path, **options)[1]
    assert all(isinstance(row, Row) for row in found), found
    return [row.value for row in found if isinstance(row, Row)]


def bad(path: Path, **options: Any) -> list[BadRow]:
    return [row for row in read(path, **options)[1] if isinstance(row, BadRow)]


def until_error(path: Path, **options: Any) -> tuple[list[Row | BadRow], str]:
    """(the rows before the error, the error)"""
    found: list[Row | BadRow] = []
    with pytest.raises(HeadraceError) as error, open_rows(path, ReadOptions(**options)) as rows:
        for row in rows:
            found.append(row)  # noqa: PERF402  (an error ends it)
    return found, str(error.value)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


FORMS: dict[str, Any] = {
    "a.csv": lambda: as_csv(ROWS),
    "b.tsv": lambda: as_csv(ROWS, "\t"),
    "c.json": lambda: json.dumps(ROWS, ensure_ascii=False),
    "d.jsonl": lambda: as_jsonl(ROWS),
    "e.parquet": lambda: as_parquet(ROWS, row_group_size=700),
    "f.xlsx": lambda: xlsx([list(ROWS[0]), *(list(row.values()) for row in ROWS)]),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packer", [None, "gz", "zst"])
def test_each_format_is_read_plain_and_packed(
    tmp_path: Path, name: str, packer: str | None
) -> None:
    data = FORMS[name]()
    data = data.encode() if isinstance(data, str) else data
    if packer == "gz":
        half = len(data) // 2
        data = gzip.compress(data[:half]) + gzip.compress(data[half:]) + b"\0" * 512
    if packer == "zst":
        half = len(data) // 2
        pack = zstandard.ZstdCompressor().compress
        data = pack(data[:half]) + pack(data[half:])
    path = write(tmp_path / (f"{name}.{packer}" if packer else name), data)
    rows, found = read(path)
    assert [row.value for row in found if isinstance(row, Row)] == ROWS
    numbers = [row.number for row in found]
    assert numbers == sorted(set(numbers))
    assert rows.detected.compression == packer
    assert rows.detected.format == name.rpartition(".")[2]
    assert rows.fraction == 1.0
    assert is_readable_name(path)


def test_stdin_is_read_and_told_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (as_csv(ROWS).encode(), gzip.compress(as_jsonl(ROWS).encode()), as_parquet(ROWS)):
        stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)))  # type: ignore[arg-type]
        monkeypatch.setattr("sys.stdin", stdin)
        rows = open_rows("-")
        assert [row.value for row in rows if isinstance(row, Row)] == ROWS
        assert rows.fraction is None or rows.detected.format == "parquet"


def test_a_name_that_lies_does_not_matter(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.csv", as_parquet(ROWS[:5]))) == ROWS[:5]
    assert values(write(tmp_path / "a.json", as_jsonl(ROWS[:5]))) == ROWS[:5]
    assert values(write(tmp_path / "a.jsonl", json.dumps(ROWS[:5], indent=1))) == ROWS[:5]
    assert values(write(tmp_path / "a.csv.gz", as_csv(ROWS[:5]))) == ROWS[:5]


# -- csv -------------------------------------------------------------------------------------


def test_semicolons_cp1252_and_a_title_above_the_header(tmp_path: Path) -> None:
    text = "Bericht 2026;;\r\nid;text;likes\r\n1;Grüße aus Köln, “bald”;3\r\n2;schön;4\r\n"
    path = write(tmp_path / "a.csv", text.encode("cp1252"))
    rows, found = read(path)
    assert found == [
        Row(3, {"id": "1", "text": "Grüße aus Köln, “bald”", "likes": "3"}),
        Row(4, {"id": "2", "text": "schön", "likes": "4"}),
    ]
    assert str(rows.detected) == "csv, cp1252, semicolons, header on line 2"


def test_no_header_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'c_1,"a first\nline",NAG\nc_2,second,CAG\nc_3,third,NAG\n')
    rows, found = read(path)
    assert rows.detected.header is None
    assert rows.detected.columns == ("col1", "col2", "col3")
    assert [row.number for row in found] == [1, 3, 4]
    named = values(path, columns=("id", "text", "label"))
    assert named[0] == {"id": "c_1", "text": "a first\nline", "label": "NAG"}


def test_what_a_person_sets_goes_before_what_is_detected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x|y\n1|2\nid|text\na|b,c\n")
    assert values(path, header=3) == [{"id": "a", "text": "b,c"}]
    assert len(values(path, header=False)) == 4
    assert values(path, header=3, columns=("k", "v")) == [{"k": "a", "v": "b,c"}]
    with pytest.raises(HeadraceError, match="no known encoding"):
        read(path, encoding="klingon")
    with pytest.raises(HeadraceError, match="one character"):
        read(path, delimiter="||")


def test_known_columns_mark_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "some,words\n2026,11\nid,text\n1,x\n")
    rows, found = read(path, known_columns=frozenset({"id", "text"}))
    assert rows.detected.header == 3
    assert found == [Row(4, {"id": "1", "text": "x"})]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_and_wide_encodings(tmp_path: Path, encoding: str) -> None:
    text = "id,text\r\n" + "".join(f"{i},żółw 🐢 שלום\r\n" for i in range(300))
    for name, data in (
        ("a.csv", text),
        ("a.jsonl", as_jsonl([{"id": "1", "text": "żółw 🐢"}] * 99)),
    ):
        path = write(tmp_path / name, data.encode(encoding))
        if encoding == "utf-16-le" and name == "a.csv":
            assert values(path)[0] == {"id": "0", "text": "żółw 🐢 שלום"}
        else:
            assert len(values(path, encoding=None if encoding != "utf-16-le" else encoding)) >= 99


def test_unnamed_and_repeated_columns_get_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",id,text,text\n0,a,b,c\n")
    assert values(path) == [{"col1": "0", "id": "a", "text": "b", "text_2": "c"}]


def test_one_column_of_prose(tmp_path: Path) -> None:
    lines = ["text", "Well, that was fun", "no commas here", "a, b, c, and d"]
    assert values(write(tmp_path / "a.csv", "\n".join(lines))) == [
        {"text": line} for line in lines[1:]
    ]


def test_a_row_of_another_width_is_bad_and_the_rest_intact(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text,n\n1,a,1\n2,b\n3,c,3,extra\n4,d,4,,\n\n,,\n5,e,5\n")
    _rows, found = read(path)
    assert [row.number for row in found] == [2, 3, 4, 5, 8]
    assert [row.reason for row in found if isinstance(row, BadRow)] == [
        "has 2 cells, not 3",
        "has 4 cells, not 3",
    ]
    assert [row.raw for row in found if isinstance(row, BadRow)] == ["2,b", "3,c,3,extra"]


def test_a_stray_quote_costs_its_own_line_alone(tmp_path: Path) -> None:
    good = "".join(f'{i},"fine, {i}",x\n' for i in range(10, 200))
    path = write(tmp_path / "a.csv", f'id,text,n\n1,"never closed,x\n{good}')
    _, found = read(path)
    assert [row.number for row in found if isinstance(row, BadRow)] == [2]
    assert len([row for row in found if isinstance(row, Row)]) == 190
    path = write(tmp_path / "b.csv", 'id,text\n1,a\n2,"never closed\n3,c\n4,d\n')
    _, found = read(path)
    assert [type(row).__name__ for row in found] == ["Row", "BadRow", "Row", "Row"]
    assert "never closed" in found[1][1] and found[3] == Row(5, {"id": "4", "text": "d"})


def test_bytes_that_are_no_text_cost_their_row_alone(tmp_path: Path) -> None:
    lines = [f"{i},grün {i}".encode() for i in range(500)]
    lines[250] = b"250,gr\xfcn"
    path = write(tmp_path / "a.csv", b"id,text\n" + b"\n".join(lines))
    _rows, found = read(path)
    wrong = [row for row in found if isinstance(row, BadRow)]
    assert [row.number for row in wrong] == [252]
    assert "no utf-8" in wrong[0].reason and wrong[0].raw == "250,gr\\xfcn"
    assert len(found) == 500
    assert values(path, encoding="cp1252")[250]["text"] == "grün"


def test_nul_and_ten_megabytes_in_a_cell(tmp_path: Path) -> None:
    large = "x" * (10 * MIB)
    path = write(tmp_path / "a.csv", f'id,text\n1,a\0b\n2,"{large}\n!"\n3,c\n')
    found = values(path)
    assert found[0]["text"] == "a\0b"
    assert found[1]["text"] == large + "\n!"
    assert found[2] == {"id": "3", "text": "c"}
    wrong = bad(path, max_row_bytes=MIB)
    assert [row.number for row in wrong] == [3, 4] and "longer than" in wrong[0].reason
    assert read(path, max_row_bytes=MIB)[1][-1] == Row(5, {"id": "3", "text": "c"})


@given(
    st.lists(
        st.lists(
            st.text(
                st.characters(exclude_categories=("Cs",), exclude_characters="\0\x1c"), max_size=20
            ),
            min_size=3,
            max_size=3,
        ).filter(lambda cells: any(cell.strip() for cell in cells)),
        min_size=1,
        max_size=30,
    )
)
@settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_csv_that_python_writes_comes_back(tmp_path: Path, cells: list[list[str]]) -> None:
    rows = [dict(zip(("alpha", "beta", "gamma"), row, strict=True)) for row in cells]
    path = write(tmp_path / "any.csv", as_csv(rows))
    assert values(path, delimiter=",", header=1, encoding="utf-8") == rows


@given(st.binary(max_size=400))
@settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_bytes_bring_a_reader_down(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "any", data)
    for form in (None, "csv", "json", "jsonl", "parquet", "xlsx"):
        try:
            for row in open_rows(path, ReadOptions(format=form)):  # type: ignore[arg-type]
                assert isinstance(row, Row | BadRow)
        except HeadraceError as error:
            assert str(path) in str(error) or "line" in str(error)


# -- json ------------------------------------------------------------------------------------


def test_json_lines_with_broken_ones(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"id": 1}\r\n{"id": \n\n[1, 2]\n{"id": NaN, "n": Infinity}\n'
        b'{"t": "\\ud800 lone"}\n{"t": "gr\xfcn", "ok": "\xc3\xbc\xc3\xbc"}\n{"id": 2}',
    )
    _rows, found = read(path)
    assert found == [
        Row(1, {"id": 1}),
        BadRow(2, "is broken JSON", '{"id":'),
        BadRow(4, "is no JSON object", "[1, 2]"),
        Row(5, {"id": None, "n": None}),
        Row(6, {"t": "\ufffd lone"}),
        BadRow(7, "holds bytes that are no utf-8: set --encoding", found[5][2]),
        Row(8, {"id": 2}),
    ]
    assert "gr\\xfcn" in found[5][2]


def test_json_lines_over_the_limit(tmp_path: Path) -> None:
    lines = [{"id": 1}, {"t": "x" * (3 * MIB)}, {"id": 2}, {"t": "y" * (3 * MIB)}]
    path = write(tmp_path / "a.jsonl", as_jsonl(lines))
    _, found = read(path, max_row_bytes=2 * MIB)
    assert [type(row).__name__ for row in found] == ["Row", "BadRow", "Row", "BadRow"]
    assert len(values(path)) == 4


A1, A2 = {"a": 1}, {"a": 2}
AB = {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "expected", "where"),
    [
        ('{"data": {"items": [{"a": 1}, {"a": 2}]}, "next": null}', [A1, A2], "data.items"),
        ('{"meta": [{"k": 1}], "posts": [{"a": 1}, {"a": 2}]}', [A1, A2], "posts"),
        ('{"title": "t", "fields": ["a", "b"], "values": [[1, 2], [1, 2]]}', [AB, AB], "values"),
        ('{"values": [[1, 2]], "columns": [{"name": "a"}, {"name": "b"}]}', [AB], "values"),
        ('[["a", "b"], [1, 2]]', [AB], ""),
        ('{"a": 1, "b": {"c": 2}}', [{"a": 1, "b": {"c": 2}}], None),
        ('{\n "a": 1\n}\n{\n "a": 2\n}', [A1, A2], None),
        ("[]", [], ""),
    ],
)
def test_where_rows_stand_in_json(
    tmp_path: Path, text: str, expected: list[Any], where: str | None
) -> None:
    rows, found = read(write(tmp_path / "a.json", text))
    assert [row.value for row in found if isinstance(row, Row)] == expected
    assert rows.detected.json_path == where


def test_a_json_path_can_be_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json", '{"a": [{"x": 1}], "b": {"c": [{"y": 2}, {"y": 3}]}, "id": 1}'
    )
    assert values(path, json_path="a") == [{"x": 1}]
    assert values(path, json_path="b.c") == [{"y": 2}, {"y": 3}]
    assert values(path, json_path="b") == [{"c": [{"y": 2}, {"y": 3}]}]
    assert values(path, json_path=".")[0]["id"] == 1
    assert "nothing at b.d" in until_error(path, json_path="b.d")[1]
    # A record with a list inside is a record, where the mappings know its keys.
    assert len(values(path, known_columns=frozenset({"id", "a"}))) == 1


def test_a_large_json_is_read_piece_by_piece(tmp_path: Path) -> None:
    items = [{"id": i, "text": 'żółw \\ " ' * 40, "n": [i, {"deep": [i]}]} for i in range(8_000)]
    path = write(tmp_path / "a.json", json.dumps({"meta": {"a": 1}, "items": items}))
    rows = open_rows(path)
    stream = iter(rows)
    assert next(stream)[0] == 1
    assert (rows.fraction or 1) < 0.7
    assert [row.value for row in stream if isinstance(row, Row)] == items[1:]


def test_broken_json_keeps_what_came_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"id": 1}, {"id": 2}, {"id": ,}, {"id": 4}]')
    found, error = until_error(path)
    assert [row.value for row in found if isinstance(row, Row)] == [{"id": 1}, {"id": 2}]
    assert "row 3" in error and str(path) in error
    found, error = until_error(write(tmp_path / "b.json", '[{"id": 1}, {"id": 2}'))
    assert len(found) == 2 and "ends inside the list" in error
    found, error = until_error(
        write(tmp_path / "c.json", '[{"t": "' + "x" * 3 * MIB), max_row_bytes=MIB
    )
    assert not found and "longer than" in error
    assert bad(write(tmp_path / "d.json", '[{"a": 1}, 7, null]'))[1].reason == "is no JSON object"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=6), json_values, max_size=4), max_size=12),
    st.integers(0, 4),
)
@settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_json_comes_back_however_it_is_cut(
    tmp_path: Path, items: list[dict[str, Any]], indent: int
) -> None:
    from producers.formats.json_tree import Tree, read_tree

    text = json.dumps(items, indent=indent or None, ensure_ascii=indent % 2 == 0)
    size = random.Random(len(text)).randrange(1, 9)
    pieces: Iterator[str] = (text[i : i + size] for i in range(0, len(text), size))
    rows = list(read_tree(pieces, Tree(()), "utf-8", ReadOptions(), "x"))
    assert [row.value for row in rows if isinstance(row, Row)] == items


# -- parquet and xlsx --------------------------------------------------------------------------


def test_parquet_keeps_types(tmp_path: Path) -> None:
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    table = pa.table(
        {
            "id": pa.array([2**60, None], pa.int64()),
            "at": pa.array([at, at], pa.timestamp("ns", "UTC")),
            "tags": [["a", "b"], []],
            "who": [{"name": "x"}, None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = values(tmp_path / "a.parquet")
    assert first == {"id": 2**60, "at": at, "tags": ["a", "b"], "who": {"name": "x"}}
    assert second["id"] is None and second["who"] is None


def test_a_damaged_parquet_says_so(tmp_path: Path) -> None:
    data = as_parquet(ROWS, row_group_size=500, compression="none")
    assert "truncated" in until_error(write(tmp_path / "a.parquet", data[: len(data) // 2]))[1]
    # A hole in the last row group: the rows before it stand.
    hole = bytearray(data)
    start = len(data) - len(data) // 7
    hole[start - 3000 : start] = b"\xff" * 3000
    found, error = until_error(write(tmp_path / "b.parquet", bytes(hole)))
    assert "damaged" in error or "truncated" in error
    assert [row.value for row in found if isinstance(row, Row)] == ROWS[: len(found)]
    assert "row group" in until_error(write(tmp_path / "c.parquet", data), max_load_bytes=1000)[1]


def test_xlsx_with_a_title_gaps_and_numbers(tmp_path: Path) -> None:
    data = xlsx(
        [["Report", None, None], [], ["id", None, "text"], [3, 7.5, "a"], [None], [2**60, 1, "b"]]
    )
    rows, found = read(write(tmp_path / "a.xlsx", data))
    assert rows.detected.header == 3 and rows.detected.sheet == "Posts"
    assert found[0] == Row(4, {"id": 3, "col2": 7.5, "text": "a"})
    assert found[1].number == 6
    assert isinstance(found[1], Row) and isinstance(found[1].value["id"], float)  # not exact
    assert values(tmp_path / "a.xlsx", header=False)[0]["col1"] == "Report"
    assert "no sheet 'Q'" in until_error(tmp_path / "a.xlsx", sheet="Q")[1]


def test_a_damaged_or_foreign_xlsx_says_so(tmp_path: Path) -> None:
    data = xlsx([["id", "text"], ["1", "a"]])
    assert "truncated" in until_error(write(tmp_path / "a.xlsx", data[:-200]))[1]
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("posts.csv", "id,text\n1,a\n")
    assert "zip archive" in until_error(tmp_path / "b.xlsx")[1]
    assert "is not" in until_error(write(tmp_path / "c.xlsx", "id,text\n1,a\n"))[1]


# -- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("packer", ["gz", "zst"])
@pytest.mark.parametrize("name", ["a.csv", "c.json", "d.jsonl"])
def test_a_truncated_file_gives_its_rows_and_then_an_error(
    tmp_path: Path, name: str, packer: str
) -> None:
    rows = [{"id": str(i), "text": random.Random(i).randbytes(60).hex()} for i in range(20_000)]
    text = {"a.csv": as_csv, "c.json": json.dumps, "d.jsonl": as_jsonl}[name](rows)  # type: ignore[operator]
    zstd = zstandard.ZstdCompressor(write_checksum=True).compress
    data = (gzip.compress if packer == "gz" else zstd)(text.encode())
    found, error = until_error(write(tmp_path / f"{name}.{packer}", data[: len(data) * 3 // 4]))
    assert "truncated" in error and str(tmp_path) in error
    assert 10_000 < len(found) < 19_000
    assert [row.value for row in found if isinstance(row, Row)] == rows[: len(found)]
    wrong = bytearray(data)
    wrong[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    found, error = until_error(write(tmp_path / f"{name}.{packer}", bytes(wrong)))
    assert "damaged" in error or "broken" in error


def test_zip_bombs_are_stopped(tmp_path: Path) -> None:
    line = b'{"id": "1", "text": "boom"}\n'
    small: dict[str, Any] = {"max_expansion": 50, "max_expansion_free_bytes": MIB}
    for name, pack in (
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
    ):
        path = write(tmp_path / name, pack(line * 100_000))
        found, error = until_error(path, **small)
        assert "zip bomb" in error and len(found) < 100_000
        assert len(values(path)) == 100_000  # under the ordinary limit it is only repetitive
    path = write(tmp_path / "a.xlsx", xlsx([["id", "text"], ["1", "x" * (8 * MIB)]]))
    assert "when unpacked" in until_error(path, max_load_bytes=MIB)[1]
    # One that lies about its size in the archive's directory.
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("xl/worksheets/sheet1.xml").file_size
    data = bytearray(bytes(data).replace(size.to_bytes(4, "little"), (900).to_bytes(4, "little")))
    assert (
        "when unpacked"
        in until_error(write(tmp_path / "b.xlsx", bytes(data)), max_load_bytes=MIB)[1]
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.xlsx", "a.csv.gz"])
def test_an_empty_file_says_so(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else b"")
    assert "is empty" in until_error(path)[1]


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "does not exist" in until_error(tmp_path / "no.csv")[1]
    assert "is a folder" in until_error(tmp_path)[1]
    assert "bzip2" in until_error(write(tmp_path / "a.csv", b"BZh91AY&SY" + b"x" * 90))[1]
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4 + b"\0" * 2000
    assert "binary" in until_error(write(tmp_path / "a.csv", png))[1]


def test_no_permission_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n1,a\n")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        assert "may not be read" in until_error(path)[1]
    finally:
        if user == 0:
            os.seteuid(0)
