"""Structured logs: a line of text on a terminal, a JSON object a line elsewhere; never a secret.

log = logger(__name__)
log.info("caught up", group="text", lag=0)
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from headrace import config
from headrace.config import Settings

_FIELDS = "headrace_fields"
_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@/\s]+(?=@)")
_WORD_PASSWORD = re.compile(
    r"((?:password|passwd|secret|api[_-]?key|token)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;]+",
    re.IGNORECASE,
)


class Logger:
    """A standard logger whose calls take fields by name besides what fills the message."""

    def __init__(self, name: str, **bound: Any) -> None:
        self._logger = logging.getLogger(name)
        self._bound = bound

    def bind(self, **fields: Any) -> Logger:
        """The same logger with fields that every line carries."""
        return Logger(self._logger.name, **(self._bound | fields))

    def debug(self, message: str, *args: object, **fields: Any) -> None:
        self._log(logging.DEBUG, message, args, fields)

    def info(self, message: str, *args: object, **fields: Any) -> None:
        self._log(logging.INFO, message, args, fields)

    def warning(self, message: str, *args: object, **fields: Any) -> None:
        self._log(logging.WARNING, message, args, fields)

    def error(self, message: str, *args: object, **fields: Any) -> None:
        self._log(logging.ERROR, message, args, fields)

    def exception(self, message: str, *args: object, **fields: Any) -> None:
        """An error with the stack trace of the exception at hand: for our own mistakes only."""
        self._log(logging.ERROR, message, args, fields, trace=True)

    def _log(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        fields: dict[str, Any],
        trace: bool = False,
    ) -> None:
        if self._logger.isEnabledFor(level):
            extra = {_FIELDS: self._bound | fields}
            self._logger.log(level, message, *args, exc_info=trace, extra=extra)


def get(name: str, **bound: Any) -> Logger:
    return Logger(name, **bound)


def setup(settings: Settings, stream: TextIO | None = None, **bound: Any) -> None:
    """Send this process's log to `stream` (standard error) as the settings say; `bound` fields
    (group, worker) stand in every line."""
    stream = stream or sys.stderr
    style = settings.log.format
    as_text = style == "text" or (style == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    mask = Mask(config.secrets(settings))
    handler.setFormatter(_Text(mask, bound) if as_text else _Json(mask, bound))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries speak up only when it matters
    for name in ("headrace", "producers", "consumers"):
        logging.getLogger(name).setLevel(settings.log.level.upper())


class Mask:
    """Replaces known secrets, and whatever looks like a password in an address or setting."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) > 3}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub("***", text)
        return _WORD_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***", text))


class _Json(logging.Formatter):
    def __init__(self, mask: Mask, bound: dict[str, Any]) -> None:
        super().__init__()
        self._mask, self._bound = mask, bound

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return self._bound | getattr(record, _FIELDS, {})

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return self._mask(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode())


class _Text(_Json):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in self.fields(record).items())
        clock = _time(record).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return self._mask(line)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
