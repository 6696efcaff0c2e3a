"""A small HTTP server for probes and scrapes: standard library alone, on the services' event loop, bounded in every way.

`GET` and `HEAD` of a few paths, one answer a connection. Whoever connects more often than `MAX_CONNECTIONS` at once, is slow to
ask, or slow to read, is hung up on. What is answered is never computed twice at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from mycelia.errors import ConfigError
from mycelia.log_event import event

__all__ = ["Answer", "Handler", "ProbeServer"]

log = logging.getLogger("mycelia.metrics")

MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 8192
HEAD_S = 5.0
"""Seconds for the head of a request to come."""
ANSWER_S = 15.0
"""Seconds for an answer to be made, and to be read. Prometheus gives up a scrape after 10 by default. All four are arbitrary."""


class Answer(NamedTuple):
    """What is answered."""

    status: int
    content_type: str
    body: bytes


Handler = Callable[[Mapping[str, str]], Awaitable[Answer]]
"""Makes an answer, given the headers of the request (names in lower case)."""


class ProbeServer:
    """Answers at one address.

    Args:
        host: to listen at.
        port: 0 takes a free one.
        handlers: by path.
        key: the setting that names the port, for error messages.
    """

    def __init__(self, host: str, port: int, handlers: Mapping[str, Handler], *, key: str) -> None:
        self.host = host
        self.port = port
        self._handlers = dict(handlers)
        self._key = key
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.refused = 0
        """Connections above the bound."""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be had.
        """
        try:
            self._server = await asyncio.start_server(
                self._on_connection,
                self.host,
                self.port,
                limit=MAX_HEAD_BYTES,
                backlog=MAX_CONNECTIONS,
                reuse_address=True,
            )
        except OSError as exc:
            reason = (
                "is in use by another program"
                if exc.errno == errno.EADDRINUSE
                else f"cannot be had: {exc}"
            )
            raise ConfigError(
                f"{self._key}: port {self.port} of {self.host} {reason}. Free it, or set {self._key} to another one."
            ) from exc
        self.port = self._server.sockets[0].getsockname()[1]
        log.info(
            event(
                "probes_listening",
                address=f"{self.host}:{self.port}",
                paths=" ".join(self._handlers),
            )
        )

    async def stop(self) -> None:
        """Hang up and give up the address. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections, timeout=1.0)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            self.refused += 1
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        task.set_name("mycelia:probe")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)  # `drain()` is to wait until all of it has left
        try:
            async with asyncio.timeout(HEAD_S):
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError:
                    head = b""
            async with asyncio.timeout(ANSWER_S):
                writer.write(await self._answer(head) if head else _TOO_LARGE)
                await writer.drain()
            writer.close()
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            pass  # it was slow, or has gone
        finally:
            if not writer.is_closing():
                writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _written(_text(HTTPStatus.BAD_REQUEST), has_body=True)
        method, target, _ = parts
        handler = self._handlers.get(target.partition("?")[0])
        if handler is None:
            known = " ".join(self._handlers)
            return _written(_text(HTTPStatus.NOT_FOUND, f"There are: {known}"), has_body=True)
        if method not in ("GET", "HEAD"):
            return _written(_text(HTTPStatus.METHOD_NOT_ALLOWED), has_body=True)
        headers = {
            name.strip().lower(): value.strip()
            for name, colon, value in (line.partition(":") for line in lines[1:])
            if colon
        }
        try:
            answer = await handler(headers)
        except Exception:
            log.exception(event("probe_failed", path=target))
            answer = _text(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _written(answer, has_body=method == "GET")


def _text(status: HTTPStatus, more: str = "") -> Answer:
    text = f"{status.value} {status.phrase}\n{more}"
    return Answer(status.value, "text/plain; charset=utf-8", text.rstrip("\n").encode() + b"\n")


def _written(answer: Answer, *, has_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if has_body else b"")


_TOO_LARGE = _written(_text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), has_body=True)
