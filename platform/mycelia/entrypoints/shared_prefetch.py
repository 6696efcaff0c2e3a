"""How many requests a service may have from the broker, where several methods share one queue. Pure.

A queue is served in order, so a window full of requests for one slow method keeps every other method's requests at the
broker. While a method has nothing to do and the window is full, the window grows, up to a bound; when little of it is
used any more it shrinks to what it was: an instance must not hoard what others could work on.
"""

from __future__ import annotations

__all__ = ["SharedPrefetch"]

MAX_BYTES = 64 * 1024 * 1024
"""Bodies of requests that wait for a worker here, above which the window grows no more."""
SHRINK_AFTER = 50
"""Looks in a row (ten a second) with three quarters of the window unused, before it is halved."""


class SharedPrefetch:
    """The window of one consumer.

    Args:
        base: where it starts, and where it shrinks to.
        most: where it stops growing.
    """

    def __init__(self, base: int, most: int) -> None:
        self.base = base
        self.most = max(base, most)
        self.now = base
        self._unused_looks = 0

    def rebase(self, base: int, most: int) -> None:
        """Start and stop elsewhere from now on; what it has grown by stays, within the new bounds."""
        if base == self.base and max(base, most) == self.most:
            return
        self.now = base if self.now == self.base else self.now
        self.base, self.most = base, max(base, most)
        self.now = min(max(self.now, self.base), self.most)

    def look(self, *, unsettled: int, has_idle_method: bool, waiting_bytes: int) -> bool:
        """One look at how the window is used. Returns whether `now` has changed.

        Args:
            unsettled: deliveries that are here.
            has_idle_method: whether a method could begin a request, had it one.
            waiting_bytes: bodies of those that wait for a worker.
        """
        before = self.now
        if unsettled * 4 > self.now:
            self._unused_looks = 0
            if has_idle_method and unsettled >= self.now and waiting_bytes < MAX_BYTES:
                self.now = min(self.now * 2, self.most)
        elif self.now > self.base:
            self._unused_looks += 1
            if self._unused_looks >= SHRINK_AFTER:
                self._unused_looks = 0
                self.now = max(self.now // 2, self.base)
        return self.now != before
