"""When a timer ticks, as arithmetic: every so many seconds, or by a cron expression in a time zone.

Times are seconds since the epoch, or on a monotonic clock where a grid is laid on one. Pure: nothing here reads a clock.

**Daylight saving.** An expression that names minute and hour (`30 2 * * *`; neither field begins with `*`) means a time of the
day and comes once each day, as in Debian's cron: where the clocks skip it, at the moment after the gap, and where they go
through it twice, the first time. Any other (`*/15 * * * *`) means a distance in time and is not touched: it comes in both of the
doubled hours, and in none of a skipped one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from heapq import heappop, heappush
from typing import Any, Protocol

__all__ = ["CronSchedule", "Grid", "Schedule"]


class Schedule(Protocol):
    """An ordered row of ticks, without an end."""

    def after(self, time: float) -> float:
        """The first tick after `time`."""
        ...

    def latest(self, time: float) -> float | None:
        """The last tick that is due at `time`; `None` before the first."""
        ...

    def earlier(self, tick: float) -> float | None:
        """The tick before `tick`; `None` if that was the first."""
        ...

    def count(self, first: float, last: float) -> int:
        """How many ticks lie between two times, themselves not counted; of very many, not all are."""
        ...


class Grid:
    """Ticks at `start + k * interval`, from `k = 1` on.

    Args:
        start: on whichever clock the times are.
        interval: seconds, above 0.
    """

    def __init__(self, start: float, interval: float) -> None:
        self._start = start
        self._interval = interval

    def after(self, time: float) -> float:
        return self._at(max(self._number(time), 0) + 1)

    def latest(self, time: float) -> float | None:
        number = self._number(time)
        return self._at(number) if number >= 1 else None

    def earlier(self, tick: float) -> float | None:
        number = self._number(tick) - 1
        return self._at(number) if number >= 1 else None

    def count(self, first: float, last: float) -> int:
        due = self._number(last)
        if self._at(due) == last:
            due -= 1
        return max(due - max(self._number(first), 0), 0)

    def _at(self, number: int) -> float:
        return self._start + number * self._interval

    def _number(self, time: float) -> int:
        """Of the last tick due at `time`. Of a tick it is that tick's own, whatever the division rounds to."""
        number = math.floor((time - self._start) / self._interval)
        while self._at(number + 1) <= time:
            number += 1
        while self._at(number) > time:
            number -= 1
        return number


class CronSchedule:
    """The ticks of a cron expression, on the wall clock.

    Args:
        expression: five fields (minute, hour, day of the month, month, day of the week), or six, with seconds before them.
        zone: where the expression's hours are those of the day.

    Raises:
        ValueError: it is no cron expression, or one for a day that never comes.
        ImportError: cronsim is not installed (`mycelia[cron]`).
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        from cronsim import CronSim, CronSimError

        self._make = CronSim
        self._expression = expression
        self._zone = zone
        try:
            CronSim(expression, datetime(2000, 1, 1))  # noqa: DTZ001  the time on a clock, in whichever zone
            fields = expression.split()
            self._is_time_of_day = not any(field.startswith("*") for field in fields[-5:-3])
            self.after(0.0)
        except CronSimError as exc:
            raise ValueError(f"cron={expression!r} is no cron expression: {exc}.") from None
        except _NeverComes:
            raise ValueError(f"cron={expression!r} is for a day that never comes.") from None

    def after(self, time: float) -> float:
        for tick in self._from(time, reverse=False):
            if tick > time:
                return tick
        raise _NeverComes

    def latest(self, time: float) -> float | None:
        for tick in self._from(time, reverse=True):
            if tick <= time:
                return tick
        return None

    def earlier(self, tick: float) -> float | None:
        for earlier in self._from(tick, reverse=True):
            if earlier < tick:
                return earlier
        return None

    def count(self, first: float, last: float) -> int:
        counted = 0
        while counted < COUNTED_AT_MOST and (first := self.after(first)) < last:
            counted += 1
        return counted

    def _from(self, time: float, *, reverse: bool) -> Iterator[float]:
        """The ticks around `time` and on from there; the first ones may lie on the other side of it."""
        here = datetime.fromtimestamp(math.floor(time), self._zone)
        # Where the clocks are set back, what they have shown the first time lies ahead of them again.
        beyond = AROUND if self._is_time_of_day else _shift_around(here)
        # The row does not tick at its start, so that lies a second beyond.
        beyond = beyond + timedelta(seconds=1) if reverse else -beyond
        shown = self._ticks(here.replace(tzinfo=None, fold=0) + beyond, reverse)
        if self._is_time_of_day:
            return (_moment(one, self._zone).timestamp() for one in shown)
        return self._all_moments(shown, reverse)

    def _all_moments(self, shown: Iterator[datetime], reverse: bool) -> Iterator[float]:
        """Whenever a clock shows these, in the order of time.

        cronsim's own way with zones is to go on in UTC: where clocks are set back by half an hour, it loses a tick.
        """
        direction = -1 if reverse else 1
        waiting: list[float] = []
        for one in shown:
            moments = _moments(one, self._zone)
            for moment in moments:
                heappush(waiting, direction * moment)
            if moments:  # no later one shows a moment on this side of its first
                edge = moments[-1] if reverse else moments[0]
                while waiting and waiting[0] <= direction * edge:
                    yield direction * heappop(waiting)

    def _ticks(self, start: datetime, reverse: bool) -> Iterator[datetime]:
        ticks: Any = self._make(self._expression, start, reverse=reverse)
        return iter(ticks)


COUNTED_AT_MOST = 1000
"""A count of what was missed is for a log line; beyond that it says only that they were many."""

AROUND = timedelta(hours=2)
"""More than a clock is set back by in one go: an hour, wherever it happens today."""


class _NeverComes(Exception):
    """No tick within 50 years."""


def _shift_around(here: datetime) -> timedelta:
    """By how much the clocks are changed around then, if they are."""
    before, after = (here - AROUND).utcoffset(), (here + AROUND).utcoffset()
    assert before is not None
    assert after is not None
    return abs(after - before)


def _moments(shown: datetime, zone: tzinfo) -> list[float]:
    """When a clock in `zone` shows this: nearly always once, twice where it is set back, and never in a gap."""
    first = shown.replace(tzinfo=zone)
    second = first.replace(fold=1)
    before, after = first.utcoffset(), second.utcoffset()
    if before == after:
        return [first.timestamp()]
    assert before is not None
    assert after is not None
    return [first.timestamp(), second.timestamp()] if before > after else []


def _moment(shown: datetime, zone: tzinfo) -> datetime:
    """When a clock in `zone` shows this: the first time, if twice, and the moment after the gap, if never."""
    moment = shown.replace(tzinfo=zone)
    while moment.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != shown:  # skipped
        shown = shown.replace(second=0) + timedelta(minutes=1)
        moment = shown.replace(tzinfo=zone)
    return moment
