"""A response of server-sent events: sse-starlette's, with the text of our events and without its hands on the process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import sse_starlette
from sse_starlette import EventSourceResponse

from mycelia.entrypoints.http.server_sent_events import ServerSentEvent, ServerSentEvents
from mycelia.entrypoints.http.streams import Items

__all__ = ["EventStream", "encode_event"]

HEADERS = {"Cache-Control": "no-cache"}
"""Rather than sse-starlette's `no-store`: what may be asked for again need not be forgotten."""

FIELDS = frozenset(ServerSentEvent.__struct_fields__)


class EventStream(EventSourceResponse):
    """Sends events until their iterator ends, the client goes, or the service stops.

    Args:
        events: what the method returned.
        status: of the response.
        stopping: set when the service stops.
    """

    def __init__(self, events: ServerSentEvents, status: int, stopping: asyncio.Event) -> None:
        super().__init__(
            Items(events.events, encode_event, stopping),
            status,
            HEADERS,
            ping=events.heartbeat,
            ping_message_factory=_heartbeat,
        )

    async def _listen_for_exit_signal(self) -> None:  # type: ignore[override]
        """Never: sse-starlette would look for uvicorn's handler of SIGTERM twice a second, in a task that nobody owns."""
        await asyncio.get_running_loop().create_future()


def _heartbeat() -> sse_starlette.ServerSentEvent:
    """A comment, which browsers ignore; proxies see that the connection lives."""
    return sse_starlette.ServerSentEvent(comment="keep-alive", sep="\n")


def encode_event(item: Any) -> bytes:
    """The bytes of one event.

    Raises:
        ValueError: a line break in `event` or `id`, which would forge fields; a retry below 0.
        TypeError: data that JSON has no form for.
    """
    event = _as_event(item)
    name, id_ = (None if text is None else str(text) for text in (event.event, event.id))
    for field, text in (("event", name), ("id", id_)):
        if any(c in (text or "") for c in "\r\n\0"):  # sse-starlette would leave them out
            raise ValueError(f"server-sent event: {field}={text!r} must not hold line breaks.")
    if event.retry is not None and event.retry < 0:
        raise ValueError(f"server-sent event: retry={event.retry!r} must be seconds, 0 or more.")
    return sse_starlette.ServerSentEvent(
        event.data if isinstance(event.data, str) else msgspec.json.encode(event.data).decode(),
        event=name,
        id=id_,
        retry=None if event.retry is None else round(event.retry * 1000),
        sep="\n",
    ).encode()


def _as_event(item: Any) -> ServerSentEvent:
    if isinstance(item, ServerSentEvent):
        return item
    if isinstance(item, Mapping) and "data" in item and item.keys() <= FIELDS:
        return ServerSentEvent(**item)
    return ServerSentEvent(item)
