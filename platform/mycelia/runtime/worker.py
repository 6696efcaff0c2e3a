"""One worker: the life of one call inside a service, from a fresh instance to torn-down dependencies.

`Invocation` is compiled once for each entrypoint, so that a worker of a service without per-worker hooks costs an
instance and a method call. The hook order is Nameko's: `get_dependency` of all, `worker_setup` of all, the method,
`worker_result` of all, `worker_teardown` of all. The message is settled after the last of them (see
docs/decisions/0001), so a provider that commits in `worker_result` and fails makes an error, not a lost write.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from types import CoroutineType
from typing import Any, Protocol

from mycelia.call import Call, Outcome, outcome_of
from mycelia.errors import RuntimeStateError, describe
from mycelia.runtime.dependencies import DependencyProvider
from mycelia.runtime.extensions import BoundTo, Entrypoint
from mycelia.runtime.forgotten_awaits import forgotten, returned, take_forgotten
from mycelia.runtime.worker_context import WorkerContext

__all__ = ["Invocation", "WorkerWatcher"]


Hook = Callable[..., Any]
Steps = Generator[Any, Any, Outcome]
"""A worker's life as the things to resolve on its way (what a hook or the method returned, to be awaited if need be);
each is answered with what it came to, or its error is thrown in. What the generator returns is the outcome."""


class WorkerWatcher(Protocol):
    """Is told of each step of a worker, after the service's dependencies and where they are: as their hooks, in its thread
    or on the loop. What a step raises is the call's error."""

    def worker_setup(self, worker_ctx: WorkerContext) -> Any: ...

    def worker_result(self, worker_ctx: WorkerContext, result: Any, exc_info: Any) -> Any: ...

    def worker_teardown(self, worker_ctx: WorkerContext) -> Any: ...


