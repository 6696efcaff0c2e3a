"""Which tick to run now, and when to look again: what a timer decides. Pure.

A tick is **in time** if the timer sees it due within `ON_TIME` seconds; else, or when it came due while the method was running,
it has been **missed**, and the choice of `missed=` decides:

    skip    left out: the next one is as scheduled
    once    run once for all of them, as soon as that can be
    all     each is run, oldest first, one after the other; the newest `at_most`, if they are more
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from mycelia.entrypoints.schedules import Schedule

__all__ = ["ON_TIME", "Agenda", "Due", "Missed"]

Missed = Literal["skip", "once", "all"]

ON_TIME = 30.0
"""Seconds for which a tick that could not be run at once is not missed: above the time in which another instance takes over."""

CLOCK_SET_BACK = 3 * 3600.0
"""Seconds by which the wall clock may go back and the ticks in between not come again. Further back it has been set right, and
they are as new. As in cron(8)."""


class Due(msgspec.Struct, frozen=True):
    """What is to be done.

    Attributes:
        tick: run this one; `None`: none is due.
        left_out: ticks that came due since the last look and will not be run.
        look_at: when to look again; with a tick, after its worker has ended.
    """

    tick: float | None
    left_out: int
    look_at: float


class Agenda:
    """The ticks of one timer.

    Args:
        schedule: when it ticks.
        missed: what becomes of those that could not be run in their time.
        last: the time up to which all is done: when it started, or the last tick that was run.
        at_most: how many missed ticks are run with `missed="all"`.
        on_time: seconds after which a due tick is missed.
    """

    def __init__(
        self,
        schedule: Schedule,
        missed: Missed,
        last: float,
        *,
        at_most: int = 100,
        on_time: float = ON_TIME,
    ) -> None:
        self.schedule = schedule
        self.missed = missed
        self.last = last
        self._at_most = at_most
        self._on_time = on_time

    def look(self, now: float) -> Due:
        """Decide. Changes nothing but to leave ticks out: a due tick is due until `done()`."""
        if self.last - now > CLOCK_SET_BACK:
            self.last = now
        due = self.schedule.latest(now)
        if due is None or due <= self.last:
            return Due(None, 0, self.schedule.after(max(self.last, now)))
        if self.missed == "all":
            due = self._oldest(due)
        elif self.missed == "skip" and now - due > self._on_time:
            left_out = self._count(due) + 1
            self.last = due
            return Due(None, left_out, self.schedule.after(now))
        return Due(due, self._count(due), self.schedule.after(due))

    def done(self, tick: float) -> None:
        """This one has been run, or has begun and must not begin again."""
        self.last = max(self.last, tick)

    def worker_ended(self, now: float) -> int:
        """The method has ended. Returns how many ticks came due meanwhile, where those are left out."""
        if self.missed != "skip":
            return 0
        due = self.schedule.latest(now)
        if due is None or due <= self.last:
            return 0
        left_out = self._count(due) + 1
        self.last = due
        return left_out

    def may_try_again(self, at: float) -> bool:
        """Whether the last tick, which has failed, may be tried again at `at`.

        With `all`, in any case: the others wait for it. Else only as long as none is due by then: it stands for the one that failed.
        """
        return self.missed == "all" or self.schedule.after(self.last) > at

    def _count(self, due: float) -> int:
        return self.schedule.count(self.last, due)

    def _oldest(self, due: float) -> float:
        for _ in range(self._at_most - 1):
            earlier = self.schedule.earlier(due)
            if earlier is None or earlier <= self.last:
                break
            due = earlier
        return due


MISSED: tuple[Missed, ...] = get_args(Missed)
