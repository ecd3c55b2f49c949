"""Explanations of tables and columns, as they stand in the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def write(execute: Callable[[str], object], comments: Mapping[str, str]) -> None:
    """`comments`: table or table.column → text."""
    for name, text in comments.items():
        kind = "COLUMN" if "." in name else "TABLE"
        quoted = name.replace(".", '"."'), text.replace("'", "''")
        execute("COMMENT ON {} \"{}\" IS '{}'".format(kind, *quoted))
