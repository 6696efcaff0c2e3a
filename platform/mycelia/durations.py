"""Durations as they are written in code and configuration: seconds, or text such as "500ms" and "5m". Pure."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Final

from mycelia.errors import ConfigError

__all__ = ["Duration", "duration_text", "seconds_of", "seconds_until"]

Duration = float | str
"""Seconds, or a number with its unit: "500ms", "1.5s", "5m", "2h", "30d"."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TEXT: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")


def seconds_of(value: object, what: str = "duration") -> float:
    """The seconds of a `Duration`; 0 or more.

    Args:
        what: whose duration it is, for the error's text.

    Raises:
        ConfigError: neither seconds nor such a text, or less than nothing, or without end.
    """
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        if found is not None:
            return float(found[1]) * _UNITS[found[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:  # a whole number beyond all floats
            seconds = math.inf
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    raise ConfigError(
        f"{what}: {value!r:.60} is no duration. Write seconds (2.5), or a number with ms, s, m, h or d: "
        '"500ms", "1s", "5m", "2h", "30d".'
    )


def duration_text(seconds: float) -> str:
    """Seconds as a person writes them, in the largest unit that leaves no fraction: `5m`, `1.5s`, `250ms`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _UNITS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"


def seconds_until(when: object, now: float) -> float:
    """Seconds from `now` (since the epoch) until a moment; 0 if that has passed.

    Raises:
        ConfigError: the moment is in no time zone, or no `datetime`.
    """
    if not isinstance(when, datetime) or when.utcoffset() is None:
        raise ConfigError(
            f'{when!r:.60} is no moment in a time zone. Write datetime(…, tzinfo=UTC), or tzinfo=ZoneInfo("Europe/Berlin").'
        )
    return max(when.timestamp() - now, 0.0)
