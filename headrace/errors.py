"""Errors that are meant for the person who runs a command."""

from __future__ import annotations


class HeadraceError(Exception):
    """One clear line: what is wrong, where, and what to do. The CLI prints it and exits 2."""


class ConfigError(HeadraceError):
    """A configuration file, variable or flag that cannot be used; names file and key."""


class ServerUnavailable(HeadraceError):
    """A server that is needed cannot be reached or cannot be had."""
