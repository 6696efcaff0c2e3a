"""One piece of work for all who ask for it at the same time, and never more than a few pieces at once.

Two and a half thousand first publishings to a new exchange each declare it; each declaration takes a channel, and a connection has
2047. So those who ask for the same thing share one task and its result, and the tasks take turns at the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["SharedWork"]

T = TypeVar("T")


class _Piece(Generic[T]):
    __slots__ = ("askers", "task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.askers = 0


class SharedWork:
    """Runs work by key. Belongs to one event loop.

    Args:
        name: of the tasks.
        at_once: how many pieces may be at the broker at the same time.

    Attributes:
        turn: to be entered by a piece for as long as it holds a channel, and not while it only waits. First come, first served.
    """

    def __init__(self, name: str, at_once: int) -> None:
        self._name = name
        self.turn = asyncio.Semaphore(at_once)
        self._running: dict[Hashable, _Piece[Any]] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, or of the work that runs for `key` already; its error is everybody's.

        Whoever is cancelled leaves the work to the others; when nobody is left, it is cancelled.
        """
        piece: _Piece[T] | None = self._running.get(key)
        if piece is None:
            piece = _Piece(asyncio.create_task(self._run(key, work), name=self._name))
            piece.task.add_done_callback(_is_told)
            self._running[key] = piece
        piece.askers += 1
        try:
            # not shield(): it would log an error that every asker has been told already
            await asyncio.wait([piece.task])
            return piece.task.result()
        finally:
            piece.askers -= 1
            if not piece.askers and not piece.task.done():
                self._forget(key, piece)
                piece.task.cancel()

    async def _run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        piece = self._running[key]
        try:
            return await work()
        finally:
            self._forget(key, piece)

    def _forget(self, key: Hashable, piece: _Piece[Any]) -> None:
        if self._running.get(key) is piece:
            del self._running[key]


def _is_told(task: asyncio.Task[Any]) -> None:
    """Its error is that of its askers; where all have gone meanwhile, nobody's: asyncio is to say nothing of it."""
    if not task.cancelled():
        task.exception()
