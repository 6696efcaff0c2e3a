"""A lane: the workers of one entrypoint, bounded, started in arrival order, each settled exactly once.

Everything here runs on the event loop and is synchronous; only the worker itself awaits. A slot is given back by
whatever way a worker ends, `BaseException` included.

A call that is not going to run (`refuse()`) passes the middleware like any other; only the worker at the chain's end
is left out.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, KeysView
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import msgspec

from mycelia.call import (
    Call,
    GiveBack,
    Middleware,
    Next,
    Observer,
    Outcome,
    Redeliver,
    Settlement,
    Target,
    compose,
    current_call,
    tighter,
)
from mycelia.errors import (
    DeadlinePassed,
    HandlerTimeout,
    Overloaded,
    RuntimeStateError,
    class_name_of,
    describe,
)
from mycelia.log_event import event
from mycelia.runtime.forgotten_awaits import forgotten, take_forgotten
from mycelia.runtime.service_slots import ServiceSlots
from mycelia.runtime.service_time import ServiceTime
from mycelia.runtime.threads import ThreadPool

__all__ = ["CallSettler", "Lane", "LaneStatistics", "Run"]

log = logging.getLogger("mycelia.runtime")


TaskMaker = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

WAY_BACK = 0.05
"""Seconds that a reply is given to reach its caller, with both processes and the broker as busy as in an overload."""


class Run(Protocol):
    """How to run one worker."""

    @property
    def is_async(self) -> bool:
        """Whether `run()` does it on the event loop, or `run_in_thread()` in a thread."""
        ...

    async def run(self, call: Call) -> Outcome:
        """Never raises: what was raised is the outcome's error."""
        ...

    def run_in_thread(self, call: Call) -> Outcome:
        """As `run()`, in the calling thread."""
        ...


class CallSettler(Protocol):
    """What becomes of a call after its worker: the entrypoint's part of a lane. `Entrypoint` has it all."""

    @property
    def settlements(self) -> frozenset[type[Settlement]]:
        """What `settle()` can do, beside `GiveBack`."""
        ...

    @property
    def on_success(self) -> Settlement:
        """The rule for a value that brings no settlement of its own."""
        ...

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        """The rule for an error that brings no settlement of its own."""
        ...

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        """Do it. Called once for each call, on the loop; must not raise, wait, or ask what else might have been."""
        ...

    def log_error(self, call: Call, outcome: Outcome) -> None:
        """Write the line for an outcome with an error."""
        ...


class LaneStatistics(msgspec.Struct):
    """A lane's state now, and counts of calls since the start."""

    limit: int = 0
    active: int = 0
    """Workers that run."""
    waiting: int = 0
    """Calls that have arrived and wait for a slot."""
    finished: int = 0
    failed: int = 0
    refused: int = 0
    """Calls whose method was not begun, the expired ones included."""
    expired: int = 0
    """Calls whose deadline passed before their worker could start."""
    overloaded: int = 0
    """Calls that had waited, and had less time left than the method usually takes."""
    timed_out: int = 0
    """Workers that were given up because they ran too long."""
    lost: int = 0
    """Calls dropped before they began, because the broker has taken their message back."""


def _task_maker(loop: asyncio.AbstractEventLoop, name: str) -> TaskMaker:
    """Makes tasks that have run up to their first wait, where Python can do that (3.12); most workers never wait."""
    if sys.version_info >= (3, 12):
        return partial(asyncio.Task, loop=loop, name=name, eager_start=True)
    return partial(loop.create_task, name=name)


