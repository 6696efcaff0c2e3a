"""A clock that a test moves: five minutes pass at once, and everything in between happens in its order.

Nothing has to be made for it: services, clients and `memory://` take their time from `time.monotonic()`, `time.time()` and
the event loop, which takes it from `time.monotonic()`. While a `DrivenClock` is open these three are ahead by what it has been
advanced. They do not stand still: a wait that nobody advances still ends, so a test cannot hang for want of a tick.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from types import TracebackType
from typing import Any

from mycelia.durations import Duration, seconds_of
from mycelia.errors import RuntimeStateError
from mycelia.testing.services import running

__all__ = ["DrivenClock"]

PATIENCE_S = 60.0
"""Real seconds that one `advance()` may take. Arbitrary; a timer that never ends its round must not hang the test."""

SETTLE_S = 1.0
"""Real seconds in which the loop, and the workers in threads, may come to rest before the clock moves on: they may wait for the
clock themselves, or never rest."""

MAX_STEPS = 5_000
"""In which one `advance()` goes its way at most: what falls due within one of them happens in one turn of the loop, in its order."""


class DrivenClock:
    """Time that a test moves forward.

        with DrivenClock() as clock:
            async with run_services(Reminder) as bed:
                await clock.advance("5m")

    What moves with it: `time.monotonic()` and `time.time()` (and their `_ns`) in the whole process; `loop.time()` of asyncio's own
    event loops, and so `asyncio.sleep()`, `asyncio.timeout()` and `loop.call_later()`. In Mycelia: timers, RPC and publishing
    deadlines, handler timeouts, pauses before another attempt, delays, reconnecting, and in `memory://` TTL, expiry of
    queues and timestamps.

    What does not: `datetime.now()`, `time.sleep()`, `time.perf_counter()`; names bound before by `from time import monotonic`;
    waits of threads (`threading.Event.wait(timeout)`); another process, RabbitMQ above all.

    Services start and stop inside its block. One at a time; not with uvloop, whose clock cannot be moved.
    """

    _open: DrivenClock | None = None

    def __init__(self) -> None:
        self._ahead = 0.0
        self._real: dict[str, Any] = {}

    @property
    def ahead(self) -> float:
        """By how many seconds it has been advanced."""
        return self._ahead

    def __enter__(self) -> DrivenClock:
        if DrivenClock._open is not None:
            raise RuntimeStateError(
                "another DrivenClock is open: time has one clock. Use that one."
            )
        DrivenClock._open = self
        for name in ("monotonic", "time", "monotonic_ns", "time_ns"):
            self._real[name] = getattr(time, name)
        monotonic, wall = self._real["monotonic"], self._real["time"]
        monotonic_ns, wall_ns = self._real["monotonic_ns"], self._real["time_ns"]
        changed: dict[str, Any] = {
            "monotonic": lambda: monotonic() + self._ahead,
            "time": lambda: wall() + self._ahead,
            "monotonic_ns": lambda: monotonic_ns() + int(self._ahead * 1e9),
            "time_ns": lambda: wall_ns() + int(self._ahead * 1e9),
        }
        for name, function in changed.items():
            setattr(time, name, function)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, function in self._real.items():
            setattr(time, name, function)
        DrivenClock._open = None
        try:
            loop: Any = asyncio.get_running_loop()
        except RuntimeError:
            return
        # What still waits was set by the clock that is gone: all of it by as much, so their order stays.
        for handle in getattr(loop, "_scheduled", ()):
            handle._when -= self._ahead

    async def advance(self, by: Duration | timedelta) -> None:
        """Let time pass: everything that falls due meanwhile happens, each at its own time, and what follows from it too.

        It returns when the event loop has nothing left to do at the new time. Before time moves on, workers in threads
        (those of `run_services()`) have a second to end. What falls due within a 5,000th of the whole is taken together:
        60 ms of five minutes, nine minutes of a month.

        Args:
            by: seconds; or `"200ms"`, `"5s"`, `"5m"`, `"2h"`, `"30d"`; or a `timedelta`.

        Raises:
            RuntimeStateError: the clock is not open, or the loop is not asyncio's own.
            AssertionError: so much falls due meanwhile that it takes a minute of real time; says what.
        """
        if DrivenClock._open is not self:
            raise RuntimeStateError("the DrivenClock is not open: `with DrivenClock() as clock:`.")
        loop: Any = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.BaseEventLoop):
            raise RuntimeStateError(
                f"{type(loop).__module__} has a clock of its own that cannot be moved. Run this test on asyncio's event loop."
            )
        slow_after, loop.slow_callback_duration = loop.slow_callback_duration, float("inf")
        try:
            given: object = by.total_seconds() if isinstance(by, timedelta) else by
            await self._advance(loop, seconds_of(given, "DrivenClock.advance()"))
        finally:
            loop.slow_callback_duration = slow_after

    async def _advance(self, loop: Any, seconds: float) -> None:
        target = time.monotonic() + seconds
        least = seconds / MAX_STEPS
        give_up = self._real["monotonic"]() + PATIENCE_S
        due: Counter[str] = Counter()
        while True:
            await self._settle(loop)
            handle = _next_of(loop)
            if handle is None or handle.when() > target:
                break
            due[_name_of(handle)] += 1
            now = time.monotonic()
            self._ahead += min(max(handle.when() - now, least), max(target - now, 0.0))
            if self._real["monotonic"]() > give_up:
                left = target - time.monotonic()
                often = ", ".join(f"{name} {count} times" for name, count in due.most_common(3))
                raise AssertionError(
                    f"after {PATIENCE_S:g} s of real time there are still {left:.3g} of {seconds:g} s to go: "
                    f"too much falls due meanwhile: {often}. Advance by less."
                )
        self._ahead += max(target - time.monotonic(), 0.0)
        await self._settle(loop)

    async def _settle(self, loop: Any) -> None:
        """Let the loop run until it has nothing to do at this time, and no thread works for it."""
        until = self._real["monotonic"]() + SETTLE_S
        idle = 0
        while idle < 2:  # what a thread or a socket brings shows only after a turn
            await asyncio.sleep(0)
            idle += 1
            is_busy = _busy_threads() > 0
            if (loop._ready or _is_due(loop) or is_busy) and self._real["monotonic"]() < until:
                idle = 0
                if is_busy:
                    await asyncio.sleep(0.001)


def _next_of(loop: Any) -> Any:
    """The timer of `loop` that is due first; `None` without any."""
    waiting = [handle for handle in loop._scheduled if not handle.cancelled()]
    return min(waiting, key=asyncio.TimerHandle.when, default=None)


def _is_due(loop: Any) -> bool:
    handle = _next_of(loop)
    return handle is not None and handle.when() <= time.monotonic()


def _name_of(handle: Any) -> str:
    callback = handle._callback
    owner = getattr(callback, "__self__", None)
    name = getattr(callback, "__qualname__", repr(callback))
    return f"{name} of {owner.get_name()}" if isinstance(owner, asyncio.Task) else str(name)


def _busy_threads() -> int:
    """Calls of `run_services()` that run in threads now."""
    busy = 0
    for runner in running:
        for container in runner.containers:
            threads = container.statistics().threads
            if threads is not None:
                busy += threads.busy - threads.abandoned
    return busy
