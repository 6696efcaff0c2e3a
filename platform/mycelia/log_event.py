"""A log line as data: a name and typed fields, `log.warning(event("consumer_lost", queue=name, retry_in_s=delay))`.

Values keep their types up to the formatter: JSON gets numbers and booleans, a console gets text. Nothing is formatted
unless the line is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LogEvent", "event"]


class LogEvent:
    """The message of a log record that is structured.

    As text it reads `flight_late tail_number=N123 delay_s=40`, so that any handler and any formatter (a user's own
    `LOGGING`) shows it whole.
    """

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields

    def __str__(self) -> str:
        return " ".join(
            (self.name, *(f"{key}={_text(value)}" for key, value in self.fields.items()))
        )


def event(name: str, /, **fields: Any) -> LogEvent:
    """A log line's message: a name in snake case, and what it is about."""
    return LogEvent(name, fields)


def _text(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(c.isspace() or c in "\"'=" for c in text) else text
