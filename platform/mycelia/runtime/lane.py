"""A lane: the workers of one entrypoint, bounded, started in arrival order, each settled exactly once.

Everything here runs on the event loop and is synchronous; only the worker itself awaits. A slot is given back by
whatever way a worker ends, `BaseException` included.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from mycelia.call import Call, Middleware, Next, Outcome, Settle, compose
from mycelia.runtime.threads import ThreadPool
from mycelia.runtime.worker import Invocation

__all__ = ["Lane", "LaneStatistics", "ServiceSlots"]

log = logging.getLogger("mycelia.runtime")

OnSettle = Callable[[Call, Outcome], None]
OnExpired = Callable[[Call], None]


def _start_task(
    work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, name: str
) -> asyncio.Task[None]:
    """A task that has run up to its first wait, where Python can do that (3.12); most workers never wait."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, name=name, eager_start=True)
    return loop.create_task(work, name=name)


class ServiceSlots:
    """How many workers a service may run at once over all of its entrypoints (`max_workers`)."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.active = 0
        self._waiting: dict[Lane, None] = {}
        """Lanes with calls that wait for a service-wide slot, in the order in which they began to wait."""

    @property
    def has_room(self) -> bool:
        return self.limit is None or self.active < self.limit

    def wait(self, lane: Lane) -> None:
        self._waiting[lane] = None

    def wake_next(self) -> None:
        """Give freed slots to waiting lanes, in turn, so that a busy entrypoint cannot starve a quiet one."""
        while self._waiting and self.has_room:
            lane = next(iter(self._waiting))
            del self._waiting[lane]
            lane.pump(1)


class LaneStatistics:
    """Counts of calls since the start."""

    __slots__ = ("expired", "failed", "finished")

    def __init__(self) -> None:
        self.finished = 0
        self.failed = 0
        self.expired = 0


class Lane:
    """Runs workers for one entrypoint.

    Args:
        invocation: how to run one.
        settle: called once for each submitted call, on the loop, with what came of it; must not raise.
        limit: workers at once.
        slots: the service's shared limit.
        threads: where `def` methods run.
        middleware: composed around the invocation; empty means no layer at all.
        on_expired: called instead of `settle` for a call whose deadline passed before its worker started.
    """

    def __init__(
        self,
        invocation: Invocation,
        settle: OnSettle,
        *,
        limit: int,
        slots: ServiceSlots,
        threads: ThreadPool,
        loop: asyncio.AbstractEventLoop,
        middleware: tuple[Middleware, ...] = (),
        on_expired: OnExpired | None = None,
    ) -> None:
        self.invocation = invocation
        self.limit = limit
        self.active = 0
        self.statistics = LaneStatistics()
        self._name = (
            f"mycelia:work:{invocation.container.service_name}.{invocation.entrypoint.method_name}"
        )
        self._settle = settle
        self._slots = slots
        self._threads = threads
        self._loop = loop
        self._on_expired = on_expired
        self._backlog: deque[Call] = deque()
        self._running: dict[Call, asyncio.Task[None] | None] = {}
        self._cancelled = False
        self._idle: asyncio.Event | None = None
        endpoint: Next = invocation.run if invocation.is_async else self._run_in_thread
        self._chain: Next | None = (
            compose(middleware, endpoint) if middleware or invocation.is_async else None
        )

    @property
    def waiting(self) -> int:
        """Calls that have arrived and wait for a slot."""
        return len(self._backlog)

    def submit(self, call: Call) -> None:
        """Start a worker for `call`, now or when a slot is free. Never waits."""
        if self._cancelled:
            self._backlog.append(call)
            return
        if self.active < self.limit and not self._backlog and self._slots.has_room:
            self._start(call)
            return
        self._backlog.append(call)
        if self.active < self.limit:
            self._slots.wait(self)

    def pump(self, at_most: int | None = None) -> None:
        """Start waiting calls while there are slots; none any more once the lane is cancelled."""
        if self._cancelled:
            return
        backlog = self._backlog
        while backlog and self.active < self.limit:
            if not self._slots.has_room or at_most == 0:
                self._slots.wait(self)
                return
            self._start(backlog.popleft())
            if at_most is not None:
                at_most -= 1

    def _start(self, call: Call) -> None:
        deadline = call.deadline
        if deadline is not None and self._on_expired is not None and deadline <= time.monotonic():
            self.statistics.expired += 1
            self._on_expired(call)
            return
        self.active += 1
        self._slots.active += 1
        if self._chain is None:
            self._running[call] = None
            self._threads.submit(self.invocation.run_in_thread, call, self._finished)
        else:
            self._running[call] = None
            task = _start_task(self._run(call), self._loop, self._name)
            if call in self._running:  # it may have run through already
                self._running[call] = task

    async def _run(self, call: Call) -> None:
        assert self._chain is not None
        try:
            outcome = await self._chain(call)
        except BaseException as exc:  # noqa: BLE001  the worker boundary: a middleware raised, or we were cancelled
            outcome = Outcome(error=exc)
        self._finished(call, outcome)

    async def _run_in_thread(self, call: Call) -> Outcome:
        """The end of a chain around a `def` method."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(_: Call, outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self._threads.submit(self.invocation.run_in_thread, call, done)
        return await future

    def _finished(self, call: Call, outcome: Outcome) -> None:
        if self._running.pop(call, call) is call:
            return  # abandoned by `cancel()`: already settled
        self.active -= 1
        slots = self._slots
        slots.active -= 1
        self.statistics.finished += 1
        if outcome.error is not None:
            self.statistics.failed += 1
            if self._cancelled and isinstance(outcome.error, asyncio.CancelledError):
                outcome.settle = Settle.REQUEUE
        try:
            self._settle(call, outcome)
        except Exception:
            # A bug of ours: settle functions contain their own errors. The slot must come back all the same.
            log.exception("settle_failed call=%s", call.target)
        if slots.limit is None:
            if self._backlog:
                self.pump()
        else:
            if self._backlog:
                slots.wait(self)
            slots.wake_next()
        if self._idle is not None and not self.active:
            self._idle.set()

    def take_backlog(self) -> list[Call]:
        """Give up the calls that have not started, for the entrypoint to put back."""
        calls = list(self._backlog)
        self._backlog.clear()
        return calls

    async def wait_idle(self) -> None:
        """Wait until no worker runs. The caller bounds it."""
        if self.active:
            self._idle = asyncio.Event()
            await self._idle.wait()

    async def cancel(self, timeout: float = 1.0) -> None:
        """Cancel running workers; what does not end within `timeout` seconds, and threads, is abandoned.

        Abandoned and cancelled calls are settled with `Settle.REQUEUE`. Nothing is started any more.
        """
        self._cancelled = True
        tasks = [task for task in self._running.values() if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        for call in list(self._running):
            self._running.pop(call)
            self.active -= 1
            self._slots.active -= 1
            log.warning("worker_abandoned call=%s", call.target)
            self._settle(call, Outcome(error=asyncio.CancelledError(), settle=Settle.REQUEUE))
        if self._idle is not None:
            self._idle.set()

    def snapshot(self) -> dict[str, Any]:
        """The lane's state for logs and `statistics()`."""
        return {
            "active": self.active,
            "waiting": self.waiting,
            "finished": self.statistics.finished,
            "failed": self.statistics.failed,
            "expired": self.statistics.expired,
        }
