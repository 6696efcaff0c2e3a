"""A WSGI application behind ASGI: existing services answer HTTP through Nameko's own, blocking, application.

Each request has a daemon thread, in which the application waits for the worker; there are `max_requests` at once, the
next ones wait on the event loop. Request bodies are read whole first; response bodies go out as they are produced, no
faster than the client takes them.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from mycelia.nameko.managed_thread import run_in_daemon_thread

__all__ = ["Receive", "Scope", "Send", "WsgiBridge", "answer_plainly", "make_environ"]

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
WsgiApp = Callable[..., Iterable[bytes]]

SEND_TIMEOUT = 60.0
"""Seconds the client may take to read one piece of a response before its thread gives up."""


def make_environ(scope: Scope, body: bytes = b"") -> dict[str, Any]:
    """The WSGI environment (PEP 3333) of an ASGI request or websocket handshake."""
    server = scope.get("server") or ("localhost", 80)
    client = scope.get("client") or ("", 0)
    root = scope.get("root_path", "")
    path = scope["path"].removeprefix(root) if root else scope["path"]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.get("method", "GET"),
        "SCRIPT_NAME": root.encode().decode("latin-1"),
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1] or 80),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        value = raw_value.decode("latin-1")
        if name == "CONTENT_LENGTH":
            continue  # the body may have been chunked; its length is known by now
        if name == "CONTENT_TYPE":
            environ[name] = value
            continue
        key = f"HTTP_{name}"
        environ[key] = f"{environ[key]}, {value}" if key in environ else value
    return environ


class _Answer:
    """One response under way, from the application's thread to the event loop."""

    def __init__(self, send: Send, loop: asyncio.AbstractEventLoop) -> None:
        self._send = send
        self._loop = loop
        self._start: AsgiMessage | None = None
        self.is_started = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and self.is_started:
            raise exc_info[1].with_traceback(exc_info[2])
        self._start = {
            "type": "http.response.start",
            "status": int(status.split(" ", 1)[0]),
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ],
        }
        return self.write

    def write(self, chunk: bytes) -> None:
        self._emit(chunk, more=True)

    def end(self) -> None:
        self._emit(b"", more=False)

    def _emit(self, chunk: bytes, *, more: bool) -> None:
        """Send a piece and wait until the server has taken it: that is what slows a fast application down."""
        sending = asyncio.run_coroutine_threadsafe(self._emit_on_loop(chunk, more), self._loop)
        try:
            sending.result(SEND_TIMEOUT)
        except TimeoutError:
            sending.cancel()
            raise

    async def _emit_on_loop(self, chunk: bytes, more: bool) -> None:
        if not self.is_started:
            assert self._start is not None, "the application did not call start_response()"
            self.is_started = True
            await self._send(self._start)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})


class WsgiBridge:
    """An ASGI application that answers HTTP requests with a WSGI application.

    Args:
        app: the WSGI application; called in threads.
        max_body_bytes: larger request bodies are answered with 413.
        body_timeout: seconds in which a request's body must go on; then it is answered with 408.
        max_requests: how many requests may be under way at once.
    """

    def __init__(
        self, app: WsgiApp, *, max_body_bytes: int, body_timeout: float, max_requests: int = 256
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout
        self._room = asyncio.Semaphore(max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            ClientDisconnect: the client went away before its body's end; the application is not called.
        """
        # Starlette: only where there is HTTP
        from starlette.exceptions import HTTPException

        from mycelia.entrypoints.http.requests import BodyReader

        try:
            reader = BodyReader(scope, receive, self._max_body_bytes, self._body_timeout)
            body = await reader.read_all()
        except HTTPException as exc:
            await answer_plainly(send, exc.status_code, f"{exc.detail}\n")
            return
        answer = _Answer(send, asyncio.get_running_loop())
        environ = make_environ(scope, body)
        async with self._room:
            await run_in_daemon_thread(lambda: self._run(environ, answer), "http")

    def _run(self, environ: dict[str, Any], answer: _Answer) -> None:
        chunks = self._app(environ, answer.start_response)
        try:
            for chunk in chunks:
                if chunk:
                    answer.write(chunk)
            answer.end()
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()


async def answer_plainly(send: Send, status: int, text: str) -> None:
    """A response of one line, after which the connection is closed."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
