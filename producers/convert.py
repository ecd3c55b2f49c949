"""From what files hold to what records hold: pure functions, one a type.

Each takes what a reader gives (strings, JSON values, datetimes) and returns the record's form, or
"" or None where there is nothing. What is there but cannot be read is noted under its field's name
and left out; only an id that cannot be trusted refuses its row (`Unfit`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import orjson

MAX_ID = 500
_EXACT = 2**53
_LARGEST = 2**63 - 1
_NAMESPACE = bytes.fromhex("8a5f5c0e3a1b5d0c9a3be4b2f2f0a7d1")  # of ids made from content

Note = Callable[[str], None]


class Unfit(Exception):
    """A row that can be no record; str() is the reason, the same for all rows of that kind."""


# -- text ------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A string without white space around it; lists are joined by spaces; "" for nothing."""
    if type(value) is str:
        return value.strip()
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if value != value:
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else repr(value)
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(text, value)))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, date):
        return value.isoformat()
    return str(value).strip()


def label(value: Any) -> str | int | float | bool | None:
    """A string, number or truth value as it is; None for nothing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return None if value != value or abs(value) > _LARGEST else value
    return text(value) or None


def extra(value: Any) -> Any:
    """Anything JSON can hold, as it is; None for nothing."""
    if type(value) is str:
        return value.strip() or None
    return None if value is None or value == [] or value == {} or value != value else value


# -- numbers ---------------------------------------------------------------------------------

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_SHORT = re.compile(r"([\d.]+)\s*([kKmMbB])")
_SHORT_BY = {"k": 10**3, "m": 10**6, "b": 10**9}
_NOTHING = {"", "nan", "none", "null", "n/a", "na", "-", "\\n"}


def number(value: Any, note: Note, field: str) -> int | float | None:
    """3, 3.5; also "3.0" (3), "1,234", "1.2K"."""
    if type(value) is str and value.isdigit() and len(value) < 18:
        return int(value)
    if value is None:
        return None
    try:
        return _number(value)
    except (TypeError, ValueError, OverflowError):
        note(field)
        return None


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in _NOTHING:
            return None
        if _THOUSANDS.fullmatch(value):
            value = value.replace(",", "")
        elif short := _SHORT.fullmatch(value):
            value = round(float(short[1]) * _SHORT_BY[short[2].lower()], 6)
    found = value if isinstance(value, int) else float(value)
    if found != found:
        return None
    if abs(found) > _LARGEST:
        raise ValueError(value)
    return int(found) if isinstance(found, float) and found.is_integer() else found


def flag(value: Any, note: Note, field: str) -> bool | None:
    """true, yes, 1, t and their opposites."""
    word = text(value).lower()
    if word in ("true", "yes", "y", "t", "1"):
        return True
    if word in ("false", "no", "n", "f", "0"):
        return False
    if word not in _NOTHING:
        note(field)
    return None


def is_true(value: Any) -> bool:
    """Whether a value says yes; whatever else stands there does not."""
    return text(value).lower() in ("true", "yes", "y", "t", "1")


# -- moments ---------------------------------------------------------------------------------

_EPOCH = re.compile(r"\d{9,19}(?:\.\d+)?")
_is_epoch = _EPOCH.fullmatch
_is_ours = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").fullmatch
_MINUTES = [f"T{minute // 60:02}:{minute % 60:02}:" for minute in range(24 * 60)]
_days: dict[int, str] = {}  # since 1970, as written; the days of a file are few
_TWITTER = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) (\d\d) (\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d) (\d{4})"
)
_MONTHS = {
    "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6,
    "Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12,
}  # fmt: skip
_MAIL = re.compile(r"[A-Za-z]{3}.*\d\d:\d\d")


def moment(
    value: Any, formats: tuple[str, ...], zone: tzinfo | None, note: Note, field: str
) -> str | None:
    """RFC 3339 in UTC, "2013-08-01T12:00:00Z".

    Reads ISO 8601, seconds, milliseconds, micro- or nanoseconds since 1970, Twitter's and mail's
    way, and `formats` (strptime) before all these. A time without zone is in `zone` (none: UTC).
    """
    if value is None or value == "":
        return None
    try:
        if type(value) is int and not formats:
            return _stamp(value)
        if type(value) is str and not formats:
            if value[-1] == "Z" and _is_ours(value):
                datetime.fromisoformat(value)  # whether there is such a day
                return value
            if _is_epoch(value) and len(value) != 14:
                return _stamp(float(value) if "." in value else int(value))
        when = _moment(value, formats)
        if when is None:
            return None
        if when.tzinfo is None:
            if zone is None:
                return when.isoformat() + "Z"
            when = when.replace(tzinfo=zone)
        return when.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    except (ValueError, OverflowError, OSError, TypeError, IndexError):
        note(field)
        return None


def _moment(value: Any, formats: tuple[str, ...]) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int | float):
        return None if value != value else datetime.fromisoformat(_stamp(value))
    words = str(value).strip()
    for form in formats:
        try:
            return datetime.strptime(words, form)
        except ValueError:
            continue
    if _is_epoch(words):
        if len(words) == 14:
            return datetime.strptime(words, "%Y%m%d%H%M%S")
        return datetime.fromisoformat(_stamp(float(words) if "." in words else int(words)))
    try:
        return datetime.fromisoformat(words)
    except ValueError:
        pass
    if words.lower() in _NOTHING:
        return None
    if found := _TWITTER.fullmatch(words):
        month, day, hour, minute, second, sign, zone_h, zone_m, year = found.groups()
        if zone_h == zone_m == "00":
            return datetime(
                int(year), _MONTHS.get(month, 0), int(day), int(hour), int(minute), int(second)
            )
        return datetime.fromisoformat(
            f"{year}-{_MONTHS.get(month, 0):02}-{day}T{hour}:{minute}:{second}"
            f"{sign}{zone_h}:{zone_m}"
        )
    if words.endswith(" UTC"):
        return datetime.fromisoformat(words[:-4])
    if _MAIL.search(words):
        return parsedate_to_datetime(words)
    raise ValueError(words)


def _stamp(value: float) -> str:
    """Seconds (or milli-, micro-, nanoseconds) since 1970 as RFC 3339."""
    if not 1e8 <= value < 1e20:  # before 1973 it is a year, a day of Excel's or nothing
        raise ValueError
    while value >= 1e11:
        value /= 1000
    seconds = int(value)
    micros = 0 if value == seconds else int((value - seconds) * 1e6 + 0.5)
    day, rest = divmod(seconds, 86_400)
    date_ = _days.get(day)
    if date_ is None:
        if len(_days) > 50_000:
            _days.clear()
        date_ = _days[day] = datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")
    minute, second = divmod(rest, 60)
    part = f".{min(micros, 999_999):06}" if micros else ""
    return f"{date_}{_MINUTES[minute]}{second:02}{part}Z"


@lru_cache
def zone_named(name: str) -> tzinfo:
    return ZoneInfo(name)


# -- ids -------------------------------------------------------------------------------------

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,200}").fullmatch
_ROUNDED = re.compile(r"[-+]?\d+(\.\d+)?[eE]\+\d+|[-+]?\d*\.\d+[eE][-+]?\d+|\d{16,}\.0*")
_WHOLE = re.compile(r"(\d{1,15})\.0*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_ID = {"nan", "None", "null", "NULL", "NaN", "N/A", "-", ""}


def ident(value: Any) -> str:
    """A native id as text; "" for nothing. Raises Unfit for one that cannot be trusted.

    A spreadsheet writes 540000000000000123 as 5.40E+17, and a float holds no more than 15 digits:
    different posts would get one id, so such an id is refused (a mapping may hash other fields).
    """
    if type(value) is str:
        if _PLAIN_ID(value) and value not in _NO_ID:
            return value
        value = value.strip()
        if value in _NO_ID:
            return ""
        if _CONTROL.search(value):
            raise Unfit("the id holds control characters")
        if _ROUNDED.fullmatch(value):
            raise Unfit("the id is a rounded number (as 5.40E+17)")
        if whole := _WHOLE.fullmatch(value):
            return whole[1]  # 3.0, where a column with gaps was read as floats
        return value  # type: ignore[no-any-return]
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        raise Unfit("the id is true or false")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value != value:
            return ""
        if value.is_integer() and abs(value) < _EXACT:
            return str(int(value))
        raise Unfit("the id is a rounded number (as 5.40E+17)")
    if isinstance(value, list | dict):
        raise Unfit("the id is a list or an object")
    return ident(text(value))


def reference(value: Any, note: Note, field: str) -> str:
    """Another record's native id; one that cannot be trusted is left out."""
    try:
        found = ident(value)
    except Unfit:
        note(field)
        return ""
    if len(found) > MAX_ID:
        note(field)
        return ""
    return found


