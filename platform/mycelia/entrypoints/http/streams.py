"""A response sent piece by piece, that ends with its iterator, its client, or its service, whichever ends first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["Stream"]

CLOSING_TIMEOUT = 5.0
"""Seconds an iterator may take to clean up once it is closed."""


class Stream(Response):
    """Sends what an async iterator yields.

    One task runs the iterator from its first item to its closing, so that what it holds between two items (a timeout, a
    context variable) stays whole.

    Args:
        items: the iterator.
        status: of the response.
        raw_headers: of the response.
        encode: an item's bytes.
        heartbeat: what is sent after `heartbeat_interval` seconds of silence; 0 for never.
        stopping: ends the stream, in good order, once it is set.
    """

    def __init__(
        self,
        items: AsyncIterable[Any],
        status: int,
        raw_headers: list[tuple[bytes, bytes]],
        *,
        encode: Callable[[Any], bytes],
        heartbeat: bytes = b"",
        heartbeat_interval: float = 0.0,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self.status_code = status
        self.raw_headers = raw_headers
        self.background = None
        self._items = items
        self._encode = encode
        self._heartbeat = heartbeat
        self._heartbeat_interval = heartbeat_interval
        self._stopping = stopping
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream. Raises what the iterator raised."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        if scope["method"] == "HEAD":
            await _aclose(self._items)
        else:
            self._last_sent = time.monotonic()
            await self._run(receive, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send), name="mycelia:http:stream")
        watchers = [asyncio.create_task(_client_gone(receive), name="mycelia:http:client-gone")]
        if self._heartbeat_interval:
            watchers.append(asyncio.create_task(self._beat(send), name="mycelia:http:heartbeat"))
        if self._stopping is not None:
            watchers.append(
                asyncio.create_task(_is_set(self._stopping), name="mycelia:http:stopping")
            )
        try:
            await asyncio.wait((pump, *watchers), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, *watchers):
                task.cancel()
            await asyncio.wait((pump, *watchers), timeout=CLOSING_TIMEOUT)
        for task in (pump, *watchers):
            if task.done() and not task.cancelled():
                task.result()

    async def _pump(self, send: Send) -> None:
        try:
            async for item in self._items:
                await self._send(send, self._encode(item))
        finally:
            await _aclose(self._items)

    async def _beat(self, send: Send) -> None:
        while True:
            due = self._last_sent + self._heartbeat_interval
            delay = due - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            else:
                await self._send(send, self._heartbeat)

    async def _send(self, send: Send, chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._last_sent = time.monotonic()


async def _aclose(items: AsyncIterable[Any]) -> None:
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _is_set(event: asyncio.Event) -> None:
    await event.wait()
