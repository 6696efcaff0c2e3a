"""Entries of a log that nobody has sent."""

from __future__ import annotations

from typing import Any

from mycelia.amqp import Delivery, Properties
from mycelia.logs import LogEntry

__all__ = ["entry_of"]


def entry_of(offset: int, values: list[Any]) -> LogEntry[Any]:
    """All of one key and time."""
    nobody: Any = None  # settles it
    count = len(values)
    return LogEntry(
        keys=["k"] * count,
        times=[0] * count,
        headers=[None] * count,
        values=values,
        indexes=range(count),
        partition=0,
        offset=offset,
        delivery=Delivery(nobody, "", 0, False, "", "in", Properties(headers={}), b""),
    )
