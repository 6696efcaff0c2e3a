"""Server-sent events: what a method returns to keep sending, and their text form (WHATWG HTML, 9.2). Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Mapping
from typing import Any

import msgspec

__all__ = ["HEARTBEAT", "ServerSentEvent", "ServerSentEvents", "encode_event"]

HEARTBEAT = b": keep-alive\n\n"
"""A comment, which browsers ignore; proxies see that the connection lives."""

HEARTBEAT_INTERVAL = 15.0
"""Seconds of silence before a heartbeat; the standard suggests "every 15 seconds or so" against proxies' timeouts."""

FIELDS = frozenset(("data", "event", "id", "retry"))

_LINE_END = re.compile("\r\n|\r|\n")


class ServerSentEvent(msgspec.Struct, frozen=True):
    """One event.

    Args:
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


def encode_event(item: Any) -> bytes:
    """The bytes of one event.

    Raises:
        ValueError: a line break in `event` or `id`, which would forge fields; a retry below 0.
        TypeError: data that JSON has no form for.
    """
    event = _as_event(item)
    if event.retry is not None and event.retry < 0:
        raise ValueError(f"server-sent event: retry={event.retry!r} must be seconds, 0 or more.")
    lines: list[str] = []
    for name, value in (("event", event.event), ("id", event.id)):
        if value is not None:
            text = str(value)
            if any(c in text for c in "\r\n\0"):
                raise ValueError(f"server-sent event: {name}={text!r} must not hold line breaks.")
            lines.append(f"{name}: {text}")
    if event.retry is not None:
        lines.append(f"retry: {round(event.retry * 1000)}")
    data = event.data if isinstance(event.data, str) else msgspec.json.encode(event.data).decode()
    # Only these three end a line here; `str.splitlines()` would split at others, which are data.
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return ("\n".join(lines) + "\n\n").encode()


def _as_event(item: Any) -> ServerSentEvent:
    if isinstance(item, ServerSentEvent):
        return item
    if isinstance(item, Mapping) and "data" in item and item.keys() <= FIELDS:
        return ServerSentEvent(**item)
    return ServerSentEvent(item)