class Lane:
    """Runs workers for one entrypoint.

    Args:
        target: the entrypoint's.
        run: how to run one worker.
        settler: what becomes of each call afterwards.
        limit: workers at once.
        slots: the service's shared limit.
        threads: where `def` methods run.
        middleware: composed around the worker; empty means no layer at all.
        timeout: seconds that a worker may take; `None` for any time. A call's deadline counts as well.
        sheds: whether a call that has waited and has less time left than the method usually takes is refused as
            `Overloaded`: begun, it would only be late, and make those behind it late as well.
    """

    def __init__(
        self,
        target: Target,
        run: Run,
        settler: CallSettler,
        *,
        limit: int,
        slots: ServiceSlots,
        threads: ThreadPool,
        loop: asyncio.AbstractEventLoop,
        middleware: tuple[Middleware, ...] = (),
        timeout: float | None = None,
        sheds: bool = False,
    ) -> None:
        self.target = target
        self.timeout = timeout
        self.on_active: Callable[[], None] | None = None
        """Told when a worker starts; set by the watch that looks after this lane, while it does not look anyway."""
        self.service_time = ServiceTime() if sheds else None
        """How long the method usually takes, where it matters."""
        self._limit = limit
        self._active = 0
        self._counts = LaneStatistics()
        self._start_task = _task_maker(loop, f"mycelia:work:{target.name}")
        self._run_worker = run
        self._settler = settler
        self._slots = slots
        self._threads = threads
        self._loop = loop
        self._backlog: deque[Call] = deque()
        self._running: dict[Call, asyncio.Task[None] | None] = {}
        self._refusing: set[asyncio.Task[None]] = set()
        """Refused calls that pass the middleware."""
        self._left: set[asyncio.Task[None]] = set()
        """Workers that would not be cancelled: settled, and cancelled once more at the end."""
        self._cancelled = False
        self._is_still = False
        """Whether nothing is started: it is held, or cancelled."""
        self._idle: asyncio.Event | None = None
        endpoint: Next = run.run if run.is_async else self._run_in_thread
        self._refusal_chain: Next | None = None
        self._observers = [layer.ended for layer in middleware if isinstance(layer, Observer)]
        around = [layer for layer in middleware if not isinstance(layer, Observer)]
        if around:
            self._chain: Next | None = compose(around, endpoint)
            self._refusal_chain = compose(around, _refused)
        else:
            self._chain = endpoint if run.is_async else None

    def __repr__(self) -> str:
        return f"<Lane {self.target.name}: {self._active} of {self._limit}, {self.waiting} wait>"

    @property
    def active(self) -> int:
        """Workers that run."""
        return self._active

    @property
    def waiting(self) -> int:
        """Calls that have arrived and wait for a slot."""
        return len(self._backlog)

    @property
    def waiting_bytes(self) -> int:
        """Bodies of the calls that wait for a slot; walks them all."""
        return sum(len(call.message.body) for call in self._backlog if call.message is not None)

    @property
    def has_room(self) -> bool:
        """Whether another call would be started at once."""
        return (
            not self._backlog
            and self._active < self._limit
            and self._slots.has_room
            and not self._is_still
        )

    @property
    def running(self) -> KeysView[Call]:
        """The calls whose workers run, in the order in which they started."""
        return self._running.keys()

    @property
    def full_since(self) -> float | None:
        """When the latest of the workers began that run, with as many as may run; `None` with fewer."""
        if self._running and self._active >= self._limit:
            return next(reversed(self._running)).started_at
        return None

    @property
    def limit(self) -> int:
        """Workers at once. May be changed while it runs; workers above a lower limit end in their own time."""
        return self._limit

    @limit.setter
    def limit(self, value: int) -> None:
        self._limit = value
        if self._backlog:
            self._slots.wait(self)
            self._slots.pump()

    @property
    def sheds(self) -> bool:
        """Whether a call that has waited too long for an answer in time is refused. May be changed while it runs."""
        return self.service_time is not None

    @sheds.setter
    def sheds(self, value: bool) -> None:
        if value != self.sheds:
            self.service_time = ServiceTime() if value else None

    def statistics(self) -> LaneStatistics:
        return msgspec.structs.replace(
            self._counts, limit=self._limit, active=self._active, waiting=len(self._backlog)
        )

    # --- a call comes in ----------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Start a worker for `call`, now or when a slot is free. Never waits."""
        slots = self._slots
        if (
            not self._backlog
            and self._active < self._limit
            and (slots.limit is None or slots.active < slots.limit)
            and not self._is_still
        ):
            self._start(call)
            return
        self._backlog.append(call)
        if self._active < self._limit and not self._is_still:
            self._slots.wait(self)
            self._slots.pump()

    def hold(self) -> None:
        """Start nothing until `release()`; what comes waits."""
        self._is_still = True

    def release(self) -> None:
        """Go on after `hold()`."""
        self._is_still = self._cancelled
        if self._backlog:
            self._slots.wait(self)
            self._slots.pump()

    def refuse(self, call: Call, error: BaseException) -> None:
        """Settle `call` with `error`, without a worker; it passes the middleware first."""
        call.refusal = error
        self._counts.refused += 1
        chain = self._refusal_chain
        if chain is None:
            self._pass(call, Outcome(error=error, is_refused=True))
            return
        task = self._start_task(self._pass_by(call, chain))
        if not task.done():
            self._refusing.add(task)
            task.add_done_callback(self._refusing.discard)

    def start_next(self) -> bool:
        """Start the first waiting call, if there is one and a slot for it. Returns whether another could be started."""
        if self._is_still or not self._backlog or self._active >= self._limit:
            return False
        self._start(self._backlog.popleft(), waited=True)
        return bool(self._backlog) and self._active < self._limit

    def _start(self, call: Call, waited: bool = False) -> None:
        now = time.monotonic()
        if waited and call.message is not None and call.message.is_lost:
            self._counts.lost += 1  # it comes again, to us or to another instance
            return
        deadline = call.deadline
        if deadline is not None:
            left = deadline - now
            if left <= 0:
                self._counts.expired += 1
                self.refuse(call, _expired(call))
                return
            if waited and self._is_hopeless(left):
                self._counts.overloaded += 1
                self.refuse(call, _overloaded(call, left))
                return
        call.started_at = now
        self._active += 1
        self._slots.active += 1
        self._running[call] = None
        if self.on_active is not None:
            self.on_active()
        if self._chain is None:
            context = contextvars.copy_context()
            context.run(current_call.set, call)
            self._threads.submit(self._run_worker.run_in_thread, call, self._finished, context)
        else:
            task = self._start_task(self._run(call))
            if call in self._running:  # it may have run through already
                self._running[call] = task

    def _is_hopeless(self, left: float) -> bool:
        """Whether a call that has waited, with `left` seconds to go, is better not begun.

        Less than the method usually takes is too little. So is little more, where others wait behind it: a queue with
        deadlines is served at the very end of each one's time, and an answer that is begun in time arrives too late.
        """
        if self.service_time is None:
            return False
        usual = self.service_time.usual
        return left < (usual + WAY_BACK if self._backlog else usual)

    async def _run(self, call: Call) -> None:
        assert self._chain is not None
        current_call.set(call)
        try:
            outcome = await self._chain(call)
        except BaseException as exc:  # noqa: BLE001  the worker boundary: a middleware raised, or we were cancelled
            outcome = Outcome(error=call.reason_for(exc))
        self._finished(call, outcome)

    async def _pass_by(self, call: Call, chain: Next) -> None:
        current_call.set(call)
        try:
            outcome = await chain(call)
        except BaseException as exc:  # noqa: BLE001  a middleware raised, or we were cancelled
            outcome = Outcome(error=exc, is_refused=True)
        self._pass(call, outcome)

    def _pass(self, call: Call, outcome: Outcome) -> None:
        if self._observers:
            self._tell_observers(call, outcome)
        self._settle(call, outcome)

    def _tell_observers(self, call: Call, outcome: Outcome) -> None:
        for ended in self._observers:
            try:
                ended(call, outcome)
            except Exception:  # a bug of ours; the slot must come back all the same
                log.exception(event("observer_failed", call=call.target.name))

    async def _run_in_thread(self, call: Call) -> Outcome:
        """The end of a chain around a `def` method."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(_: Call, outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self._threads.submit(self._run_worker.run_in_thread, call, done, contextvars.copy_context())
        try:
            return await future
        except asyncio.CancelledError:
            if call.interruption is None:
                raise
            self._threads.abandon(call)
            return Outcome(error=call.interruption)

    # --- an outcome goes out ------------------------------------------------------------------

    def _finished(self, call: Call, outcome: Outcome) -> None:
        """A worker has ended, or is given up: settle its call and give its slot to the next."""
        if self._running.pop(call, call) is call:
            return  # given up before: already settled
        if self._observers:
            self._tell_observers(call, outcome)
        self._active -= 1
        slots = self._slots
        slots.active -= 1
        counts = self._counts
        counts.finished += 1
        error = outcome.error
        if error is None:
            # Where nobody waits an eighth of the durations will do.
            if self.service_time is not None and (self._backlog or not counts.finished & 7):
                self.service_time.add(time.monotonic() - call.started_at)
        else:
            if outcome.is_refused:  # its arguments could not be read, or did not fit
                counts.refused += 1
            else:
                counts.failed += 1
            if error is call.interruption:
                counts.timed_out += 1
            elif self._cancelled and issubclass(type(error), asyncio.CancelledError):
                outcome = outcome.replace(settlement=GiveBack())
        self._settle(call, outcome)
        if self._backlog:
            slots.wait(self)
        if slots.waiting:
            slots.pump()
        if self._idle is not None and not self._active:
            self._idle.set()

    def _settle(self, call: Call, outcome: Outcome) -> None:
        """Every outcome of every call of the lane ends here, whatever kind of entrypoint it is."""
        settler = self._settler
        if forgotten and (mistake := take_forgotten(call)) is not None and outcome.error is None:
            outcome = Outcome(error=mistake)  # a `def` method's, a hook's or a middleware's
        settlement = outcome.settlement
        try:
            if outcome.error is None and settlement is None:  # nearly always
                settler.settle(call, outcome, settler.on_success)
                return
            outcome = _that_can_be_asked(outcome)
            if settlement is None:
                settlement = settler.settlement_of(call, outcome)
            elif not _is_possible(settlement, settler.settlements):
                outcome = Outcome(error=_impossible(call, settlement, settler.settlements))
                settlement = settler.settlement_of(call, outcome)
            if outcome.error is not None and type(settlement) is not GiveBack:
                self._log_error(call, outcome)
            call.settlement = settlement
            settler.settle(call, outcome, settlement)
        except Exception:
            # A bug of ours: settlers contain their own errors. The slot must come back all the same, and the message
            # must not hang: it goes back, and is counted. (Where it was settled after all, that does nothing.)
            log.exception(event("settle_failed", call=call.target.name))
            call.settlement = GiveBack()
            with suppress(Exception):
                settler.settle(call, outcome, call.settlement)
        finally:
            if call.on_settled is not None:
                _tell_settled(call, call.on_settled)

    # --- a worker takes too long --------------------------------------------------------------

    def ends_at(self, call: Call) -> float | None:
        """When a running worker is given up, on the monotonic clock: at its timeout or its call's deadline."""
        return tighter(
            call.deadline, None if self.timeout is None else call.started_at + self.timeout
        )

    def interrupt(self, call: Call, error: HandlerTimeout) -> None:
        """End a running worker, so that its call ends with `error`: cancel its task, or leave its thread to itself."""
        call.interruption = error
        task = self._running[call]
        if task is not None:
            task.cancel()
        else:
            self.abandon(call)

    def abandon(self, call: Call) -> None:
        """Take an interrupted worker's slot back without it. What it still comes to is dropped."""
        task = self._running[call]
        if task is None:
            has_substitute = self._threads.abandon(call)
        else:
            has_substitute = True
            self._left.add(task)
            task.add_done_callback(self._left.discard)
        log.warning(
            event(
                "worker_abandoned",
                call=call.target.name,
                call_id=call.call_id,
                running_s=round(time.monotonic() - call.started_at, 1),
                threads_left=self._threads.abandoned,
                detail=None if has_substitute else "no more threads: this one is not replaced",
            )
        )
        self._finished(call, Outcome(error=call.interruption))

    def _log_error(self, call: Call, outcome: Outcome) -> None:
        """Have the line written; a handler that cannot write it must not keep the call from being settled."""
        token = current_call.set(
            call
        )  # a worker in a thread was handled in another context: the line is of this call
        try:
            self._settler.log_error(call, outcome)
        except Exception as exc:  # noqa: BLE001  loggers, their handlers and what they look at are the application's
            with suppress(Exception):
                log.error(event("error_not_logged", call=call.target.name, error=describe(exc)))
        finally:
            current_call.reset(token)

    # --- the end ------------------------------------------------------------------------------

    def take_backlog(self) -> list[Call]:
        """Give up the calls that have not started, for the entrypoint to put back."""
        calls = list(self._backlog)
        self._backlog.clear()
        return calls

    def give_back_backlog(self) -> None:
        """Settle the calls that have not started with `GiveBack`."""
        for call in self.take_backlog():
            self._settle(call, Outcome(error=asyncio.CancelledError(), settlement=GiveBack()))

    def drop_lost(self) -> list[Call]:
        """Drop waiting calls whose message the broker has taken back, and return them."""
        lost = [call for call in self._backlog if call.message is not None and call.message.is_lost]
        if lost:
            dropped = set(lost)
            self._backlog = deque(call for call in self._backlog if call not in dropped)
            self._counts.lost += len(lost)
        return lost

    async def wait_idle(self) -> None:
        """Wait until no worker runs. The caller bounds it."""
        if self._active:
            self._idle = asyncio.Event()
            await self._idle.wait()
        if self._refusing:
            await asyncio.wait(self._refusing)

    async def cancel(self, timeout: float = 1.0) -> None:
        """Cancel running workers; what does not end within `timeout` seconds, and threads, is abandoned.

        Abandoned and cancelled calls are settled with `GiveBack`. Nothing is started any more.
        """
        self._cancelled = self._is_still = True
        tasks = [task for task in self._running.values() if task is not None]
        tasks += [*self._refusing, *self._left]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        for call in list(self._running):
            self._running.pop(call)
            self._active -= 1
            self._slots.active -= 1
            log.warning(event("worker_abandoned", call=call.target.name, call_id=call.call_id))
            self._settle(call, Outcome(error=asyncio.CancelledError(), settlement=GiveBack()))
        if self._idle is not None:
            self._idle.set()


