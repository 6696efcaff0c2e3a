"""Running an entrypoint by hand, and waiting until a service has handled something.

The names and what they mean are Nameko's (nameko/testing/services.py); what they wait for is awaited.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

from mycelia.call import Call, CallKind, Outcome, Settlement
from mycelia.errors import ConfigError, RuntimeStateError, describe
from mycelia.runtime import Container, Entrypoint, WorkerContext
from mycelia.runtime.signature import SignatureCheck

__all__ = ["EntrypointWaiterTimeout", "WaitResult", "entrypoint_hook", "entrypoint_waiter"]

T = TypeVar("T")

OnSettled = Callable[[Entrypoint, Call, Outcome, Settlement], bool]
"""Told of a call that is about to be settled. `True`: it is ours, and is not to be settled."""

WaiterCallback = Callable[[WorkerContext, Any, Any], bool | None]
"""Called with the worker's context, what its method returned, and `exc_info` of what it raised; true when it is the one."""


class entrypoint_hook:
    """Calls an entrypoint as if its message had come, and gives its result or raises its error.

        async with run_services(Invoices) as bed:
            with entrypoint_hook(bed.container(Invoices), "taken") as taken:
                assert await taken({"sku": "apple"}) == "apple"

    The call waits for a free worker, passes the middleware, and its worker lives the whole life with all dependencies and
    hooks. There is no message: nothing is replied, tried again or dead-lettered, and the arguments are the objects that were
    given, which no serializer has seen.

    Args:
        container: one that has been started.
        method_name: of the method.
        context_data: what the call is to have brought along, by name without the `nameko.` prefix.
        timeout: seconds for each call; an RPC has it as its deadline.

    Raises:
        ConfigError: the method has no entrypoint.
        RuntimeStateError: the container has not been started, or its entrypoint makes its workers itself.
        TimeoutError: when called: no result within `timeout` seconds.
    """

    def __init__(
        self,
        container: Container,
        method_name: str,
        context_data: Mapping[str, Any] | None = None,
        timeout: float = 30.0,
    ) -> None:
        entrypoint, *_ = _entrypoints_of(container, method_name)
        lane = container.lane_of(entrypoint)
        if lane is None:
            raise RuntimeStateError(
                f"{container.service_name}.{method_name}: there are no workers to hook into. "
                + (
                    f"{type(entrypoint).__name__} makes its workers itself: send it what it waits for."
                    if container.started
                    else "Start the container first: inside `async with run_services(…)`, or after `await runner.start()`."
                )
            )
        self._entrypoint = entrypoint
        self._lane = lane
        self._name = f"{container.service_name}.{method_name}"
        self._context_data = context_data
        self._timeout = timeout
        self._waiting: dict[Call, asyncio.Future[Outcome]] = {}
        self._left = False

    def __enter__(self) -> entrypoint_hook:
        self._left = False
        _watch(self._entrypoint, self._settled)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = True
        self._unwatch_at_last()

    def _unwatch_at_last(self) -> None:
        # Not before the last has ended that nobody waits for any more: its end belongs to no message.
        if self._left and not self._waiting:
            _unwatch(self._entrypoint, self._settled)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method with these arguments; what it returns, or raises."""
        call = Call(
            self._entrypoint.target,
            deadline=time.monotonic() + self._timeout if self._is_rpc else None,
            arrived_at=time.monotonic(),
            read=lambda _: self._checked(args, kwargs),
            given_context=dict(self._context_data or {}),
        )
        done = self._waiting[call] = asyncio.get_running_loop().create_future()
        try:
            self._lane.submit(call)
            async with asyncio.timeout(self._timeout):
                outcome = await done
        except TimeoutError:
            state = "runs" if call.started_at else "waits for a free worker"
            raise TimeoutError(
                f"{self._name}: no result within {self._timeout:g} s; it {state}. Raise timeout=, or look what it waits for."
            ) from None
        return outcome.unwrap()

    @property
    def _is_rpc(self) -> bool:
        return self._entrypoint.kind is CallKind.RPC

    def _checked(self, args: Any, kwargs: Any) -> Any:
        if self._is_rpc:
            SignatureCheck(self._entrypoint.method).check(args, kwargs)
        return args, kwargs

    def _settled(
        self, entrypoint: Entrypoint, call: Call, outcome: Outcome, settlement: Settlement
    ) -> bool:
        done = self._waiting.pop(call, None)
        if done is None:
            return False
        if not done.done():
            done.set_result(outcome)
        self._unwatch_at_last()
        return True


class WaitResult(Generic[T]):
    """What an `entrypoint_waiter` has waited for; there once its block has ended."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.call: Call | None = None
        self.outcome: Outcome | None = None
        self.settlement: Settlement | None = None
        """What became of the message: `Ack()`, `Reply()`, `Redeliver(…)`, `DeadLetter(…)`."""

    def get(self) -> Any:
        """What the method returned; raises what it raised."""
        if self.outcome is None:
            raise RuntimeStateError(
                f"{self._name}: not handled yet; ask after the `async with entrypoint_waiter(…)` block."
            )
        return self.outcome.unwrap()


class EntrypointWaiterTimeout(AssertionError):
    """What a test has waited for was not handled in time."""


