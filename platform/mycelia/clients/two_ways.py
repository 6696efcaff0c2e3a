"""One declaration, two ways to use it: awaited in `async def` methods, blocking in `def` methods."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mycelia.runtime import Container, SharedDependency

__all__ = ["Injects", "TwoWays"]

View = TypeVar("View", covariant=True)


if TYPE_CHECKING:

    class Injects(Generic[View]):
        """A declaration as type checkers see it: in a worker, the attribute holds a `View`."""

        def __get__(self, instance: object, owner: type | None = None) -> View: ...

else:

    class Injects(Generic[View]):
        """Only type checkers see more of it."""


class TwoWays(SharedDependency):
    """A provider of something that is awaited in `async def` methods and blocks in `def` methods.

    Which of the two a worker gets goes by its method. Type checkers cannot know: to them a declaration injects what is
    awaited. One for `def` methods says so: `stock = RpcProxy("stock").blocking`.
    """

    container: Container
    is_blocking = False
    """Whether it blocks in every kind of method; on the event loop it then refuses to."""

    def made_blocking(self) -> Any:
        """This declaration, injecting what blocks."""
        blocking = copy.copy(self)
        blocking.is_blocking = True
        return blocking

    def _clone(self, container: Any) -> Any:
        instance = super()._clone(container)
        instance.is_blocking = self.is_blocking
        return instance

    def shared_dependency(self, is_async: bool) -> Any:
        """One object serves all workers of an entrypoint: what differs between them is in the current call."""
        if is_async and not self.is_blocking:
            return self.awaited()
        return self.waiting(self.container.loop)

    def awaited(self) -> Any:
        """What `async def` methods get."""
        raise NotImplementedError

    def waiting(self, loop: asyncio.AbstractEventLoop) -> Any:
        """What `def` methods get: it runs on `loop` and blocks the worker's thread meanwhile."""
        raise NotImplementedError
