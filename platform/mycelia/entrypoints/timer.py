"""`@timer`: a method that runs at a fixed pace, in every instance of its service.

Ticks lie at `start + k * interval` on the monotonic clock, so the pace does not drift with how long the method takes.
Workers never overlap: a tick that comes due while the previous worker still runs is skipped and counted, and the next
one is on the grid again. Nameko's timer (nameko/timer.py:16-97) makes up for late ticks in a burst instead.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Unpack

from mycelia.call import Call, CallKind, Outcome, Settlement
from mycelia.entrypoints.statistics import TimerStatistics
from mycelia.log_event import event
from mycelia.runtime import Container, Entrypoint, EntrypointArguments, Lane, decorator_of

__all__ = ["Timer", "next_tick", "timer"]

log = logging.getLogger("mycelia.entrypoints")


def next_tick(started: float, interval: float, now: float, last: int = 0) -> int:
    """The number of the next tick: the first after `last` that is not yet due at `now`.

    Tick `k` is due at `started + k * interval`. `last` matters because event loops wake up a moment early: the tick
    that has just run must not run again.

    Args:
        started: when the timer started, in seconds.
        interval: seconds between ticks, above 0.
        now: the time, on the same clock as `started`.
        last: the number of the latest tick that ran; 0 before the first.
    """
    number = math.floor((now - started) / interval) + 1
    while started + number * interval <= now:  # the division may have rounded down
        number += 1
    return max(number, last + 1)


class Timer(Entrypoint):
    """The entrypoint behind `@timer`.

    Args:
        interval: seconds from tick to tick, a finite number; 0 runs the method again as soon as it has ended.
        eager: whether to run once as soon as the service has started, instead of after the first interval.
        options: those of every entrypoint (`Entrypoint`).

    Raises:
        ValueError: `interval` is not a number of at least 0.
    """

    kind = CallKind.TIMER
    container: Container

    def __init__(
        self, interval: float, eager: bool = False, **options: Unpack[EntrypointArguments]
    ) -> None:
        super().__init__(**options)
        if type(interval) not in (int, float) or not 0 <= interval < math.inf:
            raise ValueError(
                f"interval={interval!r}: expected seconds between ticks, a number of at least 0."
            )
        self.interval = float(interval)
        self.eager = eager
        self.ticks = 0
        """Workers started so far."""
        self.skipped = 0
        """Ticks that came due while a worker ran, and were left out."""
        self._number = 0
        self._started = 0.0
        self._lane: Lane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lane = self.container.make_lane(self)
        self._started = self._loop.time()
        if self.eager:
            self._run()
        else:
            self._schedule(1)

    def stop(self) -> None:
        """No more ticks. A worker that runs is left to the container's grace period. Idempotent."""
        self._stopped = True
        if self._handle is not None:
            self._handle.cancel()
        if self._lane is not None:
            self._lane.take_backlog()

    def kill(self) -> None:
        self.stop()

    def statistics(self) -> TimerStatistics:
        return TimerStatistics(ticks=self.ticks, skipped=self.skipped)

    def _schedule(self, number: int) -> None:
        assert self._loop is not None
        self._number = number
        self._handle = self._loop.call_at(self._started + number * self.interval, self._run)

    def _run(self) -> None:
        assert self._lane is not None
        self.ticks += 1
        self._lane.submit(
            Call(
                self.target,
                parent_calls_tracked=self.container.settings.parent_calls_tracked,
            )
        )

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        assert self._loop is not None
        if self._stopped:
            return
        if not self.interval:
            self._schedule(self._number + 1)
            return
        number = next_tick(self._started, self.interval, self._loop.time(), self._number)
        skipped = number - self._number - 1
        if skipped:
            self.skipped += skipped
            log.debug(
                event(
                    "ticks_skipped",
                    call=call.target.name,
                    ticks=skipped,
                    interval_s=self.interval,
                )
            )
        self._schedule(number)


timer = decorator_of(
    "timer",
    Timer,
    "Run a method every so many seconds: `@timer(60)` or `@timer(interval=0.5, eager=True)`.",
)