class Invocation:
    """How to run the method of one entrypoint, worked out once at the container's start.

    Args:
        container: what the workers are told they run in; started.
        entrypoint: whose method to run.
        dependencies: the providers of the service, bound and set up.
        loop: where `async def` hooks of a `def` method run.
    """

    def __init__(
        self,
        container: BoundTo,
        entrypoint: Entrypoint,
        dependencies: Iterable[DependencyProvider],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.container = container
        self.entrypoint = entrypoint
        self.method = entrypoint.method
        self.is_async = inspect.iscoroutinefunction(self.method)
        self._loop = loop
        self._service_cls = container.service_cls
        self._encode: Callable[[Call, Any], bytes | None] | None = (
            entrypoint.encode_result
            if _overrides(entrypoint, Entrypoint, "encode_result")
            else None
        )
        self._constants: dict[str, Any] = {}
        self._getters: list[tuple[str, Hook]] = []
        self._setups: list[Hook] = []
        self._results: list[Hook] = []
        self._teardowns: list[Hook] = []
        for provider in dependencies:
            self._compile(provider)
        self._look_whether_plain()

    def _look_whether_plain(self) -> None:
        self._plain = not (self._getters or self._setups or self._results or self._teardowns)

    def _compile(self, provider: DependencyProvider) -> None:
        assert provider.attr_name is not None
        if provider.is_shared:
            self._constants[provider.attr_name] = provider.shared_dependency(self.is_async)
        elif _overrides(provider, DependencyProvider, "get_dependency"):
            self._getters.append((provider.attr_name, provider.get_dependency))
        else:
            self._constants[provider.attr_name] = None
        for hooks, name in (
            (self._setups, "worker_setup"),
            (self._results, "worker_result"),
            (self._teardowns, "worker_teardown"),
        ):
            if _overrides(provider, DependencyProvider, name):
                hooks.append(getattr(provider, name))

    def watch(self, watcher: WorkerWatcher) -> None:
        """Tell `watcher` of the steps of workers from now on, of those that run as well. From any thread."""
        # New lists, because workers go through the old ones.
        self._setups = [*self._setups, watcher.worker_setup]
        self._results = [*self._results, watcher.worker_result]
        self._teardowns = [*self._teardowns, watcher.worker_teardown]
        self._look_whether_plain()

    def unwatch(self, watcher: WorkerWatcher) -> None:
        """Tell it no more. From any thread."""
        self._setups = [hook for hook in self._setups if hook != watcher.worker_setup]
        self._results = [hook for hook in self._results if hook != watcher.worker_result]
        self._teardowns = [hook for hook in self._teardowns if hook != watcher.worker_teardown]
        self._look_whether_plain()

    async def run(self, call: Call) -> Outcome:
        """Run an `async def` method on the loop. Never raises: what was raised is the outcome's error."""
        try:
            arguments = call.decode_if_small()
            if arguments is None:
                arguments = await asyncio.to_thread(call.decode)
        except BaseException as exc:  # noqa: BLE001  the worker boundary: every error becomes an outcome
            return _not_begun(call.reason_for(exc))
        if not self._plain:
            return await self._drive(self._steps(call, True))
        service = None
        try:
            service = self._service_cls()
            service.__dict__.update(self._constants)
            value = await self.method(service, *arguments[0], **arguments[1])
            mistake: RuntimeStateError | None = None
            if forgotten or type(value) is CoroutineType:
                mistake = _forgotten_by(call, value)
            if mistake is not None:
                outcome = Outcome(error=call.reason_for(mistake))
            elif self._encode is None:
                outcome = Outcome(value)
            else:
                outcome = Outcome(value, None, None, self._encode(call, value))
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            if forgotten:  # the error of the method's own comes first
                take_forgotten(call)
            # No name for the outcome: the error's traceback has this frame, and they would hold each other.
            if self._plain:
                return Outcome(None, call.reason_for(exc))
            return await self._drive(
                self._watched_end(call, True, service, Outcome(None, call.reason_for(exc)))
            )
        if self._plain:
            return outcome
        return await self._drive(self._watched_end(call, True, service, outcome))

    def run_in_thread(self, call: Call) -> Outcome:
        """Run a `def` method, with all of its hooks, in the calling thread. Never raises."""
        arguments = call.arguments
        if arguments is None:
            try:
                arguments = call.decode()
            except BaseException as exc:  # noqa: BLE001  the worker boundary
                return _not_begun(call.reason_for(exc))
        if not self._plain:
            return self._drive_in_thread(self._steps(call, False))
        service = None
        try:
            service = self._service_cls()
            service.__dict__.update(self._constants)
            value = self.method(service, *arguments[0], **arguments[1])
            if type(value) is CoroutineType:
                outcome = Outcome(error=_never_awaited(call, value))
            elif self._encode is None:
                outcome = Outcome(value)
            else:
                outcome = Outcome(value, None, None, self._encode(call, value))
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            if self._plain:
                return Outcome(None, exc)
            return self._drive_in_thread(
                self._watched_end(call, False, service, Outcome(None, exc))
            )
        if self._plain:
            return outcome
        return self._drive_in_thread(self._watched_end(call, False, service, outcome))

    def _watched_end(self, call: Call, is_async: bool, service: Any, outcome: Outcome) -> Steps:
        """The last steps of a worker that began when nobody watched."""
        context = WorkerContext(self.container, self.entrypoint, call, is_async)
        context.service = service
        return self._last_steps(context, outcome)

    def _steps(self, call: Call, is_async: bool) -> Steps:
        """The order of a worker's life: the one place where it is written."""
        context = WorkerContext(self.container, self.entrypoint, call, is_async)
        injected = False
        try:
            service = context.service = self._service_cls()
            service.__dict__.update(self._constants)
            for name, get in self._getters:
                setattr(service, name, (yield get(context)))
            injected = True
            for hook in self._setups:
                yield hook(context)
            value = self.method(service, *call.args, **call.kwargs)
            mistake: RuntimeStateError | None = None
            if is_async:  # what a `def` method returns is its result, even if it could be awaited
                value = yield value
                if forgotten or type(value) is CoroutineType:
                    mistake = _forgotten_by(call, value)
            elif type(value) is CoroutineType:
                mistake = _never_awaited(call, value)
            if mistake is not None:
                outcome = Outcome(error=call.reason_for(mistake))
            else:
                body = None if self._encode is None else self._encode(call, value)
                outcome = Outcome(value, body=body)
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            if forgotten:
                take_forgotten(call)
            outcome = Outcome(error=call.reason_for(exc))
        if not injected:
            return outcome
        return (yield from self._last_steps(context, outcome))

    def _last_steps(self, context: WorkerContext, outcome: Outcome) -> Steps:
        for hook in self._results:
            try:
                yield hook(context, outcome.value, _exc_info(outcome.error))
            except BaseException as exc:  # noqa: BLE001  every hook gets its turn
                outcome = _first_error(outcome, exc)
        for hook in self._teardowns:
            try:
                yield hook(context)
            except BaseException as exc:  # noqa: BLE001  every hook gets its turn
                outcome = _first_error(outcome, exc)
        return outcome

    async def _drive(self, steps: Steps) -> Outcome:
        step: Callable[[Any], Any] = steps.send
        answer: Any = None
        while True:
            try:
                value = step(answer)
            except StopIteration as end:
                return _outcome(end)
            try:
                answer = await value if inspect.isawaitable(value) else value
                step = steps.send
            except BaseException as exc:  # noqa: BLE001  the worker boundary
                step, answer = steps.throw, exc

    def _drive_in_thread(self, steps: Steps) -> Outcome:
        """What is awaitable is awaited on the loop while this thread waits."""
        step: Callable[[Any], Any] = steps.send
        answer: Any = None
        while True:
            try:
                value = step(answer)
            except StopIteration as end:
                return _outcome(end)
            if inspect.isawaitable(value):
                done = asyncio.run_coroutine_threadsafe(outcome_of(value), self._loop).result()
                step = steps.send if done.error is None else steps.throw
                answer = done.value if done.error is None else done.error
            else:
                step, answer = steps.send, value


def _forgotten_by(call: Call, value: Any) -> RuntimeStateError | None:
    """The error of a method that has forgotten an `await`, and thought that something was done.

    Never raised: its traceback would show this file, and the line to mend is in its text.
    """
    return returned(value) if type(value) is CoroutineType else take_forgotten(call)


def _outcome(end: StopIteration) -> Outcome:
    outcome: Outcome = end.value
    return outcome


def _never_awaited(call: Call, value: CoroutineType[Any, Any, Any]) -> RuntimeStateError:
    """What a `def` method returned would never run. That it was meant to be awaited shows only now."""
    name = value.__qualname__
    value.close()
    return RuntimeStateError(
        f"{call.target.name} is called as a `def` method, in a thread, and returned the coroutine of {name}, which nobody "
        "awaits: nothing of it has run. Make the method `async def`; or, if a decorator stands between, its wrapper."
    )


def _not_begun(error: BaseException) -> Outcome:
    """The arguments cannot be read, or do not fit; an error of any other kind is a bug, and as much a refusal."""
    return Outcome(error=error, is_refused=not isinstance(error, asyncio.CancelledError))


def _first_error(outcome: Outcome, error: BaseException) -> Outcome:
    if outcome.error is None:
        return Outcome(error=error)
    with suppress(Exception):  # notes are the application's, as its errors are
        outcome.error.add_note(f"then a dependency's hook raised {describe(error)}")
    return outcome


def _exc_info(error: BaseException | None) -> Any:
    return None if error is None else (type(error), error, error.__traceback__)


def _overrides(extension: object, base: type, name: str) -> bool:
    """Whether `extension` gives hook `name` a body of its own (its class does, or a foreign base without ours)."""
    return getattr(type(extension), name, None) is not getattr(base, name)
