"""`container.spawn_worker()` for entrypoints that Mycelia's stand in for: a worker that no message has asked for.

Whoever spawns workers of other entrypoints than its own does it so: `nameko.testing`'s `entrypoint_hook`, above all. An
entrypoint that nobody spawns for is as it was; with the first, its calls are looked at when they are settled.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from mycelia.call import Call, Outcome, Settlement
from mycelia.nameko.spawned_call import SpawnedCall, container_being_killed
from mycelia.nameko.thread_event import poll_until
from mycelia.runtime import Container, Entrypoint, Lane, WorkerContext

__all__ = ["SpawnerByHand"]


class MakesContexts(Protocol):
    """A container's face, as far as it is asked here."""

    native: Container

    @property
    def has_ended(self) -> bool: ...

    def make_context(self, entrypoint: Any, call: Call, is_async: bool) -> WorkerContext: ...


class SpawnerByHand:
    """Runs workers of `entrypoint` in its own lane, with all that stands around its calls.

    Args:
        face: of its container, which has been started.
        entrypoint: Mycelia's.
        foreign: Nameko's, which workers are told that they belong to.
        lane: the entrypoint's.
    """

    def __init__(
        self, face: MakesContexts, entrypoint: Entrypoint, foreign: Any, lane: Lane
    ) -> None:
        self._face = face
        self._entrypoint = entrypoint
        self._foreign = foreign
        self._lane = lane
        self._settle: Callable[[Call, Outcome, Settlement], None] = entrypoint.settle
        vars(entrypoint)["settle"] = self.settle

    def __call__(
        self,
        args: Iterable[Any],
        kwargs: dict[str, Any],
        context_data: dict[str, Any] | None,
        handle_result: Any,
    ) -> WorkerContext:
        """`ContainerFace.spawn_worker()`; `handle_result` hears the outcome after the dependencies."""
        call = SpawnedCall(
            self._entrypoint.target,
            (tuple(args), kwargs),
            given_context={} if context_data is None else context_data,
            parent_calls_tracked=self._face.native.settings.parent_calls_tracked,
            handle_result=handle_result,
        )
        is_async = inspect.iscoroutinefunction(self._entrypoint.method)
        context = call.worker_ctx = self._face.make_context(self._foreign, call, is_async)
        native = self._face.native
        native.loop.call_soon_threadsafe(self._lane.submit, call)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            poll_until(lambda: bool(call.started_at) or call.is_refused or self._face.has_ended)
            if not call.started_at:
                raise container_being_killed(native.service_name) from None
        return context

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        """In the place of the entrypoint's: there is no message that one of these calls could be settled for."""
        if not isinstance(call, SpawnedCall):
            self._settle(call, outcome, settlement)
        elif not call.started_at:
            call.refuse()
        else:
            call.begun.set()
            if call.handle_result is not None:
                call.tell_later(outcome, self._foreign)
