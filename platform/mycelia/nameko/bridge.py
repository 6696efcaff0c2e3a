"""Extensions written for Nameko, run as they are: third-party dependency providers and entrypoints.

Nameko's own `bind()` makes the instance, with our container in Nameko's place; the bridge calls its hooks. Importing
this module imports nothing of Nameko: that happens when a service declares such an extension, and so has imported it.

| Nameko's | here |
|---|---|
| `setup`, `start`, `stop`, `kill` | in a daemon thread each: they may block |
| per-worker hooks of a `def` method | in the worker's own thread |
| per-worker hooks of an `async def` method | on the event loop: they must not block |
| `container.spawn_managed_thread(f)` | a daemon thread with `wait`, `link`, `kill`, `dead` |
| `container.spawn_worker(…, handle_result=…)` | a worker in a lane of that entrypoint; blocks the calling thread until it begins |
| `eventlet.Event` | works between threads (`nameko/thread_event.py`) |
| `eventlet.sleep`, `Timeout`, `spawn`, queues, semaphores | within one thread, whose own hub runs them; not between threads |
| Nameko's consumers over kombu (`QueueConsumer` and what builds on it) | refused with a `ConfigError`: they are not safe in threads |
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any

from mycelia.call import Call, CallKind, Outcome, current_call
from mycelia.errors import ConfigError, MyceliaError, RuntimeStateError
from mycelia.nameko.thread_event import thread_event_methods
from mycelia.runtime.container import Container
from mycelia.runtime.counterparts import extension_counterpart, set_foreign_adapters
from mycelia.runtime.extensions import DependencyProvider, Entrypoint, Extension
from mycelia.runtime.lane import Lane
from mycelia.runtime.managed_thread import run_in_daemon_thread
from mycelia.runtime.worker import WorkerContext

__all__ = ["ForeignDependency", "ForeignEntrypoint", "ForeignExtension", "WorkerAborted"]

log = logging.getLogger("mycelia.runtime")

NEEDS_EVENTLET = {
    "nameko.messaging.QueueConsumer",
    "nameko.rpc.ReplyListener",
    "nameko.rpc.RpcConsumer",
}
"""Shared extensions of Nameko's whose kombu channels are used by many greenthreads, and may not be by many threads."""

KINDS = {
    "nameko.web.handlers.HttpRequestHandler": CallKind.HTTP,
    "nameko.web.websocket.WebSocketRpc": CallKind.HTTP,
    "nameko.timer.Timer": CallKind.TIMER,
}

READY_TIMEOUT = 30.0
"""Seconds `spawn_worker()` waits for the container to start; an entrypoint may be quicker than its neighbours."""

LIFE_CYCLE_HOOKS = ("setup", "start", "stop", "kill")
WORKER_HOOKS = ("worker_setup", "worker_result", "worker_teardown")


def _class_names(value: object) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(value).__mro__]


@cache
def _use_thread_events() -> None:
    """Let `eventlet.Event` wake waiters in other threads. Once; in a process whose workers are real threads."""
    from eventlet import event, hubs, sleep

    def pause() -> Callable[[float], None] | None:
        # A thread that has a hub may have greenthreads or timeouts of its own, which need their turn.
        if not hasattr(hubs._threadlocal, "hub"):
            return None
        nap: Callable[[float], None] = sleep
        return nap

    for name, method in thread_event_methods(event.NOT_USED, pause).items():
        setattr(event.Event, name, method)


# --- binding ---------------------------------------------------------------------------------------


def _adopt_sub_extensions(foreign: Any, container: Container) -> list[Any]:
    """Give each extension that `foreign` holds its life cycle, once a container; return what runs them."""
    from nameko.extensions import iter_extensions

    adopted: list[Any] = []
    for sub_extension in iter_extensions(foreign):
        key = ("mycelia.bridge", id(sub_extension))
        if key in container.shared_extensions:
            adopted.append(container.shared_extensions[key])
            continue
        _refuse_what_needs_eventlet(sub_extension, foreign, container)
        counterpart = extension_counterpart(sub_extension) or ForeignExtension(sub_extension)
        container.shared_extensions[key] = counterpart.bind(container)
        adopted.append(container.shared_extensions[key])
    return adopted


