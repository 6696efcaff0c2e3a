"""Where a test's consumer puts what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mycelia.amqp import Delivery
from mycelia.testing.eventually import eventually

__all__ = ["Inbox", "cut_until"]


class Inbox:
    """An `on_deliveries` that keeps everything, in order; with `acks`, it settles each delivery at once."""

    def __init__(self, *, acks: bool = False) -> None:
        self.deliveries: list[Delivery] = []
        self._acks = acks

    def __call__(self, batch: list[Delivery]) -> None:
        self.deliveries.extend(batch)
        if self._acks:
            for delivery in batch:
                delivery.ack()

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]

    async def wait(self, count: int, timeout: float = 30.0) -> list[Delivery]:
        """The first `count` deliveries, as soon as there are that many."""
        await eventually(
            lambda: len(self.deliveries) >= count,
            timeout,
            what=f"{count} deliveries, got {self.bodies[:20]}",
        )
        return self.deliveries[:count]

    async def wait_for(self, body: bytes, timeout: float = 30.0) -> Delivery:
        """The first delivery of this body, as soon as it is there."""
        await eventually(lambda: body in self.bodies, timeout, what=f"{body!r} delivered")
        return self.deliveries[self.bodies.index(body)]


async def cut_until(cut: Callable[[], Awaitable[None]], condition: Callable[[], bool]) -> None:
    """Cut connections until `condition` tells that the right one was among them: the broker lists a new one late."""

    async def is_met() -> bool:
        await cut()
        for _ in range(100):
            if condition():
                return True
            await asyncio.sleep(0.01)
        return False

    await eventually(is_met, 30, what="the connection is cut")
