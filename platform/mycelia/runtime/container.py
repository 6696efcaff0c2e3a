"""The container: one service class, its extensions, its workers, and their life cycle."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mycelia.errors import ConfigError
from mycelia.runtime.counterparts import bind_entrypoint, dependency_counterpart
from mycelia.runtime.extensions import (
    ENTRYPOINTS_ATTRIBUTE,
    Entrypoint,
    Extension,
    maybe_await,
)
from mycelia.runtime.handover import hand_over
from mycelia.runtime.host import Host
from mycelia.runtime.lane import Lane, OnExpired, OnSettle, ServiceSlots
from mycelia.runtime.managed_thread import ManagedThread, run_in_daemon_thread
from mycelia.runtime.threads import ThreadPool
from mycelia.runtime.worker import Invocation, WorkerContext

__all__ = ["Container", "find_entrypoints", "get_service_name"]

log = logging.getLogger("mycelia.runtime")

DEFAULT_MAX_WORKERS = 10
"""Threads for `def` methods where `max_workers` says nothing (nameko/constants.py)."""


def get_service_name(service_cls: type) -> str:
    """The service's `name`.

    Raises:
        ConfigError: there is none, or it is not text.
    """
    name = getattr(service_cls, "name", None)
    if name is None:
        raise ConfigError(
            f"service class {service_cls.__qualname__} ({service_cls.__module__}) has no name. "
            f'Give it one: `name = "{service_cls.__name__.lower()}"`.'
        )
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"service class {service_cls.__qualname__}: `name` must be text, got {name!r}."
        )
    return name


def find_entrypoints(service_cls: type) -> list[tuple[str, Any]]:
    """The entrypoints that a class declares, ours and Nameko's, as `(method name, declaration)`."""
    return [
        (name, declared)
        for name, method in inspect.getmembers(service_cls, inspect.isfunction)
        for declared in getattr(method, ENTRYPOINTS_ATTRIBUTE, ())
    ]