def _refuse_what_needs_eventlet(extension: Any, foreign: Any, container: Container) -> None:
    """Raises `ConfigError` for a shared extension of Nameko's that `foreign` builds on and nothing here would serve."""
    refused = NEEDS_EVENTLET.intersection(_class_names(extension))
    if refused:
        raise ConfigError(
            f"{type(foreign).__module__}.{type(foreign).__qualname__} of service {container.service_name} builds on "
            f"{refused.pop()}, whose AMQP connection only works under eventlet. Derive it from Mycelia's own "
            "extension of the same kind, or run this service on stock Nameko beside the others."
        )


def _refuse_nested_dependencies(declared: Any) -> None:
    from nameko.extensions import DependencyProvider as NamekoDependency
    from nameko.extensions import is_dependency

    for name, nested in inspect.getmembers(declared, is_dependency):
        if type(nested).bind is NamekoDependency.bind:
            raise ConfigError(
                f"{type(declared).__qualname__}.{name}: a dependency provider cannot hold another ({type(nested).__qualname__}); "
                "Nameko cannot bind one either. Declare it on the service class."
            )


class ForeignExtension(Extension):
    """Runs the life cycle of a bound Nameko extension, in threads of its own.

    Args:
        foreign: the bound extension.
    """

    container: Container

    def __init__(self, foreign: Any) -> None:
        self.foreign = foreign

    async def setup(self) -> None:
        await self._call("setup")

    async def start(self) -> None:
        await self._call("start")

    async def stop(self) -> None:
        await self._call("stop")

    async def kill(self) -> None:
        await self._call("kill")

    async def _call(self, hook: str) -> None:
        from nameko.extensions import Extension as NamekoExtension

        if getattr(type(self.foreign), hook) is not getattr(NamekoExtension, hook):
            name = f"{type(self.foreign).__name__}.{hook}"
            await run_in_daemon_thread(getattr(self.foreign, hook), name)

    def __repr__(self) -> str:
        return f"<{type(self.foreign).__qualname__}, written for Nameko>"


# --- dependency providers --------------------------------------------------------------------------


class ForeignDependency(ForeignExtension, DependencyProvider):
    """Runs a dependency provider written for Nameko.

    Args:
        declared: the provider, as declared on the service class.
        stock_cls, counterpart: for a subclass of one of Nameko's providers: which, and what does its work here.
    """

    def __init__(
        self,
        declared: Any,
        stock_cls: type[Any] | None = None,
        counterpart: DependencyProvider | None = None,
    ) -> None:
        super().__init__(declared)
        self.stock_cls = stock_cls
        self.counterpart = counterpart

    def bind(self, container: Any, attr_name: str = "") -> Any:
        _use_thread_events()
        _refuse_nested_dependencies(self.foreign)
        instance = self._clone(container)
        instance.attr_name = attr_name
        declared = self.foreign
        if self.stock_cls is not None and self.counterpart is not None:
            instance.counterpart = self.counterpart.bind(container, attr_name)
            declared = _with_stand_in(declared, self.stock_cls)
        instance.foreign = declared.bind(container, attr_name)
        instance.foreign.mycelia_adapter = instance
        _adopt_sub_extensions(instance.foreign, container)
        container.adopt(instance)
        return instance

    async def start(self) -> None:
        shared = getattr(self.counterpart, "get_shared_dependency", None)
        self._shared = None if shared is None else (shared(False), shared(True))
        await super().start()

    def counterparts_dependency(self, worker_ctx: WorkerContext) -> Any:
        """What Nameko's own class would inject: `super().get_dependency()` of a subclass ends here."""
        if self._shared is not None:
            return self._shared[worker_ctx.is_async]
        assert self.counterpart is not None
        return self.counterpart.get_dependency(worker_ctx)

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        return self.foreign.get_dependency(worker_ctx)

    def worker_setup(self, worker_ctx: WorkerContext) -> Any:
        return self.foreign.worker_setup(worker_ctx)

    def worker_result(
        self, worker_ctx: WorkerContext, result: Any = None, exc_info: Any = None
    ) -> Any:
        return self.foreign.worker_result(worker_ctx, result, exc_info)

    def worker_teardown(self, worker_ctx: WorkerContext) -> Any:
        return self.foreign.worker_teardown(worker_ctx)


