"""How many messages one consumer should have, from what has been seen of them. Pure: no I/O, time is an argument.

By Little's law what is here is a rate times a time. W workers that take S seconds each end W/S messages in a second, so to have what
they begin within the next `wait` seconds, beside what they have begun, takes

    W + W/S * wait

messages; with a list for each worker, lists, and one more than W at the least, as it takes time to fill. And no more than have room in so many bytes, by how large bodies usually are.

A change costs a round trip or two, and may send a few messages that are on their way back to their queue. So it is made where it
matters: by a quarter or more, not twice in `SETTLE_S`; downwards only after `LOWER_AFTER_S` of wanting less. Too many bytes are
lowered at once.
"""

from __future__ import annotations

import math
from typing import Final

from mycelia.durations import seconds_of
from mycelia.runtime import AdaptivePrefetch, ServiceTime

__all__ = ["PrefetchWindow"]

SETTLE_S: Final = 0.5
"""Seconds between two changes: the second should see what the first has done."""
LOWER_AFTER_S: Final = 2.0
"""Seconds for which less must be wanted all the time: one slow message is no reason."""
SHORTEST_S: Final = 0.00001
"""A worker's time below which it is not told apart from the clock's grain."""


class PrefetchWindow:
    """Of one consumer.

    Args:
        base: messages at first; for good, where nothing adapts.
        adaptive: how it adapts; `None`: it stays at `base`.
        max_bytes: bodies together, about; 0 for any.
        each: messages that one worker has.
    """

    def __init__(
        self,
        base: int,
        adaptive: AdaptivePrefetch | None,
        *,
        max_bytes: int,
        each: int = 1,
    ) -> None:
        self.base = base
        self.max_bytes = max_bytes
        self.now = base
        self._adaptive = adaptive
        self._wait_s = 0.0 if adaptive is None else seconds_of(adaptive.wait)
        self._each = each
        self._took = ServiceTime()
        self._size = ServiceTime()  # of bodies: any measure has a usual value
        self._changed_at = -math.inf
        self._less_since: float | None = None

    @property
    def adapts(self) -> bool:
        """Whether how long workers take is of interest."""
        return self._adaptive is not None

    def took(self, seconds: float) -> None:
        """A worker has ended."""
        self._took.add(max(seconds, SHORTEST_S))

    def came(self, size: int) -> None:
        """A message of so many bytes has come."""
        self._size.add(size)

    def rebase(self, base: int) -> int:
        """Another `base`; where nothing adapts, from now on. Returns `now`."""
        self.base = base
        if self._adaptive is None:
            self.now = self._within_bytes(base)
        return self.now

    def wanted(self, workers: int, stalled_s: float = 0.0) -> int:
        """What would be right. See `look()`."""
        return self._within_bytes(self._for_work(workers, stalled_s))

    def _for_work(self, workers: int, stalled_s: float) -> int:
        adaptive = self._adaptive
        if adaptive is None:
            return self.base
        if not self._took.mean:
            return self.base  # that none has ended yet tells nothing of how soon one will
        took = max(self._took.mean, stalled_s)
        working = self._each * workers
        ahead = max(working * self._wait_s / took, self._each)
        return max(math.ceil(min(working + ahead, adaptive.most)), adaptive.least)

    def _within_bytes(self, count: int) -> int:
        usual = self._size.usual
        if not self.max_bytes or not usual:
            return count
        return max(1, min(count, int(self.max_bytes / usual)))

    def look(self, now: float, workers: int, stalled_s: float = 0.0) -> int:
        """How many it should be from now on; to be asked some times a second.

        Args:
            now: the time.
            workers: that may run at once.
            stalled_s: for how long all of them have run without an end, so that what is known of ended ones tells too little.
        """
        wanted = self.wanted(workers, stalled_s)
        if wanted >= self.now:
            self._less_since = None
        elif self._less_since is None:
            self._less_since = now
        if self._within_bytes(self.now) * 4 < self.now * 3:
            self._change(wanted, now)  # memory does not wait
        elif now - self._changed_at < SETTLE_S:
            pass
        elif (
            wanted * 4 >= self.now * 5
            or (wanted > self.now and wanted == self._limit)
            or (
                self._less_since is not None
                and now - self._less_since >= LOWER_AFTER_S
                and wanted * 4 <= self.now * 3
            )
        ):
            self._change(wanted, now)
        return self.now

    @property
    def _limit(self) -> int:
        return self.base if self._adaptive is None else self._adaptive.most

    def _change(self, wanted: int, now: float) -> None:
        self.now = wanted
        self._changed_at = now
        self._less_since = None
