"""The slots that all lanes of a service share, and whose turn is next."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ServiceSlots", "Starting"]


class Starting(Protocol):
    """A lane, as far as its turn goes."""

    def start_next(self) -> bool:
        """Start the first waiting call, if there is one and a slot for it. Returns whether another could be started."""
        ...


class ServiceSlots:
    """How many workers a service may run at once over all of its entrypoints (`max_workers`; `None` for any number).

    Also the one place where waiting calls are started: in a loop, because a worker that never waits ends inside the
    call that starts it, and starting the next one from there would nest them all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.active = 0
        self.waiting: dict[Starting, None] = {}
        """Lanes with calls that wait for a slot, in the order in which they began to wait."""
        self._is_pumping = False

    @property
    def has_room(self) -> bool:
        return self.limit is None or self.active < self.limit

    def wait(self, lane: Starting) -> None:
        self.waiting[lane] = None

    def pump(self) -> None:
        """Start calls of the waiting lanes, one of each in turn, so that a busy entrypoint cannot starve a quiet one."""
        if self._is_pumping:
            return
        self._is_pumping = True
        waiting = self.waiting
        try:
            while waiting and self.has_room:
                lane = next(iter(waiting))
                del waiting[lane]
                if lane.start_next():
                    waiting[lane] = None
        finally:
            self._is_pumping = False
