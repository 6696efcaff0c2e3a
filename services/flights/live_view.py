"""What the live page shows, kept once for all its viewers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

__all__ = ["LiveView"]


class LiveView:
    """Merges what `delays.changes()` reports, and gives each viewer what changed since its last look.

    A viewer that reads slowly skips states, it never queues them. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self.viewers = 0
        self.run: str | None = None
        self.version = 0
        """The newest version of the statistics merged: what to ask `delays.changes(since=…)` for."""
        self._head: dict[str, Any] = {}
        self._hours: dict[str, Mapping[str, Any]] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def fits(self, changes: Mapping[str, Any]) -> bool:
        """Whether `changes` continue what is here; if not, ask again from version 0 and `reset()`."""
        return bool(changes["run"] == self.run and changes["version"] >= self.version)

    def reset(self, run: str) -> None:
        """Starts anew, for another run or a restarted service."""
        self.run, self.version = run, 0
        self._hours.clear()

    def merge(self, changes: Mapping[str, Any], feed: Mapping[str, Any]) -> None:
        """Takes in a report and wakes the viewers if it says anything new. `feed`: the feed's status."""
        head = {key: value for key, value in changes.items() if key != "hours"} | {"feed": feed}
        self._hours.update(changes["hours"])
        self.version = changes["version"]
        if head != self._head:
            self._head = head
            self._wake()

    def close(self) -> None:
        """Ends all streams."""
        self._closed = True
        self._wake()

    async def stream(self) -> AsyncGenerator[dict[str, Any], None]:
        """The state as server-sent events: first whole, then what changed; `reset` says to forget the hours before."""
        self.viewers += 1
        run, seen = None, 0
        try:
            while not self._closed:
                changed = self._changed
                if self._head:
                    reset = run != self.run or seen > self.version
                    run, seen, since = self.run, self.version, 0 if reset else seen
                    yield {
                        "event": "state",
                        "data": {
                            **self._head,
                            "reset": reset,
                            "hours": {
                                hour: figures
                                for hour, figures in sorted(self._hours.items())
                                if figures["version"] > since
                            },
                        },
                    }
                await changed.wait()
        finally:
            self.viewers -= 1

    def _wake(self) -> None:
        """Wakes whoever waits now; who comes later waits for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()
