"""What `make demo KILL=1` does beside the rest: kills services and the broker, at shares of the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from services.fleet import Fleet

if TYPE_CHECKING:
    from mycelia.broker import PrivateNode

__all__ = ["KILL_SPEED_S", "Killing"]

KILL_SPEED_S = 25.0
"""Seconds that the replay is to take: at full speed it would be over before anything is killed."""


class Killing:
    """Kills, with SIGKILL, each at its share of the events, and starts again.

    Args:
        node: the broker, if it is one that may be killed.
        say: tells each of them.
    """

    def __init__(
        self, fleet: Fleet, node: PrivateNode | None, say: Callable[[str, str], None]
    ) -> None:
        self._fleet = fleet
        self._node = node
        self._say = say
        self._todo: list[tuple[float, str, Callable[[], Awaitable[None]]]] = [
            (0.15, "flows", self._service("flows")),
            (0.3, "delays, while it reads", self._service("delays")),
            (0.65, "flows, once more", self._service("flows")),
            (0.8, "the board", self._service("board")),
        ]
        if node is not None:
            self._todo.append((0.45, "the broker", self._broker))
        self._todo.sort(key=lambda one: one[0])

    @property
    def spares_the_broker(self) -> bool:
        """Whether the broker is somebody else's."""
        return self._node is None

    async def at(self, share: float) -> None:
        """Kill what is due when so much has been counted."""
        while self._todo and share >= self._todo[0][0]:
            _, what, kill = self._todo.pop(0)
            self._say("kill -9", what)
            await kill()

    def _service(self, name: str) -> Callable[[], Awaitable[None]]:
        return lambda: self._fleet.kill(name)

    async def _broker(self) -> None:
        assert self._node is not None
        await asyncio.to_thread(self._node.kill)
        await asyncio.to_thread(self._node.start)