def _tell_settled(call: Call, told: Callable[[Call], None]) -> None:
    call.on_settled = None
    try:
        told(call)
    except Exception:
        log.exception(event("settle_failed", call=call.target.name))


def _expired(call: Call) -> DeadlinePassed:
    return DeadlinePassed(f"{call.target.name}: its deadline passed in the queue.")


def _overloaded(call: Call, left: float) -> Overloaded:
    return Overloaded(
        f"{call.target.name}: not begun: after its wait {left:.3g} s of its time are left, too little for an answer. "
        "The service has more work than it can do in time: run more instances, or call it less."
    )


async def _refused(call: Call) -> Outcome:
    """The end of a chain for a call that has no worker."""
    return Outcome(error=call.refusal, is_refused=True)


class _Nobody:
    """No error is one."""


def _that_can_be_asked(outcome: Outcome) -> Outcome:
    """The outcome; with an error in place of one that raises when somebody asks what kind of error it is."""
    error = outcome.error
    try:
        isinstance(error, _Nobody)
    except BaseException as exc:  # noqa: BLE001  its `__class__` is a property, and may do anything
        assert error is not None
        told = f"{describe(error)} (its class cannot be asked for: {class_name_of(exc)})"
        return outcome.replace(error=RuntimeStateError(told))
    return outcome


def _is_possible(settlement: Settlement, possible: frozenset[type[Settlement]]) -> bool:
    """Whether it is one of `possible`, and a time that can be waited for."""
    if type(settlement) is Redeliver and not settlement.is_a_time:
        return False
    return type(settlement) is GiveBack or type(settlement) in possible


def _impossible(
    call: Call, settlement: Settlement, possible: frozenset[type[Settlement]]
) -> RuntimeStateError:
    names = ", ".join(sorted(cls.__name__ for cls in possible)) or "none"
    return RuntimeStateError(
        f"{call.target.name}: a middleware asked for {settlement!r}, which a call of kind {call.kind.value} "
        f"cannot have. It can have: {names}."
    )