def _with_stand_in(declared: Any, stock_cls: type[Any]) -> Any:
    """`declared` again, of a class in which our counterpart stands between the user's class and Nameko's."""
    args, kwargs = declared._Extension__params
    return _stand_in_class(type(declared), stock_cls)(*args, **kwargs)


def _stand_in_class(user_cls: type[Any], stock_cls: type[Any]) -> type[Any]:
    from nameko.extensions import is_extension

    def get_dependency(self: Any, worker_ctx: WorkerContext) -> Any:
        return self.mycelia_adapter.counterparts_dependency(worker_ctx)

    def counterparts_work(self: Any, *args: Any, **kwargs: Any) -> None:
        """The counterpart's own hook is called by the container."""

    namespace: dict[str, Any] = dict.fromkeys(LIFE_CYCLE_HOOKS + WORKER_HOOKS, counterparts_work)
    namespace["get_dependency"] = get_dependency
    namespace |= {name: None for name, _ in inspect.getmembers(stock_cls, is_extension)}
    stand_in = type(stock_cls.__name__, (stock_cls,), namespace)
    return type(user_cls.__name__, (user_cls, stand_in), {"__module__": user_cls.__module__})


# --- entrypoints -----------------------------------------------------------------------------------


class WorkerAborted(MyceliaError):
    """A method ended with something that is no `Exception` (`SystemExit`, a cancellation); its cause says what.

    Nameko's entrypoints catch `Exception`, and would leave whoever waits without an answer.
    """


def _exc_info(error: BaseException | None) -> Any:
    """`sys.exc_info()` for an entrypoint's `handle_result`."""
    if error is not None and not isinstance(error, Exception):
        aborted = WorkerAborted(f"{type(error).__name__}: {error}")
        aborted.__cause__ = error
        error = aborted
    return None if error is None else (type(error), error, error.__traceback__)


class _Spawned:
    """A worker that an entrypoint asked for: what its thread waits for, and what it wants to hear."""

    __slots__ = ("_lock", "begun", "context", "handle_result", "is_handled", "refused")

    def __init__(self, handle_result: Any) -> None:
        self.handle_result = handle_result
        self.context: Any = None
        self.begun = threading.Event()
        """The worker's method has begun, or never will."""
        self.refused = False
        self.is_handled = False
        self._lock = threading.Lock()

    def finish(self, value: Any, error: BaseException | None) -> Any:
        """Tell `handle_result`, once; return the value it wants, or raise the error it wants."""
        with self._lock:
            first, self.is_handled = not self.is_handled, True
        if self.handle_result is not None and first:
            value, exc_info = self.handle_result(self.context, value, _exc_info(error))
            if exc_info is None:
                error = None
            elif not isinstance(exc_info[1], WorkerAborted):
                error = exc_info[1]
        if error is not None:
            raise error
        return value


def _observed(method: Callable[..., Any]) -> Callable[..., Any]:
    """The service's method, with its outcome told to `handle_result` before the dependencies see it."""

    def begin(service: Any) -> _Spawned:
        call = current_call.get()
        assert call is not None
        spawned: _Spawned = call.message
        spawned.context.service = service
        spawned.begun.set()
        return spawned

    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def run_async(service: Any, *args: Any, **kwargs: Any) -> Any:
            spawned = begin(service)
            value, error = None, None
            try:
                value = await method(service, *args, **kwargs)
            except BaseException as exc:  # noqa: BLE001  raised again below
                error = exc
            if spawned.handle_result is None or isinstance(error, asyncio.CancelledError):
                return spawned.finish(value, error)
            # It was written for a thread of its own, and may block.
            return await run_in_daemon_thread(
                lambda: spawned.finish(value, error), f"{method.__name__}.handle_result"
            )

        return run_async

    @wraps(method)
    def run(service: Any, *args: Any, **kwargs: Any) -> Any:
        spawned = begin(service)
        value, error = None, None
        try:
            value = method(service, *args, **kwargs)
        except BaseException as exc:  # noqa: BLE001  raised again by `finish`
            error = exc
        return spawned.finish(value, error)

    return run


