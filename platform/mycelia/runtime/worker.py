"""One worker: the life of one call inside a service, from a fresh instance to torn-down dependencies.

`Invocation` is compiled once for each entrypoint, so that a worker of a service without per-worker hooks costs an
instance and a method call. The hook order is Nameko's: `get_dependency` of all, `worker_setup` of all, the method,
`worker_result` of all, `worker_teardown` of all. The message is settled after the last of them (see
docs/decisions/0001), so a provider that commits in `worker_result` and fails makes an error, not a lost write.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from mycelia.call import Call, Outcome, current_call
from mycelia.runtime.extensions import DependencyProvider, Entrypoint
from mycelia.wire import CALL_ID_STACK

if TYPE_CHECKING:
    from mycelia.runtime.container import Container

__all__ = ["Invocation", "WorkerContext"]


class WorkerContext:
    """What a dependency provider may know of a worker. Attribute names are Nameko's (nameko/containers.py:61).

    Contexts of one call are equal, so a provider may keep what belongs to a worker in a dict with the context as key.
    """

    def __init__(self, container: Container, entrypoint: Entrypoint, call: Call, is_async: bool):
        self.container = container
        self.entrypoint = entrypoint
        self.call = call
        self.is_async = is_async
        """Whether the worker is an `async def` on the event loop, or a `def` in a thread."""
        self.service: Any = None
        """The worker's service instance; `None` until `get_dependency` begins."""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.container.config

    @property
    def service_name(self) -> str:
        return self.container.service_name

    @property
    def args(self) -> Any:
        return self.call.args

    @property
    def kwargs(self) -> dict[str, Any]:
        return self.call.kwargs

    @property
    def data(self) -> dict[str, Any]:
        """The call's context data; what is put here goes on with every call the worker makes."""
        return self.call.context

    @property
    def context_data(self) -> dict[str, Any]:
        """A copy of `data` as the next call would send it: its call ids end with this worker's own."""
        return {**self.call.context, CALL_ID_STACK: self.call.call_id_stack}

    @property
    def call_id(self) -> str:
        return self.call.call_id

    @property
    def call_id_stack(self) -> list[str]:
        return self.call.call_id_stack

    @property
    def origin_call_id(self) -> str | None:
        """The first of the calls that led here; `None` when this is the first."""
        stack = self.call.call_id_stack
        return stack[0] if len(stack) > 1 else None

    @property
    def immediate_parent_call_id(self) -> str | None:
        stack = self.call.call_id_stack
        return stack[-2] if len(stack) > 1 else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkerContext) and other.call is self.call

    def __hash__(self) -> int:
        return id(self.call)

    def __repr__(self) -> str:
        return f"<WorkerContext [{self.service_name}.{self.entrypoint.method_name}]>"


Hook = Callable[..., Any]


