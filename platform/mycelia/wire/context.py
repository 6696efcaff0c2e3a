"""Context data and the headers that carry it from call to call.

Each item of a worker's context travels as the header `nameko.<key>` (nameko/messaging.py:34-71). Stock Nameko keeps
*every* header that it receives, adds the prefix to it, and sends it on. So a header from the broker or from a
retry would travel from hop to hop for ever; `decode_context` lets nothing in that belongs to one message alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mycelia.wire.compression import COMPRESSION_HEADER

__all__ = [
    "ATTEMPT_HEADER",
    "AUTH_TOKEN",
    "CALL_ID_STACK",
    "DEADLINE_HEADER",
    "DEADLINE_MS",
    "HEADER_PREFIX",
    "LANGUAGE",
    "TRACEPARENT",
    "TRACESTATE",
    "USER_AGENT",
    "USER_ID",
    "decode_context",
    "encode_context",
    "read_attempt",
    "read_deadline_ms",
]

HEADER_PREFIX: Final = "nameko."

# Keys of the context, as Nameko names them (nameko/constants.py:27-31).
CALL_ID_STACK: Final = "call_id_stack"
AUTH_TOKEN: Final = "auth_token"
LANGUAGE: Final = "language"
USER_ID: Final = "user_id"
USER_AGENT: Final = "user_agent"

DEADLINE_MS: Final = "deadline_ms"
"""When the call is given up: whole milliseconds since the epoch, wall clock (header `nameko.deadline_ms`)."""

DEADLINE_HEADER: Final = HEADER_PREFIX + DEADLINE_MS
"""The header itself."""

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
"""W3C trace context; written without the prefix, read with and without."""

ATTEMPT_HEADER: Final = "x-mycelia-attempt"
"""Header of one message: which attempt this delivery is, an int from 1. Never inherited by the next call."""

_UNPREFIXED = frozenset({TRACEPARENT, TRACESTATE})

# Headers about one message, set by the broker (dead lettering, quorum queues, streams, federation, shovel), by
# kombu (`compression`) or by this platform.
_ONE_MESSAGE = frozenset(
    {
        "x-acquired-count",
        "x-death",
        "x-delay",
        "x-delivery-count",
        "x-received-from",
        "CC",
        "BCC",
        COMPRESSION_HEADER,
    }
)
_ONE_MESSAGE_PREFIXES = (
    "x-first-death-",
    "x-last-death-",
    "x-mycelia-",
    "x-opt-",
    "x-shovelled",
    "x-stream-",
)


def encode_context(context: Mapping[str, Any]) -> dict[str, Any]:
    """Headers for a context. Items that are `None` are left out, as Nameko leaves them out."""
    return {
        key if key in _UNPREFIXED else HEADER_PREFIX + key: value
        for key, value in context.items()
        if value is not None
    }


def decode_context(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The context in a message's headers, without what belongs to that one message.

    Headers without the prefix are kept under their own name. Where a name comes both with and without the prefix
    the one without wins for the trace context (it was written by the nearest sender), the one with it for the rest.
    """
    if not headers:
        return {}
    context: dict[str, Any] = {}
    for header, value in headers.items():
        if header.startswith(HEADER_PREFIX):
            key = header[len(HEADER_PREFIX) :]
            if key in _UNPREFIXED and key in headers:
                continue
        else:
            key = header
            if key not in _UNPREFIXED and HEADER_PREFIX + key in headers:
                continue
        if key in _ONE_MESSAGE or key.startswith(_ONE_MESSAGE_PREFIXES):
            continue
        context[key] = value
    return context


def read_deadline_ms(context: Mapping[str, Any]) -> int | None:
    """The deadline in a context, in milliseconds since the epoch; `None` if absent or not a number."""
    return _whole_number(context.get(DEADLINE_MS))


def read_attempt(headers: Mapping[str, Any] | None) -> int:
    """Which attempt a message is, from 1; 1 if the header is absent or makes no sense."""
    attempt = _whole_number(headers.get(ATTEMPT_HEADER)) if headers else None
    return attempt if attempt is not None and attempt > 0 else 1


def _whole_number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):  # text that is no number; NaN; infinity
        return None
