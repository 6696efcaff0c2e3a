"""POST of what leaves a flow, as JSON. Made by `stream.post()`."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import IO, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from mycelia.durations import Duration, seconds_of
from mycelia.errors import ConfigError, FlowError, RetryLater
from mycelia.flow.sinks.requests import RequestSink
from mycelia.flow.sinks.sink import SinkRefused
from mycelia.flow.sinks.threaded import SinkThreads

__all__ = ["PostSink", "retry_after"]

T = TypeVar("T")

_NOT_NOW: Final = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may be answered otherwise in a while."""

_LONGEST_WAIT: Final = 600.0
"""Seconds that a `Retry-After` is followed."""

_SHOWN: Final = 200
"""Bytes of an answer that go into a line of the log."""

_encode: Final = msgspec.json.Encoder().encode


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would come there as a GET."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


class _Received(io.RawIOBase):
    """What comes by a socket until a deadline. The time-out of a socket is of each piece, and an answer may be made of any number of them."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline
        self._bytes = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._socket.settimeout(_left_until(self._deadline))
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        self._bytes.close()
        super().close()


class _AnsweringSocket:
    """What an `HTTPResponse` asks of a socket."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._socket, self._deadline))


class _Connection(http.client.HTTPConnection):
    """One request, from the connection to the end of its answer's head, within `timeout`."""

    def __init__(self, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._deadline = time.monotonic() + float(self.timeout or 0)

    def connect(self) -> None:
        super().connect()  # each address has the whole time-out; what follows has what is left
        self.sock.settimeout(_left_until(self._deadline))

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(_left_until(self._deadline))
        super().send(data)

    def response_class(  # type: ignore[override]  # the class of answers; called as it is
        self, sock: socket.socket, **options: Any
    ) -> http.client.HTTPResponse:
        answering: Any = _AnsweringSocket(sock, self._deadline)
        return http.client.HTTPResponse(answering, **options)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    """The same under TLS: what `connect()` follows is then `HTTPSConnection`'s."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req)


def _left_until(deadline: float) -> float:
    """
    Raises:
        TimeoutError: nothing.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("not answered in time")
    return left


class PostSink(RequestSink[T]):
    """See `Stream.post()`."""

    def __init__(
        self,
        url: str,
        *,
        batch: int | None,
        concurrency: int,
        timeout: Duration,
        attempts: int | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"post({parts.scheme}://…): expected http://… or https://….")
        self.name = (
            f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        )
        what = f"post({self.name!r})"
        super().__init__(what, batch, concurrency)
        if parts.username or parts.password:
            raise ConfigError(f"{what}: give a name and a password in headers=, not in the URL.")
        if attempts is not None and (type(attempts) is not int or attempts < 1):
            raise ConfigError(f"{what}: attempts={attempts!r:.60}; expected a number from 1.")
        self._url = url
        self._timeout = seconds_of(timeout, f"{what}: timeout=")
        self._attempts = attempts
        self._headers = dict(headers or {})
        self._failed: dict[str, int] = {}
        self._opener = urllib.request.build_opener(_NoRedirects, _Http, _Https)
        self._threads = SinkThreads("mycelia-flow-http")

    async def _ask(self, payload: Any, idempotency_id: str) -> None:
        status, after, told = await self._threads.run(self._post, _encode(payload), idempotency_id)
        if 200 <= status < 300:
            self._failed.pop(idempotency_id, None)
            return
        text = f"{self.name}: status {status}, {told!r} (Idempotency-Key {idempotency_id})"
        failed = self._failed[idempotency_id] = self._failed.get(idempotency_id, 0) + 1
        if status not in _NOT_NOW or failed == self._attempts:
            del self._failed[idempotency_id]
            raise SinkRefused(text)
        if after is not None:
            raise RetryLater(after, text)
        raise FlowError(text)

    def _post(self, body: bytes, idempotency_id: str) -> tuple[int, float | None, str]:
        """Status, `Retry-After` in seconds, and the beginning of what was answered."""
        request = urllib.request.Request(
            self._url,
            body,
            {
                "Content-Type": "application/json",
                "User-Agent": "mycelia",
                **self._headers,
                "Idempotency-Key": idempotency_id,
            },
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                status: int = answer.status
                return status, None, ""  # whatever else it has to say, however slowly
        except urllib.error.HTTPError as exc:
            with exc:
                answered: Any = exc.fp
                told = ""
                with suppress(OSError):  # that it says no is known already
                    told = answered.read1(_SHOWN).decode("utf-8", "replace")  # what there is by now
                return exc.code, retry_after(exc.headers.get("Retry-After"), time.time()), told

    async def aclose(self) -> None:
        self._threads.close()


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3), ten minutes at most; None where it says nothing."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return min(max(moment.timestamp() - now, 0.0), _LONGEST_WAIT)
