"""What `@http` methods are given: a request whose body is bounded, read as it comes or beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import Message, Receive, Scope

__all__ = ["BlockingRequest", "BodyReader", "HttpRequest"]

BODY_SILENCE = 30.0
"""Seconds a client may pause in the middle of a body. Arbitrary; it ends requests that would never end."""


class BodyReader:
    """The ASGI `receive` of one request, with a bound on the body's size and on pauses in it."""

    def __init__(self, scope: Scope, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._read = 0
        self._whole = False
        declared = _content_length(scope)
        if declared is not None and declared > max_bytes:
            raise self._too_large()

    async def __call__(self) -> Message:
        """The next ASGI message.

        Raises:
            HTTPException: 413 when the body is too large, 408 when it does not go on.
        """
        if self._whole:
            return await self._receive()  # that the client has gone, whenever it does
        try:
            async with asyncio.timeout(BODY_SILENCE):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The body did not go on for {BODY_SILENCE:g} s.") from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._read > self._max_bytes:
                raise self._too_large()
        return message

    async def read_all(self) -> bytes:
        """The whole body.

        Raises:
            ClientDisconnect: the client went away before its end.
            HTTPException: as `__call__()`.
        """
        parts: list[bytes] = []
        while not self._whole:
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
        return b"".join(parts)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The body is larger than {self._max_bytes} bytes.")


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


class HttpRequest(Request):
    """Starlette's request, as an `async def` method gets it; `json()` answers a body that is no JSON with 400."""

    async def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            HTTPException: 400, with the place of the fault; the client sees it if nobody catches it.
        """
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class BlockingRequest(HTTPConnection):
    """What a `def` method gets: the same request with its body already read, so that nothing needs awaiting.

    `url`, `headers`, `query_params`, `path_params`, `cookies` and `client` are Starlette's.
    """

    def __init__(self, scope: MutableMapping[str, Any], body: bytes) -> None:
        super().__init__(scope)
        self._body = body

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    def body(self) -> bytes:
        """The body's bytes."""
        return self._body

    def text(self) -> str:
        """The body as UTF-8 text.

        Raises:
            HTTPException: 400, it is not UTF-8.
        """
        try:
            return self._body.decode()
        except UnicodeDecodeError as exc:
            raise HTTPException(400, f"The body is not UTF-8 text: {exc.reason}.") from exc

    def json(self) -> Any:
        """The body, read as JSON.

        Raises:
            HTTPException: 400, with the place of the fault.
        """
        return parse_json(self._body)


def parse_json(body: bytes) -> Any:
    """Read JSON as RFC 8259 has it.

    Raises:
        HTTPException: 400, with the place of the fault.
    """
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as exc:
        raise HTTPException(400, f"The body is not JSON: {exc}.") from exc
    except UnicodeDecodeError as exc:
        raise HTTPException(400, f"The body is not JSON: not UTF-8 ({exc.reason}).") from exc
