"""Server-sent events: what a method returns to keep sending. The rest is sse-starlette's, imported when one does."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Any

import msgspec

__all__ = ["ServerSentEvent", "ServerSentEvents"]

HEARTBEAT_INTERVAL = 15.0
"""Seconds of silence before a heartbeat; the standard suggests "every 15 seconds or so" against proxies' timeouts."""


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event.

    Attributes:
        data: text as it is, anything else as JSON.
        event: its type, which the browser dispatches by; `message` when absent.
        id: what the browser sends back as `Last-Event-ID` when it reconnects.
        retry: seconds the browser waits before it reconnects.
    """

    data: Any
    event: str | None = None
    id: str | int | None = None
    retry: float | None = None


class ServerSentEvents:
    """A response that stays open and sends events, for a method to return.

        return ServerSentEvents(self.live.changes())

    The stream ends when the iterator does, when the client goes away and when the service stops; an iterator that has
    an `aclose()`, as generators have, is closed in every case, on the event loop. It runs outside the worker, whose
    dependencies have been torn down by then.

    Args:
        events: what to send: a `ServerSentEvent`; a mapping of nothing but `data`, `event`, `id` and `retry`, with at
            least `data`; any other value is the data of an event.
        heartbeat: seconds of silence after which a comment is sent; 0 for never.
        headers: more headers for the response.
    """

    def __init__(
        self,
        events: AsyncIterable[Any],
        *,
        heartbeat: float = HEARTBEAT_INTERVAL,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(events, AsyncIterable):
            raise TypeError(
                f"ServerSentEvents({type(events).__name__}): expected an async iterator, such as a call of an "
                "`async def` method with `yield`."
            )
        if heartbeat < 0:
            raise ValueError(f"heartbeat={heartbeat!r}: expected seconds, or 0 for never.")
        self.events = events
        self.heartbeat = heartbeat
        self.headers = dict(headers or {})
