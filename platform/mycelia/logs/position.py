"""Where a reader of a partition stands, as data that a checkpoint can keep. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from mycelia.errors import ConfigError

__all__ = ["LogPosition", "StartAt", "checked_start"]


class LogPosition(msgspec.Struct, frozen=True, kw_only=True):
    """Behind the last entry that a reader has handed out.

    Plain data: JSON and msgpack carry it (`msgspec.json.encode()`, `msgspec.to_builtins()`).
    """

    offset: int
    """Of the next entry."""
    seen: dict[str, list[Any]] = {}
    """Which batches of each producer have come: `{producer: [highest sequence, missing ones below it]}`. Without it, a batch that was
    sent twice, once before and once behind `offset`, would be read twice."""
    last: int | None = None
    """What the entry before `offset` is known by (`reader.mark_of`); `None`: by nothing. Where another has its place, the log has been made anew."""


StartAt = str | int | datetime | LogPosition
"""`"first"`, `"last"` (the last chunk), `"next"` (what is appended from now on), the offset of an entry, a time (whole seconds; may begin
a little earlier, as the broker keeps the time of chunks), or where another reader stood."""


def checked_start(start: StartAt, what: str) -> StartAt:
    """The start, if it is one. What is before 1970, for which AMQP has no time, is the first.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(start, LogPosition) or start in ("first", "last", "next"):
        return start
    if type(start) is int and start >= 0:
        return start
    if isinstance(start, datetime) and start.utcoffset() is not None:
        return start if start.timestamp() >= 0 else "first"
    raise ConfigError(
        f'{what}: start={start!r:.80}; expected "first", "last", "next", an offset from 0, a datetime in a time zone or a position.'
    )
