"""One line for each HTTP request of an existing service, as `nameko.web.server` has eventlet's server write it.

    127.0.0.1 - - [25/Nov/2026 22:51:31] "GET /planes/N1 HTTP/1.1" 200 134 0.001250

To the same logger, at the same level: what reads these lines goes on reading them (eventlet/wsgi.py,
`DEFAULT_LOG_FORMAT`). Responses to HEAD count the bytes that are sent, which is none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mycelia.nameko.wsgi import Receive, Scope, Send

__all__ = ["write_access_log"]

namekos = logging.getLogger("nameko.web.server")


async def write_access_log(
    app: Callable[[Scope, Receive, Send], Awaitable[None]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Have `app` answer one HTTP request, and write its line."""
    status, length = 0, 0

    async def counted(message: Any) -> None:
        nonlocal status, length
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            length += len(message.get("body", b""))
        await send(message)

    began = time.time()
    try:
        await app(scope, receive, counted)
    finally:
        # Text as it is, not an event with fields: whoever reads these lines knows this form.
        namekos.info(
            '%s - - [%s] "%s" %s %s %.6f',
            _client_of(scope),
            time.strftime("%d/%b/%Y %H:%M:%S"),
            _request_line(scope),
            status or "-",
            length,
            time.time() - began,
        )


def _client_of(scope: Scope) -> str:
    client = scope.get("client")
    host = str(client[0]) if client else "-"
    for name, value in scope.get("headers", ()):
        if name == b"x-forwarded-for":
            return f"{value.decode('latin-1').replace(' ', '')},{host}"
    return host


def _request_line(scope: Scope) -> str:
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{scope['method']} {path}{'?' if query else ''}{query} HTTP/{scope['http_version']}"
