"""Appends a replay to the logs in time, with the weather of its hours, behind whatever the logs have already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

from mycelia import Log
from mycelia.amqp import Link
from services.flights.clock import iso
from services.flights.dataset import Row
from services.flights.messages import Due
from services.flights.records import (
    FORECAST_MS,
    HAPPENED,
    Happening,
    Observation,
    closing,
    happening,
    observation,
)
from services.flights.replay import Replay

__all__ = ["LogReplay", "end_of", "shift_behind"]

T = TypeVar("T")

DAY_MS: Final = 86_400_000
AT_ONCE: Final = 500
"""Records of one append, at full speed."""
LOOK_S: Final = 1.0
"""How long the end of a log is waited for: a log that has nothing does not say so."""


class Appends(Protocol):
    """Appends records to a log and returns when the broker has confirmed them: `LogWriter.append_many`."""

    def __call__(self, values: Sequence[Any], /) -> Awaitable[Any]: ...


class LogReplay(Replay):
    """One run over `events`, which must be in event-time order, appended to the logs.

    Args:
        weather: lines of the weather's table; those of the run's hours are appended, three hours ahead.
        happened: appends to the log of what happened.
        observed: appends to the weather's log.
        begin_behind: says where the log ends: milliseconds since 1970, or None.
    """

    def __init__(
        self,
        run: str,
        events: Sequence[Due],
        weather: Sequence[Row],
        speed: float,
        in_flight: int,
        *,
        happened: Appends,
        observed: Appends,
        begin_behind: Callable[[], Awaitable[int | None]],
    ) -> None:
        super().__init__(run, events, speed, in_flight)
        self._weather = _of_hours(weather, events)
        self._happened = happened
        self._observed = observed
        self._begin_behind = begin_behind
        self._failed: BaseException | None = None

    async def _emit_all(self, emit: object) -> None:
        if not self._events:
            return
        shift_ms = shift_behind(self._events, await self._begin_behind())
        self._began = time.monotonic()
        forecast = iter(self._weather)
        next_row = next(forecast, None)
        slots = asyncio.Semaphore(max(1, self.in_flight // AT_ONCE))
        at = 0
        async with asyncio.TaskGroup() as appends:
            while at < len(self._events):
                due = await self._some_due(at)
                rows: list[Observation] = []
                while next_row is not None and _known_at(next_row) <= due[-1].time:
                    rows.append(observation(next_row, shift_ms))
                    next_row = next(forecast, None)
                await slots.acquire()
                appends.create_task(self._append(due, rows, shift_ms, slots))
                at += len(due)
        await self._close(
            shift_ms, [observation(row, shift_ms) for row in (next_row, *forecast) if row]
        )

    async def _some_due(self, at: int) -> Sequence[Due]:
        """The events from `at` on that are due, at least one, when it is."""
        if self.speed <= 0:
            return self._events[at : at + AT_ONCE]
        if (wait := self._due_at(self._events[at]) - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        now, end = time.monotonic(), at + 1
        while end < min(len(self._events), at + AT_ONCE) and self._due_at(self._events[end]) <= now:
            end += 1
        return self._events[at:end]

    async def _append(
        self, due: Sequence[Due], rows: list[Observation], shift_ms: int, slots: asyncio.Semaphore
    ) -> None:
        """Append, and give the slot back. It is called in order, and appends before it first waits: so the order is kept."""
        now = time.time()
        records = [happening(one, self.run, shift_ms, now) for one in due]
        self._emitted, self._latest = self._emitted + len(due), due[-1]
        both = [self._happened(records)]
        if rows:
            both.append(self._observed(rows))
        await asyncio.gather(*both)
        self.confirmed += len(due)
        slots.release()

    async def _close(self, shift_ms: int, rows: list[Observation]) -> None:
        """The rest of the weather; and for each airport that nothing more will happen."""
        last = max(
            (happening(one, self.run, shift_ms, 0.0) for one in self._events),
            key=lambda one: max(one.at_ms, one.scheduled_ms),
        )
        origins = sorted({row["origin"] for row in self._weather} | {last.origin})
        now = time.time()
        closings = [closing(last, origin, now) for origin in origins]
        rows += [Observation(origin=one.origin, at_ms=one.at_ms) for one in closings]
        await asyncio.gather(self._happened(closings), self._observed(rows))


def shift_behind(events: Sequence[Due], end_ms: int | None) -> int:
    """By how many milliseconds, whole days, events are moved so that the first of them is behind `end_ms`; 0 if it is anyway."""
    first_ms = int(min(one.time for one in events).timestamp() * 1000)
    if end_ms is None or end_ms < first_ms:
        return 0
    return (end_ms - first_ms) // DAY_MS * DAY_MS + DAY_MS


async def end_of(link: Link, log: Log[Happening] = HAPPENED) -> int | None:
    """The latest time of what a log ends with; None if there is nothing."""
    found = await asyncio.gather(*(_end_of(link, log, number) for number in range(log.partitions)))
    return max((one for one in found if one is not None), default=None)


async def _end_of(link: Link, log: Log[Happening], partition: int) -> int | None:
    end: int | None = None
    async with log.reader(link, partition, "last") as reader:
        while (entry := await reader.take(timeout=LOOK_S)) is not None:
            for one in entry.values:
                end = max(end or 0, one.at_ms, one.scheduled_ms)
    return end


def _known_at(row: Row) -> datetime:
    return _hour(row) - timedelta(milliseconds=FORECAST_MS)


def _hour(row: Row) -> datetime:
    return datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00"))


def _of_hours(weather: Sequence[Row], events: Sequence[Due]) -> list[Row]:
    """The lines of the hours for which flights are scheduled, in their order."""
    times = [due.flight.scheduled_departure for due in events]
    if not times:
        return []
    first, last = iso(min(times) - timedelta(hours=1)), iso(max(times))
    return sorted(
        (row for row in weather if first < row["time_hour"] <= last),
        key=lambda row: row["time_hour"],
    )