def digest(platform: str, parts: list[str]) -> str:
    """A uuid5 of the identifying fields; "" when all of them are empty."""
    if not any(parts):
        return ""
    data = bytearray(
        hashlib.sha1(_NAMESPACE + orjson.dumps([platform, *parts]), usedforsecurity=False).digest()
    )
    data[6] = data[6] & 0x0F | 0x50
    data[8] = data[8] & 0x3F | 0x80
    digits = data[:16].hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


# -- composing -------------------------------------------------------------------------------


def glue(*parts: str) -> str:
    """A template: literal, value, literal, value, …, literal.

    A literal goes with the value behind it (the last one with the last value), and one between two
    values stands only where something stands before it, so "{title}\\n\\n{text}" leaves no gap.
    """
    if len(parts) == 5 and not parts[0] and not parts[4]:  # the usual one: title and body
        return parts[1] + parts[2] + parts[3] if parts[1] and parts[3] else parts[1] or parts[3]
    out = ""
    for place in range(1, len(parts), 2):
        value = parts[place]
        if value:
            lead = parts[place - 1]
            out += value if place > 1 and not out else lead + value
    return out + parts[-1] if parts[-2] and out else out


def glue_all(*parts: str) -> str:
    """A template of an id: "" unless every value is there."""
    return "" if "" in parts[1::2] else "".join(parts)


def first(*values: Any) -> Any:
    """The first that is something."""
    for value in values:
        if value is not None and value != "":
            return value
    return None


def search(pattern: re.Pattern[str], value: Any) -> str:
    """The group (or all) of where the pattern stands in the value; "" if nowhere."""
    found = pattern.search(text(value))
    return "" if found is None else found[found.lastindex or 0]


def lookup(names: dict[str, Any], value: Any) -> Any:
    """The value's other name, itself if it has none."""
    return names.get(text(value), value)


def dig(row: dict[str, Any], whole: str, steps: tuple[str, ...]) -> Any:
    """What stands at a path; a column that is called like the path goes first."""
    if whole in row:
        return row[whole]
    value: Any = row
    for step in steps:
        if type(value) is dict:
            value = value.get(step)
        elif type(value) is list and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
