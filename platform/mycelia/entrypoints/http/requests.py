"""What `@http` methods are given: a request whose body is bounded, read as it comes or beforehand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import Message, Receive, Scope

__all__ = ["BlockingRequest", "BodyBudget", "BodyReader", "HttpRequest"]

LEAST_PROGRESS = 1024
"""Bytes that count as going on, while a body is read beforehand. Below it a trickle would never end."""


SMALL_BODY_BYTES = 64 * 1024
"""A body up to this size is read however much others hold: large uploads must not keep small requests out."""


class BodyBudget:
    """How many bytes of bodies may be held at once, over all requests that share it.

    Args:
        max_bytes: from which on bodies beyond `SMALL_BODY_BYTES` are refused.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0


class BodyReader:
    """The ASGI `receive` of one request, with a bound on the body's size and on how slowly it may come.

    Args:
        scope: of the request.
        receive: the server's.
        max_bytes: of the body.
        timeout: seconds of waiting for the client in which the body must go on.
        budget: what whole bodies share; `release()` gives back this one's part.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        max_bytes: int,
        timeout: float,
        budget: BodyBudget | None = None,
    ) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._patience = timeout
        """Seconds that remain until there must be progress; only those count in which the client is waited for."""
        self._progress = 0
        self._least_progress = 1
        self._read = 0
        self._whole = False
        self._held: bytes | None = None
        self._budget = budget
        self._taken = 0
        declared = _content_length(scope)
        self._is_too_large = declared is not None and declared > max_bytes

    async def __call__(self) -> Message:
        """The next ASGI message.

        Raises:
            HTTPException: 413 when the body is too large, or is announced so; 408 when it does not go on.
        """
        if self._held is not None:
            # `Request.is_disconnected()` asks in a scope that is cancelled at its first wait; it must not take the body.
            await asyncio.sleep(0)
            body, self._held = self._held, None
            return {"type": "http.request", "body": body, "more_body": False}
        self.refuse_too_large()
        if self._whole:
            return await self._receive()  # that the client has gone, whenever it does
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408, f"The body did not go on for {self._timeout:g} s.", {"Connection": "close"}
            ) from None
        self._patience -= time.monotonic() - began
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._read += size
            self._progress += size
            if self._progress >= self._least_progress:
                self._progress, self._patience = 0, self._timeout
            self._whole = not message.get("more_body", False)
            if self._read > self._max_bytes:
                raise self._too_large()
        return message

    def refuse_too_large(self) -> None:
        """Raises HTTPException 413 where a larger body is announced than may come."""
        if self._is_too_large:
            raise self._too_large()

    async def read_all(self) -> bytes:
        """The whole body.

        Raises:
            ClientDisconnect: the client went away before its end.
            HTTPException: as `__call__()`; 408 also for less than `LEAST_PROGRESS` in the time; 503 when the budget
                is used up.
        """
        self._least_progress = LEAST_PROGRESS
        parts: list[bytes] = []
        while not self._whole:
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            self._take(len(part))
            parts.append(part)
        return b"".join(parts)

    def _take(self, size: int) -> None:
        budget = self._budget
        if budget is None:
            return
        self._taken += size
        budget.held += size
        if budget.held > budget.max_bytes and self._taken > SMALL_BODY_BYTES:
            raise HTTPException(
                503,
                "Too many large bodies at once; try again later.",
                {"Retry-After": "1"},
            )

    def release(self) -> None:
        """The body is held no more. Idempotent."""
        if self._budget is not None:
            self._budget.held -= self._taken
            self._taken = 0

    async def read_ahead(self) -> None:
        """Have the whole body here, for who asks for it next. Raises as `read_all()`."""
        self._held = await self.read_all()

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
    except RecursionError:
        raise HTTPException(400, "The body's JSON is nested too deeply.") from None
    except UnicodeDecodeError as exc:
        raise HTTPException(400, f"The body is not JSON: not UTF-8 ({exc.reason}).") from exc
