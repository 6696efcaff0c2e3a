"""The face: what extensions written for Nameko know as their container (`nameko.containers.ServiceContainer`).

Nameko's names over a Mycelia container. Underscored names are those that packages on PyPI read; each tells the truth
here, or is not there.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FrameType
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

from mycelia.call import Call, Target
from mycelia.errors import ConfigError, RuntimeStateError
from mycelia.log_event import event
from mycelia.nameko.managed_thread import ManagedThread, run_in_daemon_thread
from mycelia.nameko.patches import patches
from mycelia.nameko.recognise import dotted_name
from mycelia.nameko.spawned_call import SpawnedCall
from mycelia.nameko.spawning import SpawnerByHand
from mycelia.nameko.thread_event import block_until_set, poll_until
from mycelia.nameko.worker_hooks import STEPS, ReplacedSteps
from mycelia.runtime import Container, WorkerContext
from mycelia.runtime.container import DEFAULT_MAX_WORKERS

__all__ = ["ContainerFace", "Spawn"]

log = logging.getLogger("mycelia.nameko")

THREAD_END_TIMEOUT = 1.0
"""Seconds a managed thread that is killed has for its clean-up."""


class Spawn(Protocol):
    """How one entrypoint's workers are run: `ContainerFace.spawn_worker()` without the entrypoint."""

    def __call__(
        self,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        context_data: dict[str, Any] | None,
        handle_result: Any,
    ) -> WorkerContext: ...


