"""Errors that are meant for the person who runs a command, and what a stage asks of its group."""

from __future__ import annotations


class HeadraceError(Exception):
    """One clear line: what is wrong, where, and what to do. The CLI prints it and exits 2."""


class ConfigError(HeadraceError):
    """A configuration file, variable or flag that cannot be used; names file and key."""


class ServerUnavailable(HeadraceError):
    """A server that is needed cannot be reached or cannot be had."""


class Retry(Exception):
    """The batch could not be worked on now; try the same batch again after so many seconds."""

    def __init__(self, after: float, reason: str = "") -> None:
        super().__init__(reason or f"again in {after:g} s")
        self.after = after


class Onward(Retry):
    """A part of the batch is done, and kept where the same batch finds it: go on at once."""


class Pause(Exception):
    """Nothing can be worked on until somebody acts (a budget is spent, say); the group waits."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
