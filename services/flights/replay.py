"""Emits a replay's events in time, many in flight at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from mycelia.log_event import event
from services.flights.clock import iso
from services.flights.messages import Due, FlightEvent, flight_event

__all__ = ["Emit", "Replay"]

log = logging.getLogger(__name__)

Emit = Callable[[str, FlightEvent], Awaitable[Any]]
"""Publishes one event and returns when the broker has confirmed it."""


class Replay:
    """One run over `events`, which must be in event-time order.

    Args:
        run: the id that every event carries.
        events: what to emit.
        speed: seconds of event time for each second of the clock; 0 emits as fast as the broker confirms.
        in_flight: how many events may be waiting for their confirm. It is the bound that makes a slow broker slow the replay
            down instead of filling the memory.
    """

    def __init__(self, run: str, events: Sequence[Due], speed: float, in_flight: int) -> None:
        self.run = run
        self.speed = speed
        self.in_flight = in_flight
        self.state = "waiting"
        self.confirmed = 0
        self.error: str | None = None
        self._events = events
        self._emitted = 0
        self._latest: Due | None = None
        self._began: float | None = None
        self._ended: float | None = None

    def __len__(self) -> int:
        return len(self._events)

    async def play(self, emit: Emit) -> None:
        """Emits everything. Whether it came to its end, failed or was cancelled is in `status()`; a failing `emit` ends it."""
        self.state, self._began = "running", time.monotonic()
        try:
            await self._emit_all(emit)
            self.state = "finished"
        except asyncio.CancelledError:
            self.state = "stopped"
            raise
        except ExceptionGroup as group:
            first = group.exceptions[0]
            self.state, self.error = "failed", f"{type(first).__name__}: {first}"
            log.error(event("replay_failed", run=self.run, events=self.confirmed), exc_info=first)
        finally:
            self._ended = time.monotonic()

    async def _emit_all(self, emit: Emit) -> None:
        todo = iter(self._events)
        async with asyncio.TaskGroup() as emitters:
            for number in range(self.in_flight):
                emitters.create_task(self._emitter(todo, emit), name=f"flights:emit-{number}")

    async def _emitter(self, todo: Iterator[Due], emit: Emit) -> None:
        """One of the emitters that share `todo`. Each takes the next event, waits until it is due, and emits it.

        The events start out in order, since an emitter that takes an event publishes it without a pause in between.
        """
        for due in todo:
            if self.speed > 0 and (wait := self._due_at(due) - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self._emitted, self._latest = self._emitted + 1, due
            await emit(due.kind, flight_event(due, self.run, time.time()))
            self.confirmed += 1

    def _due_at(self, due: Due) -> float:
        """When `due` happens on the monotonic clock."""
        assert self._began is not None
        return self._began + (due.time - self._events[0].time).total_seconds() / self.speed

    def status(self) -> dict[str, Any]:
        """How far it is. `confirmed` events are with the broker; `state` says whether more will come."""
        began, ended = self._began, self._ended
        return {
            "run": self.run,
            "state": self.state,
            "speed": self.speed,
            "total": len(self._events),
            "confirmed": self.confirmed,
            "in_flight": self._emitted - self.confirmed,
            "event_time": iso(self._latest.time) if self._latest else None,
            "elapsed_s": 0.0 if began is None else round((ended or time.monotonic()) - began, 3),
            "error": self.error,
        }
