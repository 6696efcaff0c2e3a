"""`@timer`: a method that runs at a fixed pace or by the calendar, in every instance of its service or in one of them.

    @timer(60)                                                every minute from the start on
    @timer(cron="0 6 * * *", timezone="Europe/Berlin")        at six in the morning
    @timer(cron="0 6 * * *", once_per_fleet=True)             in one instance, however many there are

**Which ticks there are** is said in `schedules.py`, what becomes of missed ones in `agenda.py`, who of a fleet runs one in
`tick_register.py`. An interval lies on the monotonic clock, at `start + k * interval`, so the pace does not drift with how long the
method takes; a fleet's lies on the wall clock, at multiples of the interval since 1970, where all instances find the same ticks.

Workers of one timer never overlap in one instance. Nameko's timer (nameko/timer.py:16-97) makes up for late ticks in a burst.

**A tick that fails** and is to be tried again (`retry=`, `RetryLater`) waits here, in the timer's own task, without a worker. It does
not outlive the process, and goes no further than the next tick, unless each one is to be run (`Agenda.may_try_again`).

**The wall clock** is looked at again every `LOOK_AGAIN` seconds, because it may be set, and stands still for a sleeping machine's
timers. Where it goes back, ticks that have run do not run again.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from datetime import UTC, datetime
from random import Random
from typing import Any, Unpack
from zoneinfo import ZoneInfo

import msgspec

from mycelia.call import (
    Ack,
    Arguments,
    Call,
    CallKind,
    Outcome,
    Redeliver,
    Requeue,
    Settlement,
)
from mycelia.entrypoints.after_errors import pause_after, policy_after
from mycelia.entrypoints.agenda import MISSED, ON_TIME, Agenda, Missed
from mycelia.entrypoints.received import requeue_delay
from mycelia.entrypoints.schedules import CronSchedule, Grid, Schedule
from mycelia.entrypoints.statistics import TimerStatistics
from mycelia.entrypoints.tick_lease import LeaseLink, TickLease
from mycelia.errors import ConfigError, LinkError
from mycelia.extras import is_installed, require_extra
from mycelia.log_event import event
from mycelia.policies.retry import Retry
from mycelia.runtime import Container, Entrypoint, EntrypointArguments, Lane, decorator_of

__all__ = ["Tick", "Timer", "TimerCall", "timer"]

log = logging.getLogger("mycelia.entrypoints")

LOOK_AGAIN = 10.0
"""Seconds. A tick is as late at most after the clock was set forward, or the machine has slept."""

ACK = Ack()

PAUSE = 1.0
"""Seconds before another try, where the broker did not answer or something of ours failed."""

FLEET_INTERVAL = 0.1
"""Seconds between ticks of a fleet at least: each goes to the broker and back first."""


class Tick(msgspec.Struct, frozen=True):
    """One tick. A method that takes an argument gets it: `async def report(self, tick)`.

    Attributes:
        scheduled: when it was due, in UTC. The same for whoever runs it, and never twice for one timer of a fleet.
        key: `service.method@2026-03-29T04:00:00Z`, to remember what has been done by.
    """

    scheduled: datetime
    key: str


class TimerCall(Call, eq=False, kw_only=True):
    """A call that is due to time."""

    tick: Tick
    ended: asyncio.Future[float | None]
    """Who waits for its end; and for the seconds until it is tried again, if it is to be."""


class Timer(Entrypoint):
    """The entrypoint behind `@timer`.

    Args:
        interval: seconds from tick to tick, a finite number; 0 runs the method again as soon as it has ended.
        eager: whether to run once as soon as the service has started, as well as at the first tick.
        cron: instead of an interval: minute, hour, day of the month, month and day of the week, `0 6 * * MON-FRI`; or six
            fields, the first for seconds. Needs `mycelia[cron]`.
        timezone: where the hours of `cron` are those of the day: `Europe/Berlin`; `UTC` by default.
        once_per_fleet: whether each tick runs in one instance of the service only, of all that are at this broker.
        missed: what becomes of ticks that come due while the method runs, or while nobody is there: `skip` leaves them out,
            `once` runs one for all of them, `all` runs each, the newest 100 at most.
        retry: when a tick whose method raises is tried again, in this instance; `None` for never. The next tick ends that, except
            with `missed="all"`, which lets it wait. A `RetryLater` is heeded in any case.
        options: those of every entrypoint (`Entrypoint`).

    Raises:
        ValueError: neither interval nor cron, or both; or one of them cannot be.
    """

    kind = CallKind.TIMER
    settlements = frozenset({Ack, Requeue, Redeliver})
    container: Container

    def __init__(
        self,
        interval: float | None = None,
        eager: bool = False,
        *,
        cron: str | None = None,
        timezone: str | None = None,
        once_per_fleet: bool = False,
        missed: Missed = "skip",
        retry: Retry | None = None,
        **options: Unpack[EntrypointArguments],
    ) -> None:
        super().__init__(**options)
        self.interval = None if interval is None and cron is not None else _seconds(interval)
        self.eager = eager
        self.cron = cron
        self.timezone = timezone
        self.once_per_fleet = once_per_fleet
        self.missed = missed
        self.retry = retry
        self.ticks = 0
        """Ticks begun so far."""
        self.retried = 0
        """Workers started because a tick had failed."""
        self.skipped = 0
        """Ticks that came due while a worker ran, or nobody was there, and were left out."""
        self._check()
        self._cron_schedule = (
            None
            if cron is None or not is_installed("cron")
            else CronSchedule(cron, _zone(timezone or "UTC"))
        )
        if once_per_fleet:
            self.leases = LeaseLink()  # bound with the timer
        self._started = 0.0
        self._agenda: Agenda | None = None
        self._lane: Lane | None = None
        self._lease: TickLease | None = None
        self._changed = asyncio.Event()
        """The lease has been gained or lost."""
        self._takes_tick = False
        self._random = Random()
        self._task: asyncio.Task[None] | None = None

    def _check(self) -> None:
        if self.interval is not None and self.cron is not None:
            raise ValueError("interval= and cron=: give one of the two.")
        if self.timezone is not None and self.cron is None:
            raise ValueError("timezone= says where the hours of cron= are; an interval has none.")
        if self.missed not in MISSED:
            raise ValueError(f"missed={self.missed!r}: expected one of {', '.join(MISSED)}.")
        if not (self.retry is None or isinstance(self.retry, Retry)):
            raise ValueError(f"retry={self.retry!r:.60}: expected Retry(…), or None for never.")
        if not self.once_per_fleet:
            return
        if self.eager:
            raise ValueError(
                'eager=True is for each instance, once_per_fleet=True for one of them; missed="once" makes up '
                "for a tick that came due while nobody was there."
            )
        if self.interval is not None and self.interval < FLEET_INTERVAL:
            raise ValueError(
                f"interval={self.interval:g}: with once_per_fleet=True expected at least {FLEET_INTERVAL:g} s."
            )

    def bind(self, container: Any, method_name: str = "") -> Any:
        instance = super().bind(container, method_name)
        if instance.cron is not None and instance._cron_schedule is None:
            written = f'{container.service_name}.{method_name}: @timer(cron="{instance.cron}")'
            require_extra("cron", written)
        return instance

    def setup(self) -> None:
        method = self.target.name
        required = [
            parameter
            for parameter in list(inspect.signature(self.method).parameters.values())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
            raise ConfigError(
                f"{method}: a timer's method takes no arguments, or one, which is the `Tick`."
            )
        self._takes_tick = bool(required)
        if self.once_per_fleet and any(
            other is not self
            and isinstance(other, Timer)
            and other.once_per_fleet
            and other.method_name == self.method_name
            for other in self.container.entrypoints
        ):
            raise ConfigError(
                f"{method}: has two timers with once_per_fleet=True, which would share one lease; give each its own method."
            )

    def start(self) -> None:
        self._lane = self.container.make_lane(self)
        self._started = self._now()
        self._task = asyncio.create_task(self._run(), name=f"mycelia:timer:{self.target.name}")

    async def stop(self) -> None:
        """No more ticks, and the lease for another. A worker that runs is left to the container's grace period. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._lane is not None:
            self._lane.take_backlog()
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.aclose()

    async def kill(self) -> None:
        await self.stop()

    def statistics(self) -> TimerStatistics:
        lease = self._lease
        return TimerStatistics(
            ticks=self.ticks,
            skipped=self.skipped,
            retried=self.retried,
            holds_lease=lease is not None and lease.is_held if self.once_per_fleet else None,
        )

    # --- time -------------------------------------------------------------------------------------

    @property
    def _is_on_wall_clock(self) -> bool:
        return self.cron is not None or self.once_per_fleet

    def _now(self) -> float:
        """On the clock that the schedule is on."""
        return time.time() if self._is_on_wall_clock else self.container.loop.time()

    def _moment(self, tick: float) -> datetime:
        since_epoch = tick
        if not self._is_on_wall_clock:
            since_epoch = time.time() + tick - self.container.loop.time()
        return datetime.fromtimestamp(since_epoch, UTC)

    def _schedule(self) -> Schedule:
        if self.cron is not None:
            assert self._cron_schedule is not None
            return self._cron_schedule
        assert self.interval is not None
        return Grid(0.0 if self.once_per_fleet else self._started, self.interval)

    async def _run(self) -> None:
        """Tick until cancelled, whatever happens."""
        while True:
            try:
                await self._tick()
            except Exception:
                log.exception(event("timer_failed", call=self.target.name))
                await asyncio.sleep(PAUSE)

    async def _tick(self) -> None:
        if self._agenda is None and self.interval != 0:
            on_time = ON_TIME if self._is_on_wall_clock else math.inf
            self._agenda = Agenda(self._schedule(), self.missed, self._started, on_time=on_time)
        if self.eager and not self.ticks:
            await self._work(self._started)
        while self._agenda is None:
            await self._work(self._now())
            await asyncio.sleep(0)
        agenda = self._agenda
        if self.once_per_fleet:
            await self._take_place()
        while True:
            if self._lease is not None:
                self._changed.clear()
                if not self._lease.is_held:
                    await self._changed.wait()
                    continue
                agenda.last = self._lease.last
            due = agenda.look(self._now())
            if due.tick is None:
                self._leave_out(due.left_out)
                await self._wait(due.look_at)
            elif self._lease is None or await self._lease.claim(due.tick):
                agenda.done(due.tick)
                self._leave_out(due.left_out)
                await self._work(due.tick)
            else:
                await self._wait(self._now() + PAUSE)

    async def _take_place(self) -> None:
        """Have a lease, held or waited for."""
        while self._lease is None:
            lease = TickLease(
                self.leases.link,
                self.container.service_name,
                self.method_name,
                on_change=self._changed.set,
            )
            try:
                await lease.open()
                self._lease = lease
            except LinkError as exc:
                log.error(event("timer_lease_refused", call=self.target.name, reason=exc))
                await asyncio.sleep(LOOK_AGAIN)

    async def _wait(self, until: float) -> None:
        delay = max(until - self._now(), 0.0)
        if not self._is_on_wall_clock:
            await asyncio.sleep(delay)
            return
        try:
            async with asyncio.timeout(min(delay, LOOK_AGAIN)):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _leave_out(self, ticks: int) -> None:
        if ticks:
            self.skipped += ticks
            log.debug(event("ticks_skipped", call=self.target.name, ticks=ticks))

    # --- work -------------------------------------------------------------------------------------

    async def _work(self, due: float) -> None:
        """Run the method for a tick, as often as it takes, and wait for its end."""
        scheduled = self._moment(due)
        written = scheduled.isoformat().replace("+00:00", "Z")
        tick = Tick(scheduled, f"{self.target.name}@{written}")
        self.ticks += 1
        attempt = 1
        while True:
            after = await self._attempt(tick, attempt)
            if self._agenda is not None:
                self._leave_out(self._agenda.worker_ended(self._now()))
            if after is None:
                return
            ended_by = await self._pause(due, after, tick, attempt)
            if ended_by is not None:
                log.warning(
                    event(
                        "tick_given_up",
                        call=self.target.name,
                        tick=tick.key,
                        attempts=attempt,
                        reason=ended_by,
                    )
                )
                return
            attempt += 1
            self.retried += 1

    async def _pause(self, due: float, after: float, tick: Tick, attempt: int) -> str | None:
        """Wait until the next attempt. Returns why there is none."""
        agenda, lease = self._agenda, self._lease
        if agenda is not None and not agenda.may_try_again(self._now() + after):
            return "the next tick comes first"
        log.info(
            event(
                "tick_tried_again",
                call=self.target.name,
                tick=tick.key,
                attempt=attempt,
                after=round(after, 3),
            )
        )
        await asyncio.sleep(after)
        if agenda is not None and not agenda.may_try_again(self._now()):
            return "the next tick comes first"  # the clock was set
        if lease is not None and not await lease.claim(due, again=True):
            return "the lease was lost"
        return None

    async def _attempt(self, tick: Tick, attempt: int) -> float | None:
        """Run the method once. Returns the seconds until it is to be run again, if so."""
        assert self._lane is not None
        ended: asyncio.Future[float | None] = self.container.loop.create_future()
        self._lane.submit(
            TimerCall(
                self.target,
                read=self._arguments,
                parent_calls_tracked=self.container.settings.parent_calls_tracked,
                attempt=attempt,
                tick=tick,
                ended=ended,
            )
        )
        return await ended

    def _arguments(self, call: Call) -> Arguments:
        assert isinstance(call, TimerCall)
        return ((call.tick,) if self._takes_tick else ()), {}

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        error = outcome.error
        assert error is not None
        policy = policy_after(self.retry, error, self._limit)
        after = None
        if policy is not None:
            after = pause_after(policy, error, call.attempt, self._random, call=self.target.name)
        return ACK if after is None else Redeliver(after)

    @property
    def _limit(self) -> int:
        """Attempts, where no policy says how many."""
        return self.container.settings.mycelia.requeue_attempts

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        assert isinstance(call, TimerCall)
        after: float | None = None
        match settlement:
            case Redeliver(seconds):
                after = seconds
            case Requeue():
                after = requeue_delay(call.attempt)
        limit = max(self._limit, 0 if self.retry is None else self.retry.attempts)
        if call.attempt >= limit:
            after = None
        if not call.ended.done():
            call.ended.set_result(after)


def _seconds(interval: Any) -> float:
    if interval is None:
        raise ValueError(
            "missing a required argument: 'interval' (seconds between ticks, a number of at least 0) or 'cron'."
        )
    if type(interval) not in (int, float) or not 0 <= interval < math.inf:
        raise ValueError(
            f"interval={interval!r}: expected seconds between ticks, a number of at least 0."
        )
    return float(interval)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        raise ValueError(
            f"timezone={name!r} is no time zone; write a name like Europe/Berlin."
        ) from None


timer = decorator_of(
    "timer",
    Timer,
    "Run a method at times: `@timer(60)`, `@timer(interval=0.5, eager=True)`, "
    '`@timer(cron="0 6 * * *", timezone="Europe/Berlin")`.',
)