class entrypoint_waiter:
    """Waits, at the end of its block, until a method has handled a call: its worker is torn down and its message settled.

        async with entrypoint_waiter(bed.container(Invoices), "taken") as result:
            await bed.client.publish("stock", "taken", {"sku": "apple"})
        assert result.get() == "apple"

    An error of the block's own is raised at once. A call that is refused (it cannot be read, came too late) counts too, with
    its error.

    Args:
        container: one whose service has the method.
        method_name: of the method.
        timeout: seconds to wait at the end of the block; `None` for any time.
        callback: asked after each call with `(worker_ctx, result, exc_info)`, as in Nameko; the first for which it is true ends
            the wait. `worker_ctx.args` and `.kwargs` are the arguments, `worker_ctx.call` is the whole call.

    Raises:
        ConfigError: the method has no entrypoint.
        EntrypointWaiterTimeout: not within `timeout`; it says what came instead.
    """

    Timeout = EntrypointWaiterTimeout

    def __init__(
        self,
        container: Container,
        method_name: str,
        timeout: float | None = 30.0,
        callback: WaiterCallback | None = None,
    ) -> None:
        self._container = container
        self._entrypoints = _entrypoints_of(container, method_name)
        self._name = f"{container.service_name}.{method_name}"
        self._timeout = timeout
        self._callback = callback
        self._result: WaitResult[Any] = WaitResult(self._name)
        self._others: list[str] = []

    async def __aenter__(self) -> WaitResult[Any]:
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for entrypoint in self._entrypoints:
            _watch(entrypoint, self._settled)
        return self._result

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc is None:
                async with asyncio.timeout(self._timeout):
                    await self._done
        except TimeoutError:
            raise EntrypointWaiterTimeout(self._story()) from None
        finally:
            for entrypoint in self._entrypoints:
                _unwatch(entrypoint, self._settled)
            if self._done.done() and not self._done.cancelled():
                self._done.exception()  # looked at: the block's own error comes first

    def _story(self) -> str:
        text = f"{self._name}: nothing handled within {self._timeout:g} s"
        if self._others:
            shown = "; ".join(self._others[-3:])
            return f"{text} for which the callback is true; {len(self._others)} came, the last: {shown}."
        lanes = [self._container.lane_of(entrypoint) for entrypoint in self._entrypoints]
        running = sum(lane.active for lane in lanes if lane is not None)
        if running:
            return f"{text}; {running} run still."
        return f"{text}; nothing came. Was it sent, and is its entrypoint the one that hears it?"

    def _settled(
        self, entrypoint: Entrypoint, call: Call, outcome: Outcome, settlement: Settlement
    ) -> bool:
        error = outcome.error
        if self._result.outcome is not None or self._done.done():
            return False
        if self._callback is not None:
            context = WorkerContext(self._container, entrypoint, call, True)
            exc_info = None if error is None else (type(error), error, error.__traceback__)
            try:
                if not self._callback(context, outcome.value, exc_info):
                    came = repr(outcome.value) if error is None else describe(error)
                    self._others.append(came[:200])
                    return False
            except Exception as exc:  # noqa: BLE001  the test's own; raised where it waits
                self._done.set_exception(exc)
                return False
        self._result.call, self._result.outcome = call, outcome
        self._result.settlement = settlement
        # With the next turn of the loop: the settlement that follows is done by then.
        self._done.get_loop().call_soon(_end, self._done)
        return False


def _end(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _entrypoints_of(container: Container, method_name: str) -> list[Any]:
    found = [one for one in container.entrypoints if one.method_name == method_name]
    if not found:
        present = sorted({one.method_name for one in container.entrypoints})
        raise ConfigError(
            f"{container.service_name} has no entrypoint {method_name}; it has {', '.join(present) or 'none'}."
        )
    return found


# --- who is told of settlements ------------------------------------------------------------------------


class _Watched:
    """Stands before `entrypoint.settle` while somebody looks on; what is not watched is as it was."""

    def __init__(self, entrypoint: Entrypoint) -> None:
        self._entrypoint = entrypoint
        self._settle = entrypoint.settle
        self.before = vars(entrypoint).get("settle")
        """What somebody else had put in its place, for the time after."""
        self.watchers: list[OnSettled] = []

    def __call__(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        told = [
            watcher(self._entrypoint, call, outcome, settlement) for watcher in [*self.watchers]
        ]
        if not any(told):
            self._settle(call, outcome, settlement)


def _watch(entrypoint: Entrypoint, watcher: OnSettled) -> None:
    watched = vars(entrypoint).get("settle")
    if not isinstance(watched, _Watched):
        watched = _Watched(entrypoint)
        vars(entrypoint)["settle"] = watched
    watched.watchers.append(watcher)


def _unwatch(entrypoint: Entrypoint, watcher: OnSettled) -> None:
    watched = vars(entrypoint).get("settle")
    if isinstance(watched, _Watched):
        with suppress(ValueError):
            watched.watchers.remove(watcher)
        if watched.watchers:
            return
        if watched.before is None:
            del vars(entrypoint)["settle"]
        else:
            vars(entrypoint)["settle"] = watched.before
