"""One spelling of a community's name, for ids and for putting spellings together."""

from __future__ import annotations

import re
from functools import lru_cache

_REST = re.compile(r"[^\w.-]+")


@lru_cache(maxsize=10_000)  # a few communities have most of the posts
def slug(name: str) -> str:
    """As it stands in addresses: "Dr. Oetker & Co" → "dr.-oetker-co"; empty if nothing is left."""
    return _REST.sub("-", name.casefold()).strip("-")
