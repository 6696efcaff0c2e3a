"""What every Python event handler does with an event: count it."""

from __future__ import annotations

import threading
import time

from benchmarks.peers.protocol import Event, say


class Tally:
    """Counts the events of each burst and reports when all of one were handled.

    Events may come in any order and on any thread. One delivered twice is counted twice: `count`
    in the report tells, as it then passes what was published or comes too early.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handled: dict[int, int] = {}
        self._totals: dict[int, int] = {}

    def add(self, event: Event) -> None:
        """Count one handled event."""
        burst = event["burst"]
        with self._lock:
            count = self._handled[burst] = self._handled.get(burst, 0) + 1
            if event["total"]:
                self._totals[burst] = event["total"]
            is_complete = count == self._totals.get(burst)
        if is_complete:
            say("handled", burst=burst, count=count, at=time.time())
