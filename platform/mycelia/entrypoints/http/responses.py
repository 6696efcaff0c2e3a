"""What `@http` methods return, as responses, and errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from mycelia.call import GiveBack, Outcome
from mycelia.entrypoints.http.server_sent_events import HEARTBEAT, ServerSentEvents, encode_event
from mycelia.entrypoints.http.streams import ResponseStream
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    CircuitOpen,
    HandlerTimeout,
    Overloaded,
    RpcTimeout,
    UnknownService,
)

__all__ = ["encode_body", "problem", "problem_of", "response_of", "stopping"]

JSON = "application/json"
PROBLEM = "application/problem+json"
TEXT = "text/plain"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"

EVENT_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back until its buffer is full
}

FORMS = "body, (status, body) or (status, headers, body)"

UNAVAILABLE = (Overloaded, CircuitOpen, BrokerUnavailable, BrokerBlocked, UnknownService)


def encode_body(value: Any) -> bytes | None:
    """The bytes of what a method returned; `None` for what is no plain body (a response, a stream).

    Raises:
        TypeError: JSON has no form for it.
    """
    payload = _taken_apart(value)[2] if type(value) is tuple else value
    if isinstance(payload, str):
        return payload.encode()
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    if _is_stream(payload) or isinstance(payload, Response):
        return None
    return msgspec.json.encode(payload)


def _is_stream(payload: Any) -> bool:
    return isinstance(payload, ServerSentEvents | AsyncIterable | Iterator)


def _taken_apart(value: tuple[Any, ...]) -> tuple[int, Any, Any]:
    status, headers, payload = (
        value if len(value) == 3 else (value[0], None, value[1]) if len(value) == 2 else (None,) * 3
    )
    is_status = isinstance(status, int) and not isinstance(status, bool) and 200 <= status <= 599
    if not is_status or isinstance(payload, Response):
        raise TypeError(
            f"an @http method returned a tuple that is neither {FORMS}: {value!r:.200}. For a JSON array return a list."
        )
    assert isinstance(status, int)
    return int(status), headers, payload


def response_of(value: Any, body: bytes | None, stopping: asyncio.Event) -> Response:
    """The response for what a method returned.

    Args:
        value: as it was returned.
        body: what `encode_body(value)` gave.
        stopping: set when the service stops; ends event streams.

    Raises:
        TypeError: a tuple of another form; a header that is not text; a body where the status has none.
    """
    if isinstance(value, Response):
        return value
    status, headers, payload = _taken_apart(value) if type(value) is tuple else (200, None, value)
    response: Response
    if isinstance(payload, ServerSentEvents):
        response = ResponseStream(
            payload.events,
            status,
            EVENTS,
            encode=encode_event,
            heartbeat=HEARTBEAT,
            heartbeat_interval=payload.heartbeat,
            stopping=stopping,
        )
        response.headers.update(EVENT_STREAM_HEADERS)
        _set_headers(response, payload.headers)
    elif isinstance(payload, AsyncIterable):
        response = ResponseStream(payload, status, BYTES, encode=_as_bytes)
    elif isinstance(payload, Iterator):
        response = StreamingResponse(payload, status, media_type=BYTES)
    elif status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        if payload not in (None, "", b""):
            raise TypeError(
                f"an @http method returned status {status} with a body; that status has none. Return ({status}, None)."
            )
        response = Response(None, status)
    else:
        response = Response(body, status, media_type=_media_type(payload))
    if headers is not None:
        _set_headers(response, headers)
    return response


def _media_type(payload: Any) -> str:
    if isinstance(payload, str):
        return TEXT
    return BYTES if isinstance(payload, bytes | bytearray | memoryview) else JSON


def _set_headers(response: Response, headers: Any) -> None:
    """Headers given as a mapping, or as pairs where a name may come several times (`Set-Cookie`); they replace its own."""
    pairs: Iterable[tuple[Any, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    given = [(str(name), str(value)) for name, value in pairs]
    for name, value in given:
        if any(c in name + value for c in "\r\n\0"):
            raise TypeError(f"header {name!r}: {value!r} must not hold line breaks.")
        if name in response.headers:
            del response.headers[name]
    for name, value in given:
        response.headers.append(name, value)


def _as_bytes(chunk: Any) -> bytes:
    if isinstance(chunk, str):
        return chunk.encode()
    if isinstance(chunk, bytes | bytearray | memoryview):
        return bytes(chunk)
    raise TypeError(
        f"a streamed body is made of text and bytes, got {type(chunk).__name__}. "
        "For events return ServerSentEvents(...)."
    )


# --- errors --------------------------------------------------------------------------------------


def problem(
    status: int,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem document: `type`, `title`, `status`, `detail`, and `members` that are not `None`."""
    document = {
        "type": "about:blank",
        "title": _phrase(status),
        "status": status,
        "detail": detail,
        **{name: value for name, value in members.items() if value is not None},
    }
    return Response(msgspec.json.encode(document), status, headers, PROBLEM)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem_of(
    error: BaseException,
    expected: type[BaseException] | tuple[type[BaseException], ...],
    call_id: str,
    *,
    is_stopping: bool = False,
) -> Response:
    """The problem document for what a method raised. Only expected errors show their text to the client.

    400 for `expected`, the error's own status for Starlette's `HTTPException`, 503 where a limit is reached or the broker
    or a service is away, 504 for what took too long, here or in a service that is needed, 500 for everything else.
    """
    if isinstance(error, HTTPException):
        return problem(error.status_code, str(error.detail), headers=error.headers, call_id=call_id)
    if isinstance(error, expected):
        return problem(400, str(error), error=type(error).__name__, call_id=call_id)
    if isinstance(error, RpcTimeout):
        return problem(
            504, "A service that is needed here did not answer in time.", call_id=call_id
        )
    if isinstance(error, HandlerTimeout):
        return problem(504, "The request took longer than it may.", call_id=call_id)
    if is_stopping:
        return problem_of(stopping(), (), call_id)
    if isinstance(error, UNAVAILABLE):
        return problem(
            503,
            "What is needed here is overloaded or away; try again later.",
            headers=_retry_after(error.retry_after),
            call_id=call_id,
        )
    return problem(
        500,
        "The request failed inside the service; its log says more under the call id.",
        call_id=call_id,
    )


def status_of(
    outcome: Outcome, expected: type[BaseException] | tuple[type[BaseException], ...]
) -> int:
    """The status that a request with this outcome is answered with."""
    if outcome.error is not None:
        is_stopping = isinstance(outcome.settlement, GiveBack)
        return problem_of(outcome.error, expected, "", is_stopping=is_stopping).status_code
    value = outcome.value
    if isinstance(value, Response):
        return value.status_code
    try:
        return _taken_apart(value)[0] if type(value) is tuple else 200
    except TypeError:  # no response: an error of the method
        return 500


def stopping() -> HTTPException:
    """The answer of a service that is not up yet or on its way down. Another instance can answer at once."""
    headers = _retry_after(1.0) | {"Connection": "close"}
    return HTTPException(503, "The service is starting or stopping.", headers)


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {"Retry-After": str(max(1, round(seconds or 1)))}
