"""A log line as data: a name and typed fields, `log.warning(event("consumer_lost", queue=name, retry_in_s=delay))`.

Values keep their types up to the formatter: JSON gets numbers and booleans, a console gets text. Nothing is formatted
unless the line is written, and no value can break the line: what has no text, or a text that nothing can carry, is shown
by its type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time
from enum import Enum
from itertools import islice
from typing import Any

from mycelia.errors import describe

__all__ = ["LogEvent", "as_plain", "as_text", "event"]


class LogEvent:
    """The message of a log record that is structured.

    As text it reads `flight_late tail_number=N123 delay_s=40`, so that any handler and any formatter (a user's own
    `LOGGING`) shows it whole, on one line whatever its values hold.
    """

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        name = self.name if self.name.isprintable() else repr(self.name)[1:-1]
        return " ".join((name, *(f"{key}={_quoted(value)}" for key, value in self.fields.items())))

    def __repr__(self) -> str:
        return f"<LogEvent {self}>"


def event(name: str, /, **fields: Any) -> LogEvent:
    """A log line's message: a name in snake case, and what it is about."""
    return LogEvent(name, fields)


def _quoted(value: Any) -> str:
    text = as_text(value)
    plain = text and text.isprintable() and not any(c.isspace() or c in "\"'=" for c in text)
    return text if plain else repr(text)


# --- values ----------------------------------------------------------------------------------------

_MAX_DEPTH = 4  # of lists and maps in one field; a line is for reading
_MAX_ITEMS = 1000  # of one of them


def as_text(value: object) -> str:
    """The text of any value: an error as `Type: text`, everything else as `str()` has it. Never raises.

    A lone surrogate, which no encoding carries, is written as `\\udc80`.
    """
    if isinstance(value, BaseException):
        return describe(value).removesuffix(": ")
    try:
        text = str.__str__(value) if isinstance(value, str) else str(value)
    except Exception as exc:  # noqa: BLE001  # `__str__` is the application's and may raise anything
        return f"{type(value).__name__} (no text: {type(exc).__name__})"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_plain(value: object, depth: int = _MAX_DEPTH) -> Any:
    """`value` as JSON can carry it: numbers, booleans, `None`, lists and maps as they are, all else as its text.

    Records are text too: the attributes of an object are nobody's business (a broker's address knows the password and
    shows itself without). Never raises.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Enum):
        return as_plain(value.value, depth)
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, int) and value.bit_length() < 64:  # more is not read alike everywhere
        return int.__int__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__float__(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if depth > 0:
        if isinstance(value, dict):
            items = islice(dict.items(value), _MAX_ITEMS)
            return {as_text(key): as_plain(part, depth - 1) for key, part in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [as_plain(part, depth - 1) for part in islice(value, _MAX_ITEMS)]
    return as_text(value)
