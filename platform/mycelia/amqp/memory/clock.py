"""The clock of the memory broker: the running loop's, or one that a test drives by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "ClockTimer", "LoopClock", "ManualClock"]


class ClockTimer(Protocol):
    """A callback that is due at `when` (seconds, monotonic)."""

    @property
    def when(self) -> float: ...

    @property
    def alive(self) -> bool:
        """Whether it can still fire: a timer dies with its event loop."""
        ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Where the memory broker takes its time from. All times are seconds."""

    def monotonic(self) -> float: ...

    def wall(self) -> float:
        """Seconds since the epoch, for what the broker writes into headers and stream timestamps."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> ClockTimer: ...


class _LoopTimer:
    """Fires at `when` and never before: uvloop counts in whole milliseconds, and may wake up a little early."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, when: float, callback: Callable[[], None]
    ) -> None:
        self.when = when
        self._loop = loop
        self._callback = callback
        self._handle = self._sleep()

    @property
    def alive(self) -> bool:
        return not self._loop.is_closed()

    def cancel(self) -> None:
        self._handle.cancel()

    def _sleep(self) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, self.when - time.monotonic()), self._wake)

    def _wake(self) -> None:
        if time.monotonic() < self.when:
            self._handle = self._sleep()
        else:
            self._callback()


class LoopClock:
    """Real time. Timers run on the loop that is running when they are set.

    It reads `time.monotonic()` and not `loop.time()`, because a broker may outlive the loop it began on.
    """

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> ClockTimer:
        return _LoopTimer(asyncio.get_running_loop(), when, callback)


class _ManualTimer:
    alive = True

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Stands still until `advance()` is called. For tests of TTL, expiry and delays.

    Args:
        wall: the wall clock at the start, seconds since the epoch. 2013-01-01 UTC is arbitrary; it is when the
            flights of the examples begin.
    """

    def __init__(self, wall: float = 1_356_998_400.0) -> None:
        self._now = 0.0
        self._wall_at_zero = wall
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._sequence = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall_at_zero + self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> ClockTimer:
        timer = _ManualTimer(when, callback)
        heapq.heappush(self._timers, (when, next(self._sequence), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move time forward, running every timer that falls due, each at its own time and in order."""
        target = self._now + seconds
        while self._timers and self._timers[0][0] <= target:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if timer.callback is not None:
                timer.callback()
        self._now = target
