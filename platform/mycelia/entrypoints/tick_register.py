"""Which tick the fleet has come to, as the messages of one queue say it. Pure; the rules of `once_per_fleet=True`.

The queue has a single active consumer: the **holder** of the timer. All others wait. Its messages are entries:

    since   from `tick` on there is something to do. What a new timer begins with, and who waits repeats
    claim   the writer wants to run `tick`
    done    `tick` has been run, or has begun
    again   the writer, who has begun `tick`, wants to try it once more

Whoever is given entries keeps the greatest tick unacknowledged, and acknowledges the rest. So it comes to the next holder,
when the broker takes it back from this one: its connection was cut, its process killed, its heartbeat has been missed.

**A tick begins only when its claim has come back through the queue**, to the one who wrote it, and for the first time. It comes
to whoever holds the timer *then*: someone who was paused, and does not know that the timer has moved on, never sees his claim
again. The new holder, who finds it, acknowledges it: its writer has not begun. A claim that comes with the mark
of redelivery has been somebody's before, and may have begun: it counts as done. The queue is in order, what was redelivered
comes first, and one consumer sees it all; so no tick begins twice.

A tick that failed is **tried again** by who began it, and each time only when an `again` of its has come back like a claim,
and no other tick has begun since. It is never kept: what is done stays as it is.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

__all__ = ["TickEntry", "TickRegister", "Verdict", "read_tick_entry"]

TOO_FAR_AHEAD_MS = 3 * 3600 * 1000
"""Of this clock: an entry that would keep the timer silent for longer was written by a clock that was wrong."""


class TickEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the queue, as JSON; times in milliseconds since the epoch."""

    kind: Literal["since", "claim", "done", "again"]
    tick_ms: int
    claim: str = ""
    """Of a claim, and of an `again`: an id that no other has."""


def read_tick_entry(body: bytes) -> TickEntry | None:
    """The entry of a message; `None` if it is none."""
    try:
        return msgspec.json.decode(body, type=TickEntry)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None


class Verdict(Enum):
    """What becomes of an entry that was delivered."""

    DROP = "drop"
    """Acknowledge it: it says nothing new."""
    KEEP = "keep"
    """Keep it unacknowledged, and acknowledge what was kept before."""
    RUN = "run"
    """As `KEEP`, and its tick begins."""
    RUN_AGAIN = "run again"
    """As `DROP`, and its tick is tried again."""


class TickRegister:
    """What one consumer of the queue knows. When its channel is lost it forgets what it held; not what it knows."""

    def __init__(self) -> None:
        self.last_ms: int | None = None
        """The greatest tick that is known to be done; `None`: not known."""
        self.since_ms: int | None = None
        """From when on there is something to do, as long as nothing else is known; `None`: nobody has said."""
        self.is_holder = False
        """Whether an entry is kept that says what is done: this consumer holds the timer."""
        self._claim = ""

    def claim(self, claim: str) -> None:
        """From now on this claim is the one that is waited for; an empty one is none."""
        self._claim = claim

    def lost(self) -> None:
        """The channel is gone, and what was kept with it. A claim of before counts no more."""
        self.is_holder = False
        self.since_ms = None
        self._claim = ""

    def read(self, entry: TickEntry, *, redelivered: bool, now_ms: int) -> Verdict:
        """Take note of an entry."""
        if entry.tick_ms - now_ms > TOO_FAR_AHEAD_MS:
            return Verdict.DROP
        if entry.kind == "since":
            return self._read_since(entry)
        last = self.last_ms
        if entry.kind == "again":
            return self._read_again(entry, redelivered)
        if entry.kind == "claim" and not redelivered:
            if not self._is_own(entry):
                return Verdict.DROP
            self._claim = ""
            if last is not None and entry.tick_ms <= last:
                return Verdict.DROP
            self.last_ms = entry.tick_ms
            return Verdict.RUN
        if self.is_holder and last is not None and entry.tick_ms < last:
            return Verdict.DROP
        self.last_ms = entry.tick_ms if last is None else max(last, entry.tick_ms)
        self.is_holder = True
        return Verdict.KEEP

    def _is_own(self, entry: TickEntry) -> bool:
        """Whether it is the claim that is waited for, by one who holds the timer."""
        return self.is_holder and bool(self._claim) and entry.claim == self._claim

    def _read_again(self, entry: TickEntry, redelivered: bool) -> Verdict:
        if redelivered or not self._is_own(entry):
            return Verdict.DROP
        self._claim = ""
        return Verdict.RUN_AGAIN if entry.tick_ms == self.last_ms else Verdict.DROP

    def _read_since(self, entry: TickEntry) -> Verdict:
        if self.is_holder or self.since_ms is not None:
            return Verdict.DROP
        self.since_ms = entry.tick_ms
        return Verdict.KEEP
