"""Streaming readers: CSV, TSV, JSON, JSON lines, Parquet, XLSX, plain, .gz and .zst, and stdin."""

from producers.formats.base import FORMATS, BadRow, Detected, Format, ReadOptions, Row, Rows
from producers.formats.reader import is_readable_name, open_rows

__all__ = [
    "FORMATS",
    "BadRow",
    "Detected",
    "Format",
    "ReadOptions",
    "Row",
    "Rows",
    "is_readable_name",
    "open_rows",
]
