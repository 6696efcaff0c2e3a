"""What entrypoints count, and what they share."""

from __future__ import annotations

import msgspec

__all__ = ["ConsumerStatistics", "DeadLetterStatistics", "TimerStatistics"]


class ConsumerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Where the consumer of one queue stands: a service's requests, or the messages of one handler."""

    queue: str
    is_consuming: bool
    """Whether the broker has it as a consumer now."""
    is_paused: bool
    """Whether it has been paused on purpose, so that it does not consume."""
    prefetch: int
    """Messages that the broker may have outstanding here."""
    unsettled: int
    """Messages that are here: they wait, run, or are on their way elsewhere."""
    put_back: int
    """Messages on their way back to the broker, for another attempt."""
    retried: int
    """Messages that the broker has had for another attempt, of all time."""
    remembered: int
    """Messages whose channel was lost while they were here, kept so that they do not run twice."""
    kill_switch: str | None = None
    """`consuming`, `stopped` because the handler fails too often, or `probing`; `None` without a kill switch."""
    kill_switch_stops: int = 0
    """How often it has stopped the handler."""


class DeadLetterStatistics(msgspec.Struct, frozen=True, kw_only=True):
    buried: int
    """Messages moved to a dead-letter queue."""
    under_way: int
    """Messages that the broker has not taken there yet."""


class TimerStatistics(msgspec.Struct, frozen=True, kw_only=True):
    ticks: int
    """Ticks begun."""
    skipped: int
    """Ticks that came due while a worker ran, or nobody was there, and were left out."""
    retried: int = 0
    """Workers started because a tick had failed."""
    holds_lease: bool | None = None
    """Whether this instance runs the ticks of its fleet; `None`: every instance does."""
