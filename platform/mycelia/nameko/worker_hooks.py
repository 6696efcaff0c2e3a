"""The steps of a worker as methods of Nameko's container, which extensions and tests replace on a container to be told.

`nameko.testing`'s `entrypoint_waiter` does it, and whoever measures workers. Nobody pays for them before the first is
replaced: only then are workers watched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from mycelia.nameko.spawned_call import SpawnedCall
from mycelia.runtime import WorkerContext

__all__ = ["STEPS", "ReplacedSteps", "result_beside_error"]

STEPS = ("_worker_setup", "_worker_result", "_worker_teardown")
"""Nameko's names (nameko/containers.py:398)."""


def result_beside_error(worker_ctx: WorkerContext, result: Any, exc_info: Any) -> Any:
    """The result that Nameko's extensions are told: `handle_result` may give one beside an error."""
    call = worker_ctx.call
    return call.result if exc_info is not None and isinstance(call, SpawnedCall) else result


class HasSteps(Protocol):
    """A container's face: its steps are attributes."""

    def context_of(self, worker_ctx: WorkerContext) -> WorkerContext: ...


class ReplacedSteps:
    """Calls what stands on a face in the place of its own steps, with the worker as Nameko's extensions know it.

    Args:
        face: whose they are; what is not replaced does nothing.
    """

    def __init__(self, face: HasSteps) -> None:
        self._face = face

    def worker_setup(self, worker_ctx: WorkerContext) -> None:
        self._step("_worker_setup")(self._face.context_of(worker_ctx))

    def worker_result(self, worker_ctx: WorkerContext, result: Any, exc_info: Any) -> None:
        result = result_beside_error(worker_ctx, result, exc_info)
        self._step("_worker_result")(self._face.context_of(worker_ctx), result, exc_info)

    def worker_teardown(self, worker_ctx: WorkerContext) -> None:
        self._step("_worker_teardown")(self._face.context_of(worker_ctx))

    def _step(self, name: str) -> Callable[..., Any]:
        step: Callable[..., Any] = getattr(self._face, name)
        return step
