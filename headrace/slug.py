"""One spelling of a community's name."""

from __future__ import annotations

import re

_PREFIX = re.compile(r"^/?[ruc]/", re.IGNORECASE)
_REST = re.compile(r"[^\w]+|_+")


def slug(name: str) -> str:
    """`r/Data_Science` → `data-science`; empty where nothing is left."""
    return _REST.sub("-", _PREFIX.sub("", name.strip()).casefold()).strip("-")
