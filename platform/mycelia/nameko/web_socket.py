"""Nameko's websocket protocol (`nameko.web.websocket`) on ASGI.

Nameko's own `WebSocketServer` reads requests, finds methods and forms replies, in JSON text frames:

    ← {"type": "event", "event": "connected", "data": {"socket_id": "…"}}
    → {"method": "subscribe", "data": {"channel": "delays"}, "correlation_id": "1"}
    ← {"type": "result", "success": true, "data": null, "correlation_id": "1"}
    ← {"type": "result", "success": false, "error": {"exc_type": …, "value": …}, "correlation_id": "2"}
    ← {"type": "event", "event": "delayed", "data": …}

This module gives it a socket; `hub.py` makes its hub fit for workers that are threads.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from mycelia.log_event import event
from mycelia.nameko.managed_thread import run_in_daemon_thread
from mycelia.nameko.wsgi import Receive, Scope, Send, make_environ

__all__ = ["serve_websocket"]

log = logging.getLogger("mycelia.nameko")

MAX_WAITING = 1000
"""Frames that may wait for a slow client. One more, and it is disconnected: a hub must not fill up with them."""

TRY_AGAIN_LATER = 1013
"""The close code for a client that is too slow (RFC 6455 §7.4, IANA registry)."""


class _Socket:
    """What Nameko's server and hub send to; from any thread, without waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: asyncio.Queue[str | None] = asyncio.Queue()
        self.is_too_slow = False

    def send(self, frame: str) -> None:
        """Put `frame` behind those that wait. What is sent to a socket that has closed goes nowhere."""
        try:
            self._loop.call_soon_threadsafe(self.send_nowait, frame)
        except RuntimeError:
            log.debug(event("websocket_frame_dropped", detail="the event loop is closed"))

    def send_nowait(self, frame: str | None) -> None:
        if self.is_too_slow:
            return
        if self._frames.qsize() >= MAX_WAITING:
            self.is_too_slow = True
            frame = None
        self._frames.put_nowait(frame)

    async def write(self, send: Send) -> None:
        """Send what is put in, until `None` comes or the client turns out to be too slow."""
        while (frame := await self._frames.get()) is not None and not self.is_too_slow:
            await send({"type": "websocket.send", "text": frame})


async def serve_websocket(server: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one websocket with a bound `nameko.web.websocket.WebSocketServer`, until either side ends it."""
    from werkzeug.wrappers import Request

    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    request = Request(make_environ(scope), shallow=True)
    socket = _Socket(asyncio.get_running_loop())
    context_data = server.wsgi_server.context_data_from_headers(request)
    socket_id, context_data = server.add_websocket(socket, context_data)
    socket.send_nowait(server.serialize_event("connected", {"socket_id": socket_id}))
    try:
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(
                _read(server, socket, socket_id, context_data, receive),
                name=f"mycelia:websocket:{socket_id}",
            )
            await socket.write(send)
            reader.cancel()
            if socket.is_too_slow:
                log.warning(event("websocket_too_slow", socket=socket_id, waiting=MAX_WAITING))
                await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
    finally:
        # Users' hubs may do more here than forget the socket.
        await asyncio.shield(
            run_in_daemon_thread(lambda: server.remove_socket(socket_id), "websocket_closed")
        )


async def _read(
    server: Any, socket: _Socket, socket_id: str, context_data: dict[str, Any], receive: Receive
) -> None:
    """Answer a client's requests one after the other, as Nameko does, until it goes away."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            socket.send_nowait(None)
            return
        text = message.get("text")
        frame = message.get("bytes") if text is None else text
        socket.send_nowait(await _answer(server, socket_id, context_data, frame))


async def _answer(server: Any, socket_id: str, context_data: dict[str, Any], frame: Any) -> str:
    answer: str = await run_in_daemon_thread(
        lambda: server.handle_websocket_request(socket_id, context_data, frame), "websocket"
    )
    return answer
