"""The HTTP server's connections: uvicorn's, with an end to waiting for those that send nothing, or little.

uvicorn bounds how long a connection may be idle between two requests (5 s), and nothing else. Here the head of a
request must be there `head_timeout` seconds after its first byte, or after the connection was made; trickling does not
prolong it. A body that goes on after its response is read for `LINGER` seconds more and then cut off. How long a
response's own request may take to bring its body is `BodyReader`'s to judge, because it knows who reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from mycelia.log_event import event

__all__ = ["HttpConnection", "SlowClients"]

log = logging.getLogger("mycelia.entrypoints")

LINGER = 5.0
"""Seconds for the rest of a body that nobody reads. Closed at once, the client might not see the response (RST)."""

REPORT_DELAY = 5.0
"""Seconds in which connections are counted for one line. Arbitrary; a flood must not flood the log as well."""

REQUEST_TIMEOUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 32\r\nconnection: close\r\n\r\nThe request did not come in time"
)


class SlowClients:
    """Counts clients that were given up, and tells about many of them in one line."""

    def __init__(self) -> None:
        self.without_head = 0
        """Connections closed because no request came, or only the beginning of one."""
        self.without_body = 0
        """Requests whose body stopped."""
        self._told = (0, 0)
        self._timer: asyncio.TimerHandle | None = None

    def count_head(self) -> None:
        self.without_head += 1
        self._tell_soon()

    def count_body(self) -> None:
        self.without_body += 1
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPORT_DELAY, self.tell)

    def tell(self) -> None:
        """Write the line, if there is something new to say."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        heads, bodies = self.without_head - self._told[0], self.without_body - self._told[1]
        self._told = (self.without_head, self.without_body)
        if heads or bodies:
            log.warning(event("slow_clients_closed", without_head=heads, without_body=bodies))


class HttpConnection(H11Protocol):
    """One connection.

    Args:
        head_timeout: seconds in which the head of a request must have come.
        slow_clients: told of connections that are given up.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_timeout: float,
        slow_clients: SlowClients,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timeout = head_timeout
        self._slow_clients = slow_clients
        self._deadline: asyncio.TimerHandle | None = None
        self._awaits_head = False
        """What `_deadline` is for: a request's head, or else the rest of a body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_lingering and not self.transport.is_closing():
            self._set_deadline(LINGER, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        super().connection_lost(exc)

    @property
    def _is_lingering(self) -> bool:
        """Whether the response has been sent and the request's body goes on."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _watch(self) -> None:
        """After something has happened: be sure that a deadline runs where the client is to send something."""
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self._deadline is None or not self._awaits_head:
                self._set_deadline(self._head_timeout, self._head_is_late)
                self._awaits_head = True
        elif self._deadline is not None and not self._is_lingering:
            self._clear_deadline()

    def _set_deadline(self, seconds: float, action: Callable[[], None]) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, action)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._awaits_head = False

    def _head_is_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        self._slow_clients.count_head()
        if self.conn.trailing_data[0]:
            self.transport.write(REQUEST_TIMEOUT)
        self.transport.close()

    def _cut_off(self) -> None:
        self._deadline = None
        self.transport.close()
