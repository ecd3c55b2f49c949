from tests.search.conftest import search, search_flags, searches

__all__ = ["search", "search_flags", "searches"]