class Container:
    """Runs one service class.

    Under `nameko run`, Nameko makes it (`SERVICE_CONTAINER_CLS: mycelia.Container`) and the process is handed over
    to the native runtime, where `Runner` makes it.

    Args:
        service_cls: the service; it must have a `name`.
        config: the whole configuration.
        host: what the services of this process share; only the native runtime gives it.
    """

    is_native = True

    def __init__(
        self, service_cls: type, config: Mapping[str, Any], host: Host | None = None
    ) -> None:
        if host is None:
            hand_over(f"service {getattr(service_cls, 'name', service_cls.__name__)!r}")
        self.service_cls = service_cls
        self.service_name = get_service_name(service_cls)
        self.config = config
        self.host = host
        self.settings = host.settings
        self.max_workers = host.settings.max_workers or DEFAULT_MAX_WORKERS
        self.serializer = host.serializers.default.name
        self.accept = host.serializers.accepted_content_types
        self.shared_extensions: dict[Any, Any] = {}
        self.extensions: list[Any] = []
        """Every bound extension, sub-extensions before what uses them."""
        self.dependencies: list[Any] = []
        self.entrypoints: list[Any] = []
        self.started = False
        """Whether `start()` has completed and `stop()` has not begun."""
        self._begun = False
        self._slots = ServiceSlots(host.settings.max_workers)
        self._lanes: list[Lane] = []
        self._threads: ThreadPool | None = None
        self.on_failure: Callable[[BaseException], None] | None = None
        """Told, on the loop, of an error after which the service cannot go on; set by the runner."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.loop_thread: int | None = None
        """The event loop's thread, where nothing may block; `None` before the start."""
        self._spawners: dict[int, Callable[..., Any]] = {}
        self._managed_threads: set[ManagedThread] = set()
        self._bind()

    def _bind(self) -> None:
        for name, member in inspect.getmembers(self.service_cls):
            provider = dependency_counterpart(member)
            if provider is not None:
                self.dependencies.append(provider.bind(self, name))
        for name, declared in find_entrypoints(self.service_cls):
            self.entrypoints.append(bind_entrypoint(declared, self, name))

    def adopt(self, extension: Extension) -> None:
        """Take part in `extension`'s life cycle; called by `Extension.bind()`."""
        self.extensions.append(extension)

    @property
    def needs_broker(self) -> bool:
        return any(extension.needs_broker for extension in self.extensions)

    # --- for entrypoints ----------------------------------------------------------------------

    def make_lane(
        self, entrypoint: Entrypoint, settle: OnSettle, on_expired: OnExpired | None = None
    ) -> Lane:
        """The lane in which `entrypoint`'s workers run; call it in `setup()` or `start()`.

        `settle(call, outcome)` is called once for each call submitted to the lane.
        """
        loop = asyncio.get_running_loop()
        if self._threads is None:
            self._threads = ThreadPool(
                loop, self._thread_count(), name=f"mycelia-{self.service_name}"
            )
        invocation = Invocation(self, entrypoint, loop)
        lane = Lane(
            invocation,
            settle,
            limit=self.concurrency_of(entrypoint),
            slots=self._slots,
            threads=self._threads,
            loop=loop,
            middleware=self.host.inbound,
            on_expired=on_expired,
        )
        self._lanes.append(lane)
        return lane

    def concurrency_of(self, entrypoint: Entrypoint) -> int:
        """Workers at once: the entrypoint's own setting, else `max_workers`, else the default for its kind."""
        if entrypoint.concurrency is not None:
            return entrypoint.concurrency
        if self.settings.max_workers is not None:
            return self.settings.max_workers
        if inspect.iscoroutinefunction(entrypoint.method):
            return self.settings.mycelia.async_concurrency
        return DEFAULT_MAX_WORKERS

    def prefetch_of(self, entrypoint: Entrypoint) -> int:
        """Messages outstanding: the entrypoint's own setting, else twice its concurrency.

        Twice, so that the next message is here when a worker ends, and no more, so that an instance does not
        hoard what others could work on.
        """
        if entrypoint.prefetch is not None:
            return entrypoint.prefetch
        return min(2 * self.concurrency_of(entrypoint), 65535)

    def shared_prefetch_of(self, entrypoints: Iterable[Entrypoint]) -> int:
        """As `prefetch_of()`, for entrypoints that share one queue.

        Their sum, or a busy one would keep the others from their own workers; no more than one's where `max_workers`
        bounds them together.
        """
        each = [self.prefetch_of(entrypoint) for entrypoint in entrypoints]
        return min(sum(each) if self.settings.max_workers is None else max(each), 65535)

    def _thread_count(self) -> int:
        """Enough threads that no lane of `def` methods waits for one beyond its own limit.

        So methods of one service that call each other cannot take all threads and wait for ever. They start when first needed.
        """
        total = sum(
            self.concurrency_of(entrypoint)
            for entrypoint in self.entrypoints
            if not inspect.iscoroutinefunction(entrypoint.method)
        )
        return min(total or 1, self.settings.max_workers or total or 1)

    def set_spawner(self, entrypoint: Any, spawn: Callable[..., Any]) -> None:
        """From now on `spawn_worker(entrypoint, …)` is `spawn(…)`; called by the bridge when it binds `entrypoint`."""
        self._spawners[id(entrypoint)] = spawn

    def spawn_worker(
        self,
        entrypoint: Any,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        context_data: dict[str, Any] | None = None,
        handle_result: Any = None,
    ) -> WorkerContext:
        """Run a worker for an entrypoint written for Nameko, as Nameko's container does; from any thread.

        Blocks the calling thread until the worker has begun, so an entrypoint is slowed down when the service is
        full. `handle_result(worker_ctx, result, exc_info)`, if given, sees the outcome in the worker and returns the
        `(result, exc_info)` that dependencies see.

        Raises:
            ConfigError: `entrypoint` is not one of this container's Nameko entrypoints.
            nameko.exceptions.ContainerBeingKilled: the service stops and the worker will not run.
        """
        spawn = self._spawners.get(id(entrypoint))
        if spawn is None:
            raise ConfigError(
                f"{type(entrypoint).__name__} of service {self.service_name}: spawn_worker() serves entrypoints "
                "written for Nameko. Derive from mycelia.Entrypoint and use make_lane()."
            )
        context: WorkerContext = spawn(args, kwargs, context_data, handle_result)
        return context

    def spawn_managed_thread(
        self, fn: Callable[[], Any], identifier: str | None = None
    ) -> ManagedThread:
        """Run `fn()` in a daemon thread of this container, for extensions written for Nameko; from any thread.

        An `Exception` that leaves `fn` ends the service, as in Nameko: what it did, nobody does any more. Threads
        that still run when every extension has stopped are killed.
        """
        name = identifier or getattr(fn, "__name__", "managed")
        thread = ManagedThread(fn, f"{self.service_name}:{name}", self._on_thread_exit)
        self._managed_threads.add(thread)
        if thread.dead:
            self._managed_threads.discard(thread)
        return thread

    def _on_thread_exit(self, thread: ManagedThread) -> None:
        self._managed_threads.discard(thread)
        error = thread.error
        if isinstance(error, Exception):
            log.critical("managed_thread_failed thread=%s", thread.name, exc_info=error)
            if self._loop is not None and self.on_failure is not None and self._begun:
                self._loop.call_soon_threadsafe(self.on_failure, error)

    # --- life cycle ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Set up all extensions, then start them all. Raises the first error, after the others have ended."""
        log.debug("service_starting service=%s", self.service_name)
        self._begun = True
        self._loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        await self._each(self.extensions, "setup")
        await self._each(self.extensions, "start")
        self.started = True
        log.info("service_started service=%s", self.service_name)

    async def _each(self, extensions: Iterable[Any], hook: str) -> None:
        async def run(extension: Any) -> None:
            await maybe_await(getattr(extension, hook)())

        async with _first_error_wins() as group:
            for extension in extensions:
                group.create_task(run(extension), name=f"mycelia:{hook}:{extension!r}")

    async def stop(self, grace: float | None = None) -> None:
        """Stop in order: entrypoints, then workers, then dependencies, then what they share.

        Workers get `grace` seconds (the setting `mycelia.grace` by default); what is unfinished then is cancelled
        and goes back to its queue. Idempotent. Never raises: errors of hooks are logged.
        """
        if not self._begun:
            return
        self._begun = self.started = False
        grace = self.settings.mycelia.grace if grace is None else grace
        await self._each_quietly(self.entrypoints, "stop")
        await self._finish_workers(grace)
        entrypoints = set(map(id, self.entrypoints))
        dependencies = set(map(id, self.dependencies))
        await self._each_quietly(self.dependencies, "stop")
        await self._each_quietly(
            [e for e in self.extensions if id(e) not in entrypoints | dependencies], "stop"
        )
        await self._end_managed_threads()
        if self._threads is not None:
            self._threads.close()
        log.info("service_stopped service=%s", self.service_name)

    async def _end_managed_threads(self) -> None:
        threads = list(self._managed_threads)
        for thread in threads:
            thread.kill()
        if threads:  # a moment for their `finally` blocks; they are daemons and keep nothing alive
            ends = [
                run_in_daemon_thread(partial(thread.join, THREAD_END_TIMEOUT), f"end-{thread.name}")
                for thread in threads
            ]
            if not all(await asyncio.gather(*ends)):
                log.warning("managed_threads_left service=%s", self.service_name)

    async def _finish_workers(self, grace: float) -> None:
        lanes = self._lanes
        active = sum(lane.active for lane in lanes)
        if active:
            log.info(
                "service_draining service=%s workers=%d grace_s=%g",
                self.service_name,
                active,
                grace,
            )
        try:
            async with asyncio.timeout(grace):
                for lane in lanes:
                    await lane.wait_idle()
        except TimeoutError:
            unfinished = sum(lane.active for lane in lanes)
            log.warning(
                "grace_over service=%s unfinished=%d: cancelled; their messages go back to the queue",
                self.service_name,
                unfinished,
            )
        await asyncio.gather(*(lane.cancel() for lane in lanes))

    async def kill(self) -> None:
        """Stop without grace: workers are cancelled at once, their messages go back to the queue.

        Also while `stop()` is under way, which then does not wait for its grace.
        """
        await self._each_quietly(self.extensions, "kill")
        if self._begun:
            await self.stop(grace=0)
        else:
            await asyncio.gather(*(lane.cancel() for lane in self._lanes))

    async def _each_quietly(self, extensions: Iterable[Any], hook: str) -> None:
        async def run(extension: Any) -> None:
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await maybe_await(getattr(extension, hook)())
            except Exception:
                log.exception(
                    "extension_%s_failed service=%s extension=%r",
                    hook,
                    self.service_name,
                    extension,
                )

        await asyncio.gather(*map(run, extensions))

    def __repr__(self) -> str:
        return f"<Container [{self.service_name}]>"


THREAD_END_TIMEOUT = 1.0
"""Seconds a managed thread that is killed has for its clean-up."""

HOOK_TIMEOUT = 10.0
"""Seconds an extension's `stop()` or `kill()` may take; a stuck one must not keep the process alive."""


class _first_error_wins:
    """A task group that raises the first error itself instead of an `ExceptionGroup`: users read one clear line."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> asyncio.TaskGroup:
        return await self._group.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> None:
        try:
            await self._group.__aexit__(*exc_info)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
