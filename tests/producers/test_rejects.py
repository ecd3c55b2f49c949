"""The rejects file: written, cut off behind a kept part, read again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError
from producers.rejects import Reject, RejectsWriter, _json, _reject, read_rejects


def reject(line: int, **over: Any) -> Reject:
    said: dict[str, Any] = {"row": {"id": line}, **over}
    return Reject("a.csv", line, "title is missing", "reddit", "posts", "posts", **said)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.rejects.jsonl"
    writer = RejectsWriter(path)
    assert writer.flush() == 0 and not path.exists()
    many = [reject(line) for line in range(2_500)]
    for one in many:
        writer.write(one)
    writer.write(reject(9_000, row=None, raw='{"id": "\U0001f422"'))
    size = writer.flush()
    writer.close()
    assert writer.count == 2_501 and path.stat().st_size == size
    assert list(read_rejects(path)) == [*many, reject(9_000, row=None, raw='{"id": "\U0001f422"')]


def test_what_stands_behind_the_kept_part_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer = RejectsWriter(path)
    writer.write(reject(1))
    kept = writer.flush()
    writer.write(reject(2))
    writer.close()
    again = RejectsWriter(path, kept)
    again.write(reject(3))
    again.close()
    assert [one.line for one in read_rejects(path)] == [1, 3]
    RejectsWriter(path).close()
    assert path.read_bytes() == b""


def test_values_to_try_again() -> None:
    assert reject(1).value() == {"id": 1}
    assert reject(1, row=None, raw='{"id": 2}').value() == {"id": 2}
    assert reject(1, row=None, raw='{"id": ').value() is None
    assert reject(1, row=None, raw="[1]").value() is None


def test_a_row_that_json_cannot_hold_stands_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    writer = RejectsWriter(path)
    writer.write(reject(1, row={"at": datetime(2026, 1, 2), "n": 5}))
    writer.write(reject(2, row={"n": 2**80}))
    writer.close()
    first, second = read_rejects(path)
    assert first.row == {"at": "2026-01-02T00:00:00", "n": 5}
    assert second.row is None and str(2**80) in (second.raw or "")


@pytest.mark.parametrize("line", ['{"line": 1}', "{", "[]", '{"file": 1, "reason": "x"}'])
def test_a_slip_in_the_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(_json({"file": "a", "line": 1, "reason": "r", "platform": "p", "kind": "k",
                            "mapping": "m", "row": {}}) + line.encode() + b"\n")  # fmt: skip
    with pytest.raises(HeadraceError, match=r"a\.jsonl:2"):
        list(read_rejects(path))


def test_no_folder_to_write_in_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = RejectsWriter(tmp_path / "file" / "a.jsonl")
    writer.write(reject(1))
    with pytest.raises(HeadraceError, match="cannot be written"):
        writer.flush()


@given(st.dictionaries(st.text(), st.none() | st.text() | st.integers(-(2**63), 2**64 - 1)))
@settings(derandomize=True, deadline=None)
def test_any_row_comes_back(row: dict[str, Any]) -> None:
    import orjson

    said = {"file": "a", "line": 1, "reason": "r", "platform": "p", "kind": "k", "mapping": "m"}
    assert _reject(orjson.loads(_json({**said, "row": row}))).row == row
