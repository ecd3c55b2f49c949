"""A stage whose model is not there."""

from headrace.errors import HeadraceError
from headrace.stream.stage import Context, Process


def build(context: Context) -> Process:
    raise HeadraceError("the model is missing: make it with `make model`")