class ForeignEntrypoint(ForeignExtension, Entrypoint):
    """Runs an entrypoint written for Nameko.

    Args:
        declared: the entrypoint, as declared on the method.
    """

    container: Container

    def __init__(self, declared: Any) -> None:
        Entrypoint.__init__(
            self,
            expected_exceptions=declared.expected_exceptions,
            sensitive_arguments=declared.sensitive_arguments,
        )
        self.foreign = declared
        kinds = [KINDS[name] for name in _class_names(declared) if name in KINDS]
        self.kind = kinds[0] if kinds else CallKind.OTHER
        self._lane: Lane | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopping = False
        self._method: Callable[..., Any] | None = None
        self._sources: list[Any] = []
        """What brings this entrypoint its work; told to bring no more before the workers end."""

    def bind(self, container: Any, method_name: str = "") -> Any:
        _use_thread_events()
        instance = self._clone(container)
        instance.method_name = method_name
        instance.foreign = self.foreign.bind(container, method_name)
        container.set_spawner(instance.foreign, instance.spawn)
        instance._sources = [
            extension
            for extension in _adopt_sub_extensions(instance.foreign, container)
            if hasattr(extension, "stop_consuming")
        ]
        container.adopt(instance)
        return instance

    @property
    def method(self) -> Callable[..., Any]:
        if self._method is None:
            self._method = _observed(super().method)
        return self._method

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lane = self.container.make_lane(self, self._settle)
        self._ready.set()
        await super().start()

    async def stop(self) -> None:
        for source in self._sources:
            source.stop_consuming()
        await super().stop()
        self._refuse_waiting()

    async def kill(self) -> None:
        await super().kill()
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        self._is_stopping = True
        self._ready.set()
        if self._lane is not None:
            for call in self._lane.take_backlog():
                self._refuse(call.message)

    def spawn(
        self,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        context_data: dict[str, Any] | None,
        handle_result: Any,
    ) -> WorkerContext:
        """`Container.spawn_worker()` for this entrypoint."""
        if not self._ready.wait(READY_TIMEOUT):
            raise RuntimeStateError(
                f"{self!r}: spawn_worker() was called before the service had started; wait for start()."
            )
        spawned = _Spawned(handle_result)
        call = Call(
            self.kind,
            self.container.service_name,
            self.method_name,
            tuple(args),
            kwargs,
            # The same dict, as in Nameko: what a worker puts in is there for the next one on a websocket.
            context={} if context_data is None else context_data,
            message=spawned,
            parent_calls_tracked=self.container.settings.parent_calls_tracked,
        )
        is_async = inspect.iscoroutinefunction(self.method)
        context = spawned.context = WorkerContext(self.container, self, call, is_async)
        if self._loop is None:
            self._refuse(spawned)
        elif threading.get_ident() == self.container.loop_thread:
            self._submit(call)
            return context
        else:
            self._loop.call_soon_threadsafe(self._submit, call)
        spawned.begun.wait()
        if spawned.refused:
            raise _container_being_killed(self.container.service_name)
        return context

    def _submit(self, call: Call) -> None:
        if self._is_stopping or self._lane is None:
            self._refuse(call.message)
        else:
            self._lane.submit(call)

    def _refuse(self, spawned: _Spawned) -> None:
        spawned.refused = True
        spawned.begun.set()

    def _settle(self, call: Call, outcome: Outcome) -> None:
        spawned: _Spawned = call.message
        spawned.begun.set()
        error = outcome.error
        if error is None:
            return
        if isinstance(error, self.expected_exceptions):
            log.warning(
                "worker_raised call=%s error=%s: %s", call.target, type(error).__name__, error
            )
        else:
            log.error("worker_failed call=%s", call.target, exc_info=error)
        if spawned.handle_result is not None and not spawned.is_handled:
            # The method never ran (a dependency failed), or never ended: somebody may wait for the result.
            threading.Thread(
                target=self._tell, args=(spawned, error), name="mycelia:handle_result", daemon=True
            ).start()

    def _tell(self, spawned: _Spawned, error: BaseException) -> None:
        try:
            spawned.finish(None, error)
        except BaseException as exc:
            if exc is not error:
                log.exception("handle_result_failed entrypoint=%r", self)


def _container_being_killed(service: str) -> Exception:
    """Nameko's own class, which entrypoints catch to put their message back."""
    error: Exception = sys.modules["nameko.exceptions"].ContainerBeingKilled(
        f"service {service} stops"
    )
    return error


set_foreign_adapters(ForeignDependency, ForeignEntrypoint)