class Invocation:
    """How to run the method of one entrypoint, worked out once at the container's start.

    Args:
        container: the started container; its dependencies are bound and set up.
        entrypoint: whose method to run.
        loop: where `async def` hooks of a `def` method run.
    """

    def __init__(
        self, container: Container, entrypoint: Entrypoint, loop: asyncio.AbstractEventLoop
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
        for provider in container.dependencies:
            self._compile(provider)
        self._plain = not (self._getters or self._setups or self._results or self._teardowns)

    def _compile(self, provider: DependencyProvider) -> None:
        assert provider.attr_name is not None
        shared = getattr(provider, "get_shared_dependency", None)
        if shared is not None:
            self._constants[provider.attr_name] = shared(self.is_async)
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

    async def run(self, call: Call) -> Outcome:
        """Run an `async def` method on the loop. Never raises: what was raised is the outcome's error."""
        current_call.set(call)
        if not self._plain:
            return await self._run_with_hooks(call)
        try:
            service = self._service_cls()
            service.__dict__.update(self._constants)
            value = await self.method(service, *call.args, **call.kwargs)
            if self._encode is None:
                return Outcome(value)
            return Outcome(value, body=self._encode(call, value))
        except BaseException as exc:  # noqa: BLE001  the worker boundary: every error becomes an outcome
            return Outcome(error=exc)

    async def _run_with_hooks(self, call: Call) -> Outcome:
        context = WorkerContext(self.container, self.entrypoint, call, True)
        injected = False
        try:
            service = context.service = self._service_cls()
            service.__dict__.update(self._constants)
            for name, get in self._getters:
                value = get(context)
                setattr(service, name, await value if inspect.isawaitable(value) else value)
            injected = True
            for hook in self._setups:
                await _call_hook(hook, context)
            value = await self.method(service, *call.args, **call.kwargs)
            outcome = Outcome(
                value, body=None if self._encode is None else self._encode(call, value)
            )
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            outcome = Outcome(error=exc)
        if not injected:
            return outcome
        for hook in self._results:
            outcome = await _guarded(
                outcome, hook, context, _value(outcome), _exc_info(outcome.error)
            )
        for hook in self._teardowns:
            outcome = await _guarded(outcome, hook, context)
        return outcome

    def run_in_thread(self, call: Call) -> Outcome:
        """Run a `def` method, with all of its hooks, in the calling thread. Never raises."""
        current_call.set(call)
        if not self._plain:
            return self._run_in_thread_with_hooks(call)
        try:
            service = self._service_cls()
            service.__dict__.update(self._constants)
            value = self.method(service, *call.args, **call.kwargs)
            if self._encode is None:
                return Outcome(value)
            return Outcome(value, body=self._encode(call, value))
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            return Outcome(error=exc)

    def _run_in_thread_with_hooks(self, call: Call) -> Outcome:
        context = WorkerContext(self.container, self.entrypoint, call, False)
        injected = False
        try:
            service = context.service = self._service_cls()
            service.__dict__.update(self._constants)
            for name, get in self._getters:
                setattr(service, name, self._resolve(get(context)))
            injected = True
            for hook in self._setups:
                self._resolve(hook(context))
            value = self.method(service, *call.args, **call.kwargs)
            outcome = Outcome(
                value, body=None if self._encode is None else self._encode(call, value)
            )
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            outcome = Outcome(error=exc)
        if not injected:
            return outcome
        for hook in self._results:
            outcome = self._guarded_in_thread(
                outcome, hook, context, _value(outcome), _exc_info(outcome.error)
            )
        for hook in self._teardowns:
            outcome = self._guarded_in_thread(outcome, hook, context)
        return outcome

    def _resolve(self, value: Any) -> Any:
        """What a hook returned; an awaitable is awaited on the loop while this thread waits."""
        if not inspect.isawaitable(value):
            return value
        return asyncio.run_coroutine_threadsafe(_outcome_of(value), self._loop).result().unwrap()

    def _guarded_in_thread(self, outcome: Outcome, hook: Hook, *args: Any) -> Outcome:
        try:
            self._resolve(hook(*args))
        except BaseException as exc:  # noqa: BLE001  the worker boundary
            return _first_error(outcome, exc)
        return outcome


async def _call_hook(hook: Hook, *args: Any) -> None:
    value = hook(*args)
    if inspect.isawaitable(value):
        await value


async def _guarded(outcome: Outcome, hook: Hook, *args: Any) -> Outcome:
    """Run a hook after the method: every hook gets its turn, and the first error is the outcome's."""
    try:
        await _call_hook(hook, *args)
    except BaseException as exc:  # noqa: BLE001  the worker boundary
        return _first_error(outcome, exc)
    return outcome


def _first_error(outcome: Outcome, error: BaseException) -> Outcome:
    if outcome.error is None:
        return Outcome(error=error)
    outcome.error.add_note(f"then a dependency's hook raised {type(error).__name__}: {error}")
    return outcome


def _value(outcome: Outcome) -> Any:
    return None if outcome.error is not None else outcome.value


def _exc_info(error: BaseException | None) -> Any:
    return None if error is None else (type(error), error, error.__traceback__)


async def _outcome_of(value: Awaitable[Any]) -> Outcome:
    """What `value` comes to. A SystemExit or KeyboardInterrupt that left the task would end the event loop."""
    try:
        return Outcome(await value)
    except BaseException as exc:  # noqa: BLE001  the worker boundary
        return Outcome(error=exc)


def _overrides(extension: object, base: type, name: str) -> bool:
    """Whether `extension` gives hook `name` a body of its own (its class does, or a foreign base without ours)."""
    return getattr(type(extension), name, None) is not getattr(base, name)
