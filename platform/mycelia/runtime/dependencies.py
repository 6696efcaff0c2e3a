"""Dependency providers: extensions that inject something into workers and take part in their lives."""

from __future__ import annotations

from typing import Any, Self

from mycelia.runtime.extensions import Extension
from mycelia.runtime.mistakes import class_being_written, mistake_in, refuse, written
from mycelia.runtime.worker_context import WorkerContext

__all__ = ["DependencyProvider", "SharedDependency"]


class DependencyProvider(Extension):
    """Injects an object into each worker, under the attribute's name, and takes part in the worker's life.

    Order for one worker: `get_dependency()` of all providers, `worker_setup()` of all, the method, then
    `worker_result()` of all and `worker_teardown()` of all; only then is the message settled. An error in a hook
    is the call's error: it is answered or dead-lettered like an error of the method, and the container lives on.

    For a `def` method all hooks run in the worker's thread; for an `async def` method on the event loop. They may be
    `async def` in both.
    """

    attr_name: str | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Without any it is being copied, perhaps; if not, Python says it as well as we could.
        problem = mistake_in(cls, args, kwargs) if args or kwargs else None
        if problem is not None:
            refuse(class_being_written(), written(cls.__name__, args, kwargs), problem)
        made: Self = super().__new__(cls, *args, **kwargs)
        return made

    @property
    def is_shared(self) -> bool:
        """Whether one object serves all workers of an entrypoint (`SharedDependency`)."""
        return False

    def shared_dependency(self, is_async: bool) -> Any:
        """What all workers of an entrypoint get where `is_shared`; asked once, after `setup()`."""
        return None

    def bind(self, container: Any, attr_name: str = "") -> Any:
        instance = super().bind(container)
        instance.attr_name = attr_name
        return instance

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        """What to inject. Called for each worker."""

    def worker_setup(self, worker_ctx: WorkerContext) -> Any:
        """Before the method, when every dependency is injected."""

    def worker_result(
        self, worker_ctx: WorkerContext, result: Any = None, exc_info: Any = None
    ) -> Any:
        """After the method, with what it returned or, as `exc_info`, what it raised."""

    def worker_teardown(self, worker_ctx: WorkerContext) -> Any:
        """Last, also after an error, of any worker whose dependencies were injected."""


class SharedDependency(DependencyProvider):
    """Injects one object into all workers: a connection pool, a client, a cache, the provider itself.

    Asked once for each entrypoint, so a worker costs nothing for it. A subclass that overrides `get_dependency()` gets
    that called for each worker, as any provider.
    """

    @property
    def is_shared(self) -> bool:
        return type(self).get_dependency is SharedDependency.get_dependency

    def get_dependency(self, worker_ctx: WorkerContext) -> Any:
        """What `shared_dependency()` gives; not called unless a subclass overrides it, and asks its base."""
        return self.shared_dependency(worker_ctx.is_async)

    def shared_dependency(self, is_async: bool) -> Any:
        """What to inject into all workers of an entrypoint; the provider itself by default.

        Args:
            is_async: whether the entrypoint's method is `async def`, so that what is injected may be awaited there;
                a `def` method runs in a thread and needs something that blocks.
        """
        return self
