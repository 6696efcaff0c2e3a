"""The container: one service class, its extensions, its workers, and their life cycle."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec

from mycelia.call import Middleware, Target
from mycelia.errors import RuntimeStateError, describe
from mycelia.handover import hand_over
from mycelia.log_event import event
from mycelia.runtime.adaptive_prefetch import AdaptivePrefetch
from mycelia.runtime.declarations import (
    bind_dependency,
    bind_entrypoint,
    find_entrypoints,
    get_service_name,
)
from mycelia.runtime.extensions import Entrypoint, Extension, maybe_await
from mycelia.runtime.forgotten_awaits import watch_forgotten_awaits
from mycelia.runtime.host import Host
from mycelia.runtime.keyed_lane import KeyedLane, KeyOrder
from mycelia.runtime.lane import Lane
from mycelia.runtime.service_slots import ServiceSlots
from mycelia.runtime.settings import Settings
from mycelia.runtime.statistics import ServiceStatistics, by_name
from mycelia.runtime.threads import ThreadPool
from mycelia.runtime.worker import Invocation, WorkerWatcher

__all__ = ["DEFAULT_MAX_WORKERS", "Container"]

log = logging.getLogger("mycelia.runtime")

NO_CONFIG: Mapping[str, Any] = MappingProxyType({})
"""Nameko 3 gives a container none; it is refused in words."""

DEFAULT_MAX_WORKERS = 10
"""Threads for `def` methods where `max_workers` says nothing (nameko/constants.py)."""


def _place_in(service_cls: type) -> Callable[[tuple[str, Any]], int]:
    """A sorting key for `(name, member)`: where the class, or the one it inherits the name from, names it."""
    names = dict.fromkeys(name for cls in reversed(service_cls.__mro__) for name in vars(cls))
    places = {name: place for place, name in enumerate(names)}
    return lambda member: places.get(member[0], len(places))


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
        self, service_cls: type, config: Mapping[str, Any] = NO_CONFIG, host: Host | None = None
    ) -> None:
        if host is None:
            hand_over(f"service {getattr(service_cls, 'name', service_cls.__name__)!r}")
        self.service_cls = service_cls
        self.service_name = get_service_name(service_cls)
        self.config = config
        self.host = host
        self.shared_extensions: dict[Any, Any] = {}
        self.extensions: list[Any] = []
        """Every bound extension, sub-extensions before what uses them."""
        self.dependencies: list[Any] = []
        self.entrypoints: list[Any] = []
        self.started = False
        """Whether `start()` has completed and `stop()` has not begun."""
        self._begun = False
        self._has_run = False
        """Whether `start()` has completed, and nobody has been told yet that it has stopped."""
        self._slots = ServiceSlots(host.settings.max_workers)
        self._lanes: dict[Lane, Entrypoint] = {}
        """Whose each is, in the order in which they were made."""
        self._settings_followed = host.settings
        """Those that lanes and extensions have been told of."""
        self._follow_no_more: Callable[[], None] = lambda: None
        self._threads: ThreadPool | None = None
        self.on_end: Callable[[BaseException | None], None] | None = None
        """Told, on the loop, what `end()` was told; set by the runner."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_steps: list[Callable[[], Awaitable[None]]] = []
        self._bind()
        host.services[self.service_name] = self.statistics

    def _bind(self) -> None:
        for name, member in sorted(
            inspect.getmembers(self.service_cls), key=_place_in(self.service_cls)
        ):
            provider = bind_dependency(member, self, name)
            if provider is not None:
                self.dependencies.append(provider)
        for name, declared in find_entrypoints(self.service_cls):
            self.entrypoints.append(bind_entrypoint(declared, self, name))
        # All are bound, none is set up: whose middleware stands where never depends on who is quicker.
        self._invocations: dict[int, Invocation] = {}
        """One for each entrypoint, however many lanes it has."""
        self._watchers: list[WorkerWatcher] = []
        self.ask_for_middleware()

    def ask_for_middleware(self) -> None:
        """Ask all extensions for what stands around the entrypoints; again, if others have taken their place before the start."""
        self._inbound = {
            id(entrypoint): self.middleware_for(entrypoint.target)
            for entrypoint in self.entrypoints
        }

    @property
    def settings(self) -> Settings:
        """The checked configuration, as it is now."""
        return self.host.settings

    @property
    def lanes(self) -> list[Lane]:
        """The lanes of all entrypoints, in the order in which they were made."""
        return list(self._lanes)

    def lane_of(self, entrypoint: Entrypoint) -> Lane | None:
        """The lane that `entrypoint`'s own calls run in; `None` before it has been made."""
        for lane, owner in self._lanes.items():
            if owner is entrypoint and lane.target is entrypoint.target:
                return lane
        return None

    def middleware_for(self, target: Target) -> tuple[Middleware, ...]:
        """What stands around calls of `target` in this service, outermost first."""
        return self.host.middleware_for(target, self.extensions)

    def adopt(self, extension: Extension) -> None:
        """Take part in `extension`'s life cycle; called by `Extension.bind()`."""
        self.extensions.append(extension)

    @property
    def needs_broker(self) -> bool:
        return any(extension.needs_broker for extension in self.extensions)

    # --- for entrypoints ----------------------------------------------------------------------

    def make_lane(
        self,
        entrypoint: Entrypoint,
        target: Target | None = None,
        *,
        order: KeyOrder | None = None,
    ) -> Lane:
        """The lane in which `entrypoint`'s workers run; call it in `setup()` or `start()`.

        `entrypoint.settle()` is called once for each call submitted to the lane. `target` is given for a lane that
        serves calls of other targets than the entrypoint's own; `order` for one in order by key, a `KeyedLane`.
        """
        loop = asyncio.get_running_loop()
        if self._threads is None:
            self._threads = ThreadPool(
                loop, self._thread_count(), name=f"mycelia-{self.service_name}"
            )
        invocation = self._invocations.get(id(entrypoint))
        if invocation is None:
            invocation = Invocation(self, entrypoint, self.dependencies, loop)
            for watcher in self._watchers:
                invocation.watch(watcher)
            self._invocations[id(entrypoint)] = invocation
        make = Lane if order is None else partial(KeyedLane, order=order)
        lane = make(
            entrypoint.target if target is None else target,
            invocation,
            entrypoint,
            limit=self.concurrency_of(entrypoint),
            slots=self._slots,
            threads=self._threads,
            loop=loop,
            middleware=self._inbound[id(entrypoint)]
            if target is None
            else self.middleware_for(target),
            timeout=self._timeout_of(entrypoint),
            sheds=self._sheds(entrypoint),
        )
        self._lanes[lane] = entrypoint
        self.host.watch(loop).add(lane)
        return lane

    def watch_workers(self, watcher: WorkerWatcher) -> None:
        """Tell `watcher` of each worker's steps from now on; until then workers pay nothing for it. From any thread."""
        self._watchers.append(watcher)
        for invocation in list(self._invocations.values()):
            invocation.watch(watcher)

    def unwatch_workers(self, watcher: WorkerWatcher) -> None:
        """Tell it no more."""
        self._watchers.remove(watcher)
        for invocation in list(self._invocations.values()):
            invocation.unwatch(watcher)

    def _timeout_of(self, entrypoint: Entrypoint) -> float | None:
        if entrypoint.timeout is not None:
            return entrypoint.timeout
        return self.settings.mycelia.handler_timeout

    def _sheds(self, entrypoint: Entrypoint) -> bool:
        return entrypoint.sheds_overload and self.settings.mycelia.shed_overload

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
        """Messages outstanding: the entrypoint's own setting (at first, where that adapts), else twice its concurrency.

        Twice, so that the next message is here when a worker ends, and no more, so that an instance does not
        hoard what others could work on.
        """
        prefetch = entrypoint.prefetch
        if isinstance(prefetch, AdaptivePrefetch):
            return prefetch.least
        if prefetch is not None:
            return prefetch
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

    # --- for extensions -----------------------------------------------------------------------

    def end(self, error: BaseException | None = None) -> None:
        """Ask whoever runs this container to stop the services of this process; from any thread, and returns at once.

        With an error, because the service cannot go on: `Runner.wait()` raises it. Does nothing unless the service runs.
        """
        loop, on_end = self._loop, self.on_end
        if loop is not None and on_end is not None and self._begun:
            loop.call_soon_threadsafe(on_end, error)

    def at_end(self, step: Callable[[], Awaitable[None]]) -> None:
        """Await `step()` in `stop()`, when every extension has stopped. Its errors are logged."""
        self._last_steps.append(step)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it runs on, from `start()` on."""
        if self._loop is None:
            raise RuntimeStateError(f"{self!r} has not been started: it runs on no event loop yet.")
        return self._loop

    @property
    def has_begun(self) -> bool:
        """Whether `start()` has been called."""
        return self._loop is not None

    @property
    def active_workers(self) -> int:
        """Workers that run now, of all entrypoints."""
        return sum(lane.active for lane in self._lanes)

    # --- for those who look on ------------------------------------------------------------------

    def statistics(self) -> ServiceStatistics:
        """What this service can say of itself."""
        return ServiceStatistics(
            is_started=self.started,
            max_workers=self.settings.max_workers,
            active_workers=self.active_workers,
            lanes=by_name((lane.target.name, lane.statistics()) for lane in self._lanes),
            threads=None if self._threads is None else self._threads.statistics(),
            extensions=by_name(self._told_by_extensions()),
        )

    def _told_by_extensions(self) -> Iterator[tuple[str, msgspec.Struct]]:
        for extension in self.extensions:
            try:
                told = extension.statistics()
            except Exception as exc:  # noqa: BLE001  an extension's fault must cost neither a probe nor a scrape
                log.debug(
                    event("statistics_failed", extension=_name_of(extension), error=describe(exc))
                )
                continue
            if told is not None:
                yield _name_of(extension), told

    def _follow(self, old: Settings, new: Settings) -> None:
        """Settings have changed. What has not been set up yet finds them as they are."""
        if not self.started:
            return
        self._settings_followed = new
        self._slots.limit = new.max_workers
        if self._threads is not None:
            self._threads.resize(self._thread_count())
        for lane, entrypoint in self._lanes.items():
            lane.timeout = self._timeout_of(entrypoint)
            lane.sheds = self._sheds(entrypoint)
            lane.limit = self.concurrency_of(entrypoint)
        for extension in self.extensions:
            try:
                extension.reconfigure(old, new)
            except Exception:
                log.exception(
                    event(
                        "extension_hook_failed",
                        hook="reconfigure",
                        service=self.service_name,
                        extension=repr(extension),
                    )
                )

    # --- life cycle ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Set up all extensions, then start them all. Raises the first error, after the others have ended."""
        log.debug(event("service_starting", service=self.service_name))
        watch_forgotten_awaits()
        self._begun = True
        self._loop = asyncio.get_running_loop()
        self._settings_followed = self.settings
        self._follow_no_more = self.host.on_change(self._follow)
        await self._each(self.extensions, "setup")
        await self._each(self.extensions, "start")
        self.started = self._has_run = True
        if self._settings_followed is not self.settings:  # they have changed in between
            self._follow(self._settings_followed, self.settings)
        log.info(event("service_started", service=self.service_name))

    async def _each(self, extensions: Iterable[Any], hook: str) -> None:
        async def run(extension: Any) -> None:
            try:
                await maybe_await(getattr(extension, hook)())
            except Exception as exc:
                name = _name_of(extension)
                exc.add_note(f'raised by {hook}() of {name}, in service "{self.service_name}"')
                raise

        async with _first_error_wins() as group:
            for extension in extensions:
                group.create_task(run(extension), name=f"mycelia:{hook}:{extension!r}")

    async def stop(self, grace: float | None = None) -> None:
        """Stop in order: entrypoints, then workers, then dependencies, then what they share.

        Workers get `grace` seconds from now (the setting `mycelia.grace` by default); what is unfinished then is cancelled
        and goes back to its queue. Idempotent. Never raises: errors of hooks are logged.
        """
        if not self._begun:
            return
        self._begun = self.started = False
        self._follow_no_more()
        has_run, self._has_run = self._has_run, False
        grace = self.settings.mycelia.grace if grace is None else grace
        # From now, not from when the entrypoints have stopped: a broker that does not answer holds those up for seconds, and
        # whoever sent SIGTERM counts from then.
        until = asyncio.get_running_loop().time() + grace
        await self._each_quietly(self.entrypoints, "stop")
        await self._finish_workers(grace, until)
        entrypoints = set(map(id, self.entrypoints))
        dependencies = set(map(id, self.dependencies))
        await self._each_quietly(self.dependencies, "stop")
        await self._each_quietly(
            [e for e in self.extensions if id(e) not in entrypoints | dependencies], "stop"
        )
        await self._take_last_steps()
        if self._threads is not None:
            self._threads.close()
        if has_run:
            log.info(event("service_stopped", service=self.service_name))

    async def _take_last_steps(self) -> None:
        for step in self._last_steps:
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await step()
            except Exception:
                log.exception(event("last_step_failed", service=self.service_name, step=repr(step)))

    async def _finish_workers(self, grace: float, until: float) -> None:
        lanes = self.lanes
        active = self.active_workers
        if active:
            log.info(
                event("service_draining", service=self.service_name, workers=active, grace_s=grace)
            )
        try:
            async with asyncio.timeout_at(until):
                for lane in lanes:
                    await lane.wait_idle()
        except TimeoutError:
            unfinished = sum(lane.active for lane in lanes)
            log.warning(
                event(
                    "grace_over",
                    service=self.service_name,
                    unfinished=unfinished,
                    detail="cancelled; their messages go back to the queue",
                )
            )
        await asyncio.gather(*(lane.cancel() for lane in lanes))
        if self._loop is not None:
            self.host.watch(self._loop).remove(lanes)

    async def kill(self) -> None:
        """Stop without grace: workers are cancelled at once, their messages go back to the queue.

        Also while `stop()` is under way, which then does not wait for its grace.
        """
        if not self.has_begun:
            return
        await self._each_quietly(self.extensions, "kill")
        if self._begun:
            await self.stop(grace=0)
        else:
            await asyncio.gather(*(lane.cancel() for lane in self.lanes))

    async def _each_quietly(self, extensions: Iterable[Any], hook: str) -> None:
        async def run(extension: Any) -> None:
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await maybe_await(getattr(extension, hook)())
            except Exception:
                log.exception(
                    event(
                        "extension_hook_failed",
                        hook=hook,
                        service=self.service_name,
                        extension=repr(extension),
                    )
                )

        await asyncio.gather(*map(run, extensions))

    def __repr__(self) -> str:
        return f"<Container [{self.service_name}]>"


def _name_of(extension: Any) -> str:
    """`Storage:db`: an extension's class, and the attribute or method that it is declared on, if on any."""
    called = getattr(extension, "method_name", getattr(extension, "attr_name", None))
    foreign = getattr(extension, "foreign", None)  # of a bridged one: what the user has written
    name = type(extension if foreign is None else foreign).__name__
    return f"{name}:{called}" if called else name


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
