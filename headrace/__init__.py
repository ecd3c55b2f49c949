"""Headrace: raw text records on Kafka, enriched progressively by independent groups.

from headrace import Headrace
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.api import Headrace
    from headrace.errors import HeadraceError

__version__ = "0.1.0"
__all__ = ["Headrace", "HeadraceError", "__version__"]


def __getattr__(name: str) -> Any:
    """What programs use is imported when it is asked for: commands start without it."""
    if name == "Headrace":
        from headrace.api import Headrace

        return Headrace
    if name == "HeadraceError":
        from headrace.errors import HeadraceError

        return HeadraceError
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
