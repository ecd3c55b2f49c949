"""Words for people."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """ "1 row", "1,000 rows"; communities too."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"
