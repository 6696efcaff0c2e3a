"""A response sent piece by piece, that ends with its iterator, its client, or its service, whichever ends first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

__all__ = ["ResponseStream", "aclose"]


class ResponseStream(StreamingResponse):
    """Starlette's, for iterators that hold something.

    Starlette leaves an iterator that it does not finish to the garbage collector, and what it ends it cancels by anyio, again
    at each `await`. Here the iterator runs in the request's task from its first item to its closing, so that what it holds
    between two items (a timeout, a context variable) stays whole, and is cancelled once, so that its clean-up may wait.

    Args:
        items: the iterator. Whoever sends the stream closes `body_iterator` afterwards.
        status: of the response.
        media_type: of the response.
        encode: makes an item's bytes.
        heartbeat: what is sent after `heartbeat_interval` seconds of silence; 0 for never.
        stopping: ends the stream, in good order, once it is set.
    """

    def __init__(
        self,
        items: AsyncIterable[Any],
        status: int,
        media_type: str,
        *,
        encode: Callable[[Any], bytes],
        heartbeat: bytes = b"",
        heartbeat_interval: float = 0.0,
        stopping: asyncio.Event | None = None,
    ) -> None:
        super().__init__(_Encoded(items, encode), status, media_type=media_type)
        self._heartbeat = heartbeat
        self._heartbeat_interval = heartbeat_interval
        self._stopping = stopping
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. Raises what the iterator raised."""

        async def send_timed(message: Message) -> None:
            await send(message)
            self._last_sent = time.monotonic()

        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)

        def end(watcher: asyncio.Task[None]) -> None:
            if not watcher.cancelled():
                limit.reschedule(loop.time())

        watchers = [
            asyncio.create_task(ends, name="mycelia:http:stream")
            for ends in self._ends(receive, send_timed)
        ]
        for watcher in watchers:
            watcher.add_done_callback(end)
        try:
            async with limit:
                await self.stream_response(send_timed)
        except TimeoutError:
            if not limit.expired():
                raise
            for watcher in watchers:
                if watcher.done():
                    watcher.result()  # a heartbeat that could not be sent
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for watcher in watchers:
                watcher.remove_done_callback(end)
                watcher.cancel()

    def _ends(self, receive: Receive, send: Send) -> list[Coroutine[Any, Any, None]]:
        """What ends the stream when it returns."""
        ends = [_client_gone(receive)]
        if self._heartbeat_interval:
            ends.append(self._beat(send))
        if self._stopping is not None:
            ends.append(_is_set(self._stopping))
        return ends

    async def _beat(self, send: Send) -> None:
        self._last_sent = time.monotonic()
        while True:
            delay = self._last_sent + self._heartbeat_interval - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            else:
                await send(
                    {"type": "http.response.body", "body": self._heartbeat, "more_body": True}
                )


class _Encoded:
    """The bytes of an iterator's items."""

    def __init__(self, items: AsyncIterable[Any], encode: Callable[[Any], bytes]) -> None:
        self._items = items
        self._encode = encode
        self._given: AsyncIterator[Any] | None = None

    def __aiter__(self) -> _Encoded:
        self._given = aiter(self._items)
        return self

    async def __anext__(self) -> bytes:
        assert self._given is not None
        return self._encode(await anext(self._given))

    async def aclose(self) -> None:
        await aclose(self._items)


async def aclose(items: object) -> None:
    """Close an iterator that can be closed. Does nothing to one that has ended."""
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _is_set(event: asyncio.Event) -> None:
    await event.wait()
