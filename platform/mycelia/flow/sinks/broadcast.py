"""What leaves a flow, for all who look on in this process: the other end of server-sent events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar

from mycelia.errors import ConfigError
from mycelia.flow.sinks.sink import FlowSink, SinkPlace, unpack_records
from mycelia.runtime import Container

__all__ = ["Broadcast"]

T = TypeVar("T")


class _Viewer(Generic[T]):
    __slots__ = ("arrived", "waiting")

    def __init__(self, begin: deque[T], buffer: int) -> None:
        self.waiting: deque[T] = deque(begin, maxlen=buffer)
        self.arrived = asyncio.Event()


class Broadcast(FlowSink[T]):
    """Shows what leaves a flow to whoever follows. A class attribute of a service:

        class Delays:
            name = "delays"
            live: Broadcast[HourlyDelay] = Broadcast()

            @flow(DEPARTED)
            def hourly(self, flights: Stream[Departed]) -> FlowOutput:
                return hourly(flights).to(self.live)

            @http("GET", "/live")
            async def show(self, request: Request) -> ServerSentEvents:
                return ServerSentEvents(self.live.follow())

    Nobody who follows holds the flow up: who is slow loses the oldest of what waits for him. It shows what leaves in *this* process: with several
    instances, `emit()` events, and have an event handler with `handler_type="broadcast"` call `show()`.

    Args:
        buffer: records that wait for one follower at most.
        keep: of how many records, the last, who comes later begins with.
    """

    def __init__(self, name: str = "broadcast", *, buffer: int = 1000, keep: int = 0) -> None:
        if type(buffer) is not int or buffer < 1 or type(keep) is not int or keep < 0:
            raise ConfigError(
                f"Broadcast(buffer={buffer!r:.60}, keep={keep!r:.60}): expected numbers, of buffer from 1."
            )
        self.name = name
        self._buffer = buffer
        self._kept: deque[T] = deque(maxlen=keep)
        self._viewers: set[_Viewer[T]] = set()
        self._is_closed = False
        self.missed = 0
        """Records that followers have not seen, because they were slow."""

    @property
    def viewers(self) -> int:
        """How many follow."""
        return len(self._viewers)

    async def open(self, container: Container) -> None:
        self._is_closed = False

    def show(self, value: T) -> None:
        """Show it to all. On the event loop."""
        self._kept.append(value)
        for viewer in self._viewers:
            if len(viewer.waiting) == self._buffer:
                self.missed += 1
            viewer.waiting.append(value)
            viewer.arrived.set()

    async def deliver(self, body: bytes, place: SinkPlace, done: set[str]) -> None:
        for record in unpack_records(body):
            self.show(record.value)

    async def follow(self) -> AsyncGenerator[T, None]:
        """What comes from now on, and before it what is kept; until the service ends."""
        viewer: _Viewer[Any] = _Viewer(self._kept, self._buffer)
        self._viewers.add(viewer)
        try:
            while not self._is_closed:
                while viewer.waiting:
                    yield viewer.waiting.popleft()
                viewer.arrived.clear()
                await viewer.arrived.wait()
        finally:
            self._viewers.discard(viewer)

    async def aclose(self) -> None:
        self._is_closed = True
        for viewer in self._viewers:
            viewer.arrived.set()
