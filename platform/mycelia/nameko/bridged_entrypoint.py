"""Entrypoints written for Nameko, run as they are: they bring their own work and spawn workers for it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

from mycelia.call import Call, CallKind, Outcome, Settlement
from mycelia.errors import RuntimeStateError
from mycelia.nameko.bridge import BridgedExtension, use_thread_events
from mycelia.nameko.counterparts import options_of
from mycelia.nameko.face import ContainerFace
from mycelia.nameko.recognise import class_names
from mycelia.nameko.spawned_call import SpawnedCall, container_being_killed, observed
from mycelia.nameko.sub_extensions import adopt_sub_extensions
from mycelia.runtime import Entrypoint, Lane, WorkerContext

__all__ = ["BridgedEntrypoint"]

KINDS = {
    "nameko.web.handlers.HttpRequestHandler": CallKind.HTTP,
    "nameko.web.websocket.WebSocketRpc": CallKind.HTTP,
    "nameko.timer.Timer": CallKind.TIMER,
}

READY_TIMEOUT = 30.0
"""Seconds `spawn_worker()` waits for the container to start; an entrypoint may be quicker than its neighbours."""


class BridgedEntrypoint(BridgedExtension, Entrypoint):
    """Runs an entrypoint written for Nameko.

    Args:
        declared: the entrypoint, as declared on the method.
    """

    face: ContainerFace

    def __init__(self, declared: Any) -> None:
        Entrypoint.__init__(self, **options_of(declared))
        self.foreign = declared
        kinds = [KINDS[name] for name in class_names(declared) if name in KINDS]
        self.kind = kinds[0] if kinds else CallKind.OTHER
        self._lane: Lane | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._is_stopping = False
        self._method: Callable[..., Any] | None = None
        self._sources: list[Any] = []
        """What brings this entrypoint its work; told to bring no more before the workers end."""

    def bind(self, container: Any, method_name: str = "") -> Any:
        use_thread_events()
        instance = self._clone(container)
        instance.method_name = method_name
        instance.target = instance.make_target(container)
        face = instance.face = ContainerFace.of(container)
        instance.foreign = self.foreign.bind(face, method_name)
        face.introduce(instance, instance.foreign)
        face.set_spawn(instance.foreign, instance.spawn)
        instance._sources = [
            extension
            for extension in adopt_sub_extensions(instance.foreign, face)
            if hasattr(extension, "stop_consuming")
        ]
        container.adopt(instance)
        return instance

    @property
    def method(self) -> Callable[..., Any]:
        if self._method is None:
            self._method = observed(super().method)
        return self._method

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._lane = self.container.make_lane(self)
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
                assert isinstance(call, SpawnedCall)
                call.refuse()

    def spawn(
        self,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        context_data: dict[str, Any] | None,
        handle_result: Any,
    ) -> WorkerContext:
        """`ContainerFace.spawn_worker()` for this entrypoint."""
        if not self._ready.wait(READY_TIMEOUT):
            raise RuntimeStateError(
                f"{self!r}: spawn_worker() was called before the service had started; wait for start()."
            )
        call = SpawnedCall(
            self.target,
            (tuple(args), kwargs),
            # The same dict, as in Nameko: what a worker puts in is there for the next one on a websocket.
            given_context={} if context_data is None else context_data,
            parent_calls_tracked=self.container.settings.parent_calls_tracked,
            handle_result=handle_result,
        )
        is_async = inspect.iscoroutinefunction(self.method)
        context = call.worker_ctx = self.face.make_context(self.foreign, call, is_async)
        if self._loop is None:
            call.refuse()
        elif threading.get_ident() == self._loop_thread:
            self._submit(call)
            return context
        else:
            self._loop.call_soon_threadsafe(self._submit, call)
        call.begun.wait()
        if call.is_refused:
            raise container_being_killed(self.container.service_name)
        return context

    def _submit(self, call: SpawnedCall) -> None:
        if self._is_stopping or self._lane is None:
            call.refuse()
        else:
            self._lane.submit(call)

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        assert isinstance(call, SpawnedCall)
        call.begun.set()
        if call.handle_result is not None and not call.is_handled:
            # The method never ran (a dependency failed, a middleware answered), or never ended: somebody may wait.
            call.tell_later(outcome, self)