class ContainerFace:
    """Bound extensions written for Nameko have it as `container`. One for each container; usable from any thread.

    Args:
        container: the container that it is the face of.
    """

    def __init__(self, container: Container) -> None:
        self.native = container
        """The container itself, for Mycelia's own extensions."""
        self.service_cls = container.service_cls
        self.service_name = container.service_name
        self.config = container.config
        self.max_workers: int = container.settings.max_workers or DEFAULT_MAX_WORKERS
        self.serializer: str = container.host.serializers.default.name
        self.accept = container.host.serializers.accepted_content_types
        self.shared_extensions: dict[Any, Any] = {}
        """Shared extensions written for Nameko, by their `sharing_key`; Mycelia's are the container's own."""
        self.counterparts: dict[int, Any] = {}
        """Bound counterparts of sub-extensions, by the `id()` of the foreign one."""
        self._foreign: dict[int, Any] = {}
        """Foreign extensions by the `id()` of their bound counterpart, which the container keeps alive."""
        self._spawns: dict[int, Spawn] = {}
        self._managed_threads: dict[ManagedThread, str] = {}
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._contexts: WeakKeyDictionary[WorkerContext, int | None] = WeakKeyDictionary()
        """Workers that foreign providers have seen, and the thread of each that has one."""
        self._lock = threading.Lock()
        self.patches = patches()
        """Methods of Nameko's classes that had been replaced when the service was bound."""
        self._died = Died(self)
        self._being_killed = False
        self._watcher: ReplacedSteps | None = None

    @property
    def interface(self) -> ContainerFace:
        return self

    @classmethod
    def of(cls, container: Container) -> ContainerFace:
        """The face of `container`, made when first asked for."""
        face: ContainerFace | None = container.shared_extensions.get(cls)
        if face is None:
            face = container.shared_extensions[cls] = cls(container)
            container.at_end(face._end)
            face._refuse_patched_container()
        return face

    def _refuse_patched_container(self) -> None:
        patched = sorted(name for name in self.patches if name.startswith("nameko.containers."))
        if patched:
            raise ConfigError(
                f"service {self.service_name}: something has replaced {', '.join(patched)} of Nameko's container, which does "
                "not run here. Leave that out, or run this service on stock Nameko beside the others."
            )

    def refuse_later_patches(self, by: object) -> None:
        """Raise `ConfigError` if methods of Nameko's have been replaced since: counterparts would pass them over."""
        later = sorted(patches() - self.patches)
        if later:
            raise ConfigError(
                f"service {self.service_name}: {by!r} has replaced {', '.join(later)} in its setup(), when the service was "
                "bound already: nothing here would come by. Have it done when the service's module is imported."
            )

    @property
    def is_native(self) -> bool:
        """Asked when one of Mycelia's extensions is bound to this face by hand.

        Raises:
            ConfigError: always; it would not be served.
        """
        raise ConfigError(
            f"service {self.service_name}: an extension written for Nameko binds one of Mycelia's; only Mycelia's "
            "extensions and service classes can hold those. Declare it on the service class."
        )

    # --- the extensions -----------------------------------------------------------------------

    def introduce(self, counterpart: Any, foreign: Any) -> None:
        """From now on `foreign` is shown wherever the container has `counterpart`."""
        self._foreign[id(counterpart)] = foreign

    def introduce_copy(self, counterpart: Any, declared: Any, **names: str) -> None:
        """As `introduce()`, for a declaration whose counterpart is Mycelia's own extension.

        Providers look at the class and attributes of `worker_ctx.entrypoint`: they find Nameko's. It is a copy and not
        bound by Nameko's `bind()`, which would make kombu consumers that nobody starts.
        """
        foreign = copy.copy(declared)
        foreign.container = weakref.proxy(self)
        for name, value in names.items():
            setattr(foreign, name, value)
        self.introduce(counterpart, foreign)

    def foreign_of(self, extension: Any) -> Any:
        """What is shown for an extension of the container: the foreign one whose counterpart it is, or itself."""
        return self._foreign.get(id(extension), extension)

    @property
    def entrypoints(self) -> set[Any]:
        return set(map(self.foreign_of, self.native.entrypoints))

    @property
    def dependencies(self) -> set[Any]:
        return set(map(self.foreign_of, self.native.dependencies))

    @property
    def subextensions(self) -> set[Any]:
        return self.extensions - self.entrypoints - self.dependencies

    @property
    def extensions(self) -> set[Any]:
        return set(map(self.foreign_of, self.native.extensions))

    # --- workers ------------------------------------------------------------------------------

    def set_spawn(self, entrypoint: Any, spawn: Spawn) -> None:
        """From now on `spawn_worker(entrypoint, …)` is `spawn(…)`."""
        self._spawns[id(entrypoint)] = spawn

    def spawn_worker(
        self,
        entrypoint: Any,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        context_data: dict[str, Any] | None = None,
        handle_result: Any = None,
    ) -> WorkerContext:
        """Run a worker for an entrypoint, as Nameko's container does.

        Blocks the calling thread until the worker has begun, so an entrypoint is slowed down when the service is
        full. `handle_result(worker_ctx, result, exc_info)`, if given, sees the outcome in the worker and returns the
        `(result, exc_info)` that dependencies see.

        For an entrypoint that Mycelia's stands in for (`nameko.rpc.rpc`, …) the call has no message, and `handle_result` hears
        the outcome after the dependencies.

        Raises:
            ConfigError: `entrypoint` is not one of this container's, or makes its workers itself.
            nameko.exceptions.ContainerBeingKilled: the service stops and the worker will not run.
        """
        with self._lock:
            spawn = self._spawns.get(id(entrypoint)) or self._spawner_by_hand(entrypoint)
        return spawn(args, kwargs, context_data, handle_result)

    def _spawner_by_hand(self, foreign: Any) -> Spawn:
        for entrypoint in self.native.entrypoints:
            lane = self.native.lane_of(entrypoint)
            if lane is not None and self.foreign_of(entrypoint) is foreign:
                spawn = self._spawns[id(foreign)] = SpawnerByHand(self, entrypoint, foreign, lane)
                return spawn
        raise ConfigError(
            f"{dotted_name(type(foreign))} of service {self.service_name}: spawn_worker() serves the container's own "
            "entrypoints, once it has started, and this is none, or makes its workers itself."
        )

    def context_of(self, worker_ctx: WorkerContext) -> WorkerContext:
        """The same worker as foreign providers know it: its container is this face, its entrypoint the foreign one.

        One for each worker, alive as long as `worker_ctx`, so providers may keep things by it.
        """
        context = worker_ctx.foreign
        if context is None:
            call = worker_ctx.call
            if isinstance(call, SpawnedCall):
                context = call.worker_ctx
            else:
                entrypoint = self.foreign_of(worker_ctx.entrypoint)
                context = self.make_context(entrypoint, call, worker_ctx.is_async)
            context.service = worker_ctx.service
            worker_ctx.foreign = context
            with self._lock:
                self._contexts[context] = None if worker_ctx.is_async else threading.get_ident()
        return context

    def make_context(self, entrypoint: Any, call: Call, is_async: bool) -> WorkerContext:
        """A worker as foreign providers know it; `entrypoint` is the foreign one, where there is one."""
        return WorkerContext(cast("Container", self), entrypoint, call, is_async)

    def _worker_setup(self, worker_ctx: WorkerContext) -> None:
        """This and the next two are to be replaced on a container: `container._worker_result = …`, `mock.patch.object(…)`.

        What stands in their place is called for each worker, after the dependencies' hooks, which are called in any case.
        These do nothing, and until one is replaced none is called.
        """

    def _worker_result(
        self, worker_ctx: WorkerContext, result: Any = None, exc_info: Any = None
    ) -> None: ...

    def _worker_teardown(self, worker_ctx: WorkerContext) -> None: ...

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in STEPS:
            self._follow_replaced_steps()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name in STEPS:
            self._follow_replaced_steps()

    def _follow_replaced_steps(self) -> None:
        with self._lock:
            replaced = not vars(self).keys().isdisjoint(STEPS)
            if replaced and self._watcher is None:
                self._watcher = ReplacedSteps(self)
                self.native.watch_workers(self._watcher)
            elif not replaced and self._watcher is not None:
                self.native.unwatch_workers(self._watcher)
                self._watcher = None

    @property
    def _worker_threads(self) -> dict[WorkerContext, WorkerThread]:
        """The workers that run, as providers know them, and what each runs in."""
        with self._lock:
            known = {context.call: (context, ident) for context, ident in self._contexts.items()}
        running: dict[WorkerContext, WorkerThread] = {}
        for lane in self.native.lanes:
            for call in list(lane.running):
                context, ident = known.get(call) or (self._context_for(lane.target, call), None)
                if context is not None:
                    running[context] = WorkerThread(ident)
        return running

    def _context_for(self, target: Target, call: Call) -> WorkerContext | None:
        """A worker that no foreign provider has seen."""
        for entrypoint in self.native.entrypoints:
            if entrypoint.target == target:
                return self.make_context(self.foreign_of(entrypoint), call, False)
        return None

    @property
    def _worker_pool(self) -> WorkerPool:
        return WorkerPool(self.max_workers, self.native)

    # --- threads ------------------------------------------------------------------------------

    def spawn_managed_thread(
        self, fn: Callable[[], Any], identifier: str | None = None
    ) -> ManagedThread:
        """Run `fn()` in a daemon thread of this container.

        An `Exception` that leaves `fn` ends the service, as in Nameko: what it did, nobody does any more. Threads
        that still run when every extension has stopped are killed.
        """
        name: str = getattr(fn, "__name__", "<unknown>") if identifier is None else identifier
        thread = ManagedThread(fn, f"{self.service_name}:{name}", self._on_thread_exit)
        self._managed_threads[thread] = name  # first, so that whoever `fn` asks knows of it
        return thread.start()

    def _on_thread_exit(self, thread: ManagedThread) -> None:
        self._managed_threads.pop(thread, None)
        error = thread.error
        if isinstance(error, Exception):
            log.critical(event("managed_thread_failed", thread=thread.name), exc_info=error)
            self._error = self._error or error
            self.native.end(error)

    # --- life cycle ---------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether every extension has stopped."""
        return self._ended.is_set()

    @property
    def started(self) -> bool:
        """As Nameko means it: from the beginning of the start to the end of the stop."""
        return self.native.has_begun and not self._ended.is_set()

    def stop(self) -> None:
        """Stop the services of this process and wait until this one has stopped (in `async def` methods: do not wait).

        A managed thread that calls it is killed at the end, as in Nameko.
        """
        self.native.end()
        self._wait_for_end()

    def kill(self, exc_info: Any = None) -> None:
        """As `stop()`; with `sys.exc_info()`, that error is what ended the service: `wait()` raises it."""
        self._being_killed = True
        error = exc_info[1] if exc_info else None
        self._error = self._error or error
        self.native.end(error)
        self._wait_for_end()

    def wait(self) -> None:
        """Block until the service has stopped; raise the error that ended it, if one has."""
        block_until_set(self._ended)
        if self._error is not None:
            raise self._error

    def _wait_for_end(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            block_until_set(self._ended)

    async def _end(self) -> None:
        """Every extension has stopped: nothing more will end the threads that still run."""
        self._ended.set()
        threads: Mapping[ManagedThread, str] = dict(self._managed_threads)
        for thread in threads:
            thread.kill()
        if threads:  # a moment for their `finally` blocks; they are daemons and keep nothing alive
            ends = [
                run_in_daemon_thread(partial(thread.join, THREAD_END_TIMEOUT), f"end-{thread.name}")
                for thread in threads
            ]
            if not all(await asyncio.gather(*ends)):
                names = ", ".join(
                    sorted(name for thread, name in threads.items() if not thread.dead)
                )
                log.warning(event("managed_threads_left", service=self.service_name, threads=names))

    def __repr__(self) -> str:
        return f"<ServiceContainer [{self.service_name}], run by Mycelia>"


class WorkerThread:
    """What a worker runs in, as far as extensions look at Nameko's greenthreads."""

    dead = False

    def __init__(self, ident: int | None) -> None:
        self._ident = ident

    @property
    def gr_frame(self) -> FrameType | None:
        """Where it is now; `None` for an `async def` worker, or one that has just ended."""
        return None if self._ident is None else sys._current_frames().get(self._ident)


class WorkerPool:
    """How many workers there may be and are, as Nameko's pool of greenthreads tells it."""

    def __init__(self, size: int, container: Container) -> None:
        self.size = size
        self._container = container

    def running(self) -> int:
        return self._container.active_workers

    def free(self) -> int:
        return max(self.size - self.running(), 0)

    def waitall(self) -> None:
        """Block until no worker runs.

        Raises:
            RuntimeStateError: on the event loop, which the workers need.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            poll_until(lambda: not self.running())
        else:
            raise RuntimeStateError(
                f"service {self._container.service_name}: _worker_pool.waitall() blocks, and was called on the event loop. "
                "Call it in a `def` method or a thread."
            )


class Died:
    """Nameko's event of a container's end."""

    def __init__(self, face: ContainerFace) -> None:
        self._face = face

    def ready(self) -> bool:
        return self._face._ended.is_set()

    def wait(self) -> None:
        self._face.wait()
