"""Iterators whose items are sent as they come, for Starlette's `StreamingResponse` and sse-starlette's `EventSourceResponse`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from typing import Any

import anyio

__all__ = ["Items", "aclose"]

CLOSING_TIMEOUT = 5.0
"""Seconds an iterator may take to clean up once it is closed."""

_ENDED = object()


class Items(AsyncIterable[bytes]):
    """What an async iterator yields, encoded item by item as it is asked for.

    The iterator runs in one task from its first item to its closing, so that what it holds between two items (a timeout,
    a context variable) stays whole. anyio, below both kinds of response, cancels what it ends at each `await`; that task
    is cancelled once, so that clean-up may wait.

    Args:
        items: the iterator; closed in the end, where it has an `aclose()`.
        encode: makes an item's bytes.
        stopping: ends it in good order, once it is set.
    """

    def __init__(
        self,
        items: AsyncIterable[Any],
        encode: Callable[[Any], bytes],
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._items = items
        self._encode = encode
        self._stopping = stopping
        self._given: AsyncGenerator[bytes] | None = None

    def __aiter__(self) -> AsyncGenerator[bytes]:
        self._given = self._give()
        return self._given

    async def aclose(self) -> None:
        """Close the iterator, begun or not. Idempotent."""
        await aclose(self._items if self._given is None else self._given)

    async def _give(self) -> AsyncGenerator[bytes]:
        asked, given = asyncio.Semaphore(1), asyncio.Queue[Any]()
        tasks = [asyncio.create_task(self._run(asked, given), name="mycelia:http:stream")]
        if self._stopping is not None:
            stopping = _set(self._stopping)
            tasks.append(asyncio.create_task(stopping, name="mycelia:http:stopping"))
        for task in tasks:
            task.add_done_callback(lambda _: given.put_nowait(_ENDED))
        try:
            while (item := await given.get()) is not _ENDED:
                yield item
                asked.release()
        finally:
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait(tasks, timeout=CLOSING_TIMEOUT)
        if tasks[0].done() and not tasks[0].cancelled():
            tasks[0].result()

    async def _run(self, asked: asyncio.Semaphore, given: asyncio.Queue[Any]) -> None:
        try:
            await asked.acquire()
            async for item in self._items:
                given.put_nowait(self._encode(item))
                await asked.acquire()
        finally:
            await aclose(self._items)


async def aclose(items: object) -> None:
    """Close an iterator that can be closed. Does nothing to one that has ended."""
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def _set(event: asyncio.Event) -> None:
    await event.wait()
