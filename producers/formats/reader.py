"""One way in: which format a file has, and the reader for it."""

from __future__ import annotations

import re
from pathlib import Path

import orjson

from headrace.errors import HeadraceError
from producers.formats.base import Detected, Format, ReadOptions, Rows
from producers.formats.delimited import ONE_COLUMN, Layout, read_delimited
from producers.formats.json_tree import find_rows, read_tree
from producers.formats.jsonl import read_jsonl
from producers.formats.source import Source
from producers.formats.text import ESCAPE, check_encoding, decoded, detect_encoding

_ENDINGS: dict[str, Format] = {
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
    "xlsx": "xlsx",
}
_PACKED = re.compile(r"\.(gz|gzip|zst|zstd)$", re.I)


def is_readable_name(path: Path | str) -> bool:
    """Whether the name says one of the formats: what `publish FOLDER` takes."""
    return _by_name(str(path)) is not None


def open_rows(path: Path | str, options: ReadOptions | None = None) -> Rows:
    """Open a file ("-" is standard input) and find out what it is.

    Raises HeadraceError for what cannot be opened or is no table of any known kind.
    """
    options = options or ReadOptions()
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise HeadraceError(f"the delimiter is one character, not {options.delimiter!r}")
    source = Source(path, options)
    try:
        return _open(source, options)
    except BaseException:
        source.close()
        raise


def _open(source: Source, options: ReadOptions) -> Rows:
    named = options.format or _by_name(source.name)
    kind = _binary_kind(source.head) or (named if named not in ("parquet", "xlsx") else None)
    if named in ("parquet", "xlsx") and kind is None:
        raise HeadraceError(f"{source.name} is called {named} but is not: it may be damaged")
    if kind == "parquet":
        return _open_parquet(source, options)
    if kind == "xlsx":
        return _open_xlsx(source, options)
    encoding = (
        check_encoding(options.encoding)
        if options.encoding
        else detect_encoding(source.head, source.whole, source.name)
    )
    if encoding in ("utf-8", "utf8") and source.head.startswith(b"\xef\xbb\xbf"):
        encoding = "utf-8-sig"
    head = _decode_head(source, encoding)
    if options.format is None:
        kind = _text_kind(head, kind)
    if kind == "jsonl":
        detected = Detected("jsonl", source.compression, encoding)
        rows = read_jsonl(source, encoding, options)
    elif kind == "json":
        tree = find_rows(head, source.whole, options, source.name)
        detected = Detected(
            "json", source.compression, encoding, columns=tree.columns, json_path=tree.shown
        )
        chunks = decoded(source.chunks(), encoding, source.name)
        rows = read_tree(chunks, tree, encoding, options, source.name)
    else:
        layout = Layout(head, source.whole, kind == "tsv", options)
        detected = Detected(
            "tsv" if layout.delimiter == "\t" else "csv",
            source.compression,
            encoding,
            None if layout.delimiter == ONE_COLUMN else layout.delimiter,
            layout.header,
            layout.columns,
        )
        rows = read_delimited(source, encoding, layout, options)
    return Rows(source.name, detected, rows, source.fraction, source.close)


def _open_parquet(source: Source, options: ReadOptions) -> Rows:
    from producers.formats.parquet import ParquetTable  # its library takes a while to load

    table = ParquetTable(source.seekable(), source.name, options)
    detected = Detected("parquet", source.compression, columns=table.columns)
    return Rows(source.name, detected, iter(table), table.fraction, source.close)


def _open_xlsx(source: Source, options: ReadOptions) -> Rows:
    from producers.formats.xlsx import Sheet

    sheet = Sheet(source.seekable(), source.name, options)
    detected = Detected(
        "xlsx", source.compression, header=sheet.header, columns=sheet.columns, sheet=sheet.name
    )
    return Rows(source.name, detected, iter(sheet), sheet.fraction, source.close)


def _by_name(name: str) -> Format | None:
    return _ENDINGS.get(_PACKED.sub("", name).rpartition(".")[2].lower())


def _binary_kind(head: bytes) -> Format | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"PK\x03\x04"):
        return "xlsx"
    return None


def _text_kind(head: str, named: Format | None) -> Format:
    """What a text is by its beginning, where that is certain; else what its name says."""
    start = head.lstrip("\ufeff \t\r\n\x1e")
    if named in ("csv", "tsv"):
        return named
    first, _, rest = start.partition("\n")
    if start.startswith("{"):
        alone = _is_json(first)
        follows = rest.lstrip()[:1]
        if alone and (follows == "{" or (not follows and named == "jsonl")):
            return "jsonl"
        printed = first.strip() == "{" and follows in ('"', "}", "")  # one object over many lines
        if named == "jsonl" and not printed:
            return "jsonl"
        return "json"
    if start.startswith("["):
        return "jsonl" if named == "jsonl" and _is_json(first) and rest.strip() else "json"
    return named or "csv"


def _is_json(line: str) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def _decode_head(source: Source, encoding: str) -> str:
    import codecs

    decoder = codecs.getincrementaldecoder(encoding)(ESCAPE)
    try:
        return decoder.decode(source.head, source.whole)
    except UnicodeError:
        return ""  # the reader says it, with the place
