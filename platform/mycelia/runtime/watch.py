"""Looks after running workers: ends what takes too long, and says what is stuck.

One timer for a whole process, ten times a second while anything runs; a worker that ends in time costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from mycelia.call import Call
from mycelia.errors import HandlerTimeout
from mycelia.log_event import event
from mycelia.runtime.lane import Lane

__all__ = ["Watch"]

log = logging.getLogger("mycelia.runtime")

TICK = 0.1
"""Seconds between two looks; a worker is ended at most this much late."""
ABANDON_AFTER = 1.0
"""Seconds that a cancelled worker has to end, before its slot is taken back without it."""
FULL_FOR = 60.0
"""Seconds after which a lane without a free slot is said, and said again."""


class Watch:
    """Looks after the lanes of a process.

    Args:
        slow_after: seconds after which a running worker is said to be slow; 0 for never.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, slow_after: float) -> None:
        self._loop = loop
        self.slow_after = slow_after
        """May be changed at any time."""
        self._lanes: list[Lane] = []
        self._slow: set[Call] = set()
        """Calls that have been said to be slow, while they run."""
        self._full_since: dict[Lane, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._others: list[Callable[[], None]] = []

    def each_look(self, look: Callable[[], None]) -> Callable[[], None]:
        """Call `look()` at each look as well. Returns a function that ends it."""
        self._others.append(look)
        return lambda: self._others.remove(look) if look in self._others else None

    def add(self, lane: Lane) -> None:
        """Look after `lane`, which calls `wake()` when it starts a worker while nobody looks."""
        self._lanes.append(lane)
        lane.on_active = self.wake if self._timer is None else None

    def remove(self, lanes: list[Lane]) -> None:
        """Look after these no more; with the last one the timer ends."""
        self._lanes = [lane for lane in self._lanes if lane not in lanes]
        if not self._lanes and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_idle(self) -> bool:
        """Whether no timer runs."""
        return self._timer is None

    def wake(self) -> None:
        """Something runs."""
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)
            for lane in self._lanes:
                lane.on_active = None

    def _tick(self) -> None:
        self._timer = None
        self.look(time.monotonic())
        if any(lane.active for lane in self._lanes):
            self._timer = self._loop.call_later(TICK, self._tick)
        else:
            for lane in self._lanes:
                lane.on_active = self.wake

    def look(self, now: float) -> None:
        """One look at everything that runs; `now` on the monotonic clock."""
        running: set[Call] = set()
        for lane in self._lanes:
            for call in list(lane.running):  # one that is given up makes room, and another starts
                self._look_at(lane, call, now)
            running.update(lane.running)
            self._look_for_room(lane, now)
        self._slow &= running
        for look in self._others:
            look()

    def _look_at(self, lane: Lane, call: Call, now: float) -> None:
        ends_at = lane.ends_at(call)
        if ends_at is not None and ends_at <= now:
            if call.interruption is None:
                lane.interrupt(call, HandlerTimeout(call.target.name, ends_at - call.started_at))
            elif now - ends_at >= ABANDON_AFTER:
                lane.abandon(call)
            return
        age = now - call.started_at
        if self.slow_after and age >= self.slow_after and call not in self._slow:
            self._slow.add(call)
            log.warning(
                event(
                    "worker_slow",
                    call=call.target.name,
                    call_id=call.call_id,
                    running_s=round(age, 1),
                    workers=lane.active,
                    limit=lane.limit,
                )
            )

    def _look_for_room(self, lane: Lane, now: float) -> None:
        if lane.active < lane.limit:
            self._full_since.pop(lane, None)
            return
        since = self._full_since.setdefault(lane, now)
        if now - since >= FULL_FOR:
            self._full_since[lane] = now
            oldest = min((call.started_at for call in lane.running), default=now)
            log.warning(
                event(
                    "lane_full",
                    call=lane.target.name,
                    limit=lane.limit,
                    waiting=lane.waiting,
                    full_s=FULL_FOR,
                    oldest_worker_s=round(now - oldest, 1),
                )
            )
