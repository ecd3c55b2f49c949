"""One spelling of a community's name, for ids and for putting spellings together."""

from __future__ import annotations

import re

_REST = re.compile(r"[^\w.-]+")


def slug(name: str) -> str:
    """As it stands in addresses: "Dr. Oetker & Co" → "dr.-oetker-co"; empty if nothing is left."""
    return _REST.sub("-", name.casefold()).strip("-")
