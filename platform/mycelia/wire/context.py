"""Context data and the headers that carry it from call to call.

Each item of a worker's context travels as the header `nameko.<key>` (nameko/messaging.py:34-71). Stock Nameko keeps
*every* header that it receives, adds the prefix to it, and sends it on. So a header from the broker or from a
retry would travel from hop to hop for ever; `decode_context` lets nothing in that belongs to one message alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mycelia.errors import UnserializableValueError
from mycelia.wire.baggage import BAGGAGE, is_baggage
from mycelia.wire.compression import COMPRESSION_HEADER

__all__ = [
    "ATTEMPT_HEADER",
    "AUTH_TOKEN",
    "CALL_ID_STACK",
    "DEADLINE_HEADER",
    "HEADER_PREFIX",
    "LANGUAGE",
    "MAX_ATTEMPT",
    "MAX_CONTEXT_ITEMS",
    "PUBLISHED_HEADER",
    "RETURNS_HEADER",
    "TRACEPARENT",
    "TRACESTATE",
    "USER_AGENT",
    "USER_ID",
    "carried_item",
    "decode_context",
    "encode_context",
    "read_attempt",
    "read_deadline_ms",
    "read_published_ms",
    "read_returns",
    "trace_id_of",
]

HEADER_PREFIX: Final = "nameko."

# Keys of the context, as Nameko names them (nameko/constants.py:27-31).
CALL_ID_STACK: Final = "call_id_stack"
AUTH_TOKEN: Final = "auth_token"
LANGUAGE: Final = "language"
USER_ID: Final = "user_id"
USER_AGENT: Final = "user_agent"

DEADLINE_HEADER: Final = HEADER_PREFIX + "deadline_ms"
"""When the call is given up: whole milliseconds since the epoch, wall clock. Part of the context, so a stock Nameko
service passes it on."""

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
"""W3C trace context; written without the prefix, read with and without."""

ATTEMPT_HEADER: Final = "x-mycelia-attempt"
"""Header of one message: which attempt this delivery is, an int from 1. Never inherited by the next call."""

RETURNS_HEADER: Final = "x-mycelia-returns"
"""Header of one message: how often it has come back without an outcome, on a queue that does not count that itself."""

PUBLISHED_HEADER: Final = "x-mycelia-published-ms"
"""Header of one message: when it was published first, whole milliseconds since the epoch, by its publisher's wall clock. Set
where that has metrics on: AMQP's own `timestamp` has seconds only."""

MAX_ATTEMPT: Final = 1_000_000
"""What `read_attempt` and `read_returns` read at most. Arbitrary; it leaves room for further counting in every integer type of AMQP."""

MAX_CONTEXT_ITEMS: Final = 500
"""Headers of one message that become context. Arbitrary: far above what anybody sends, and a bound for what is sent on."""

_UNPREFIXED = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})
_KEPT = (CALL_ID_STACK, AUTH_TOKEN, LANGUAGE, USER_ID, USER_AGENT)
"""What is context however many headers there are beside it."""

# Headers about one message, set by the broker (dead lettering, quorum queues, streams, federation, shovel), by
# kombu (`compression`) or by this platform (`x-log-` of an entry of a log).
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
    "x-log-",
    "x-last-death-",
    "x-mycelia-",
    "x-opt-",
    "x-shovelled",
    "x-stream-",
)


def encode_context(context: Mapping[str, Any]) -> dict[str, Any]:
    """Headers for a context. Items that are `None` are left out, as Nameko leaves them out.

    Raises:
        UnserializableValueError: a key is no text.
    """
    try:
        return {
            key if key in _UNPREFIXED else HEADER_PREFIX + key: value
            for key, value in context.items()
            if value is not None
        }
    except TypeError:
        keys: list[object] = list(context)
        wrong = next(key for key in keys if not isinstance(key, str))
        raise UnserializableValueError(
            f"context data: the key {wrong!r} is of type {type(wrong).__name__}; keys are text."
        ) from None


def decode_context(
    headers: Mapping[str, Any] | None, left_out: list[str] | None = None
) -> dict[str, Any]:
    """The context in a message's headers, without what belongs to that one message.

    Headers without the prefix are kept under their own name. Where a name comes both with and without the prefix
    the one without wins for the trace context and baggage (it was written by the nearest sender), the one with it for the rest.
    Baggage that is longer than it may be, or no baggage, is left out; so are headers beyond `MAX_CONTEXT_ITEMS`.

    Args:
        left_out: told what was left out for its size or form.
    """
    if not headers:
        return {}
    if len(headers) > MAX_CONTEXT_ITEMS:
        headers = _first(headers, [] if left_out is None else left_out)
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
    if BAGGAGE in context and not is_baggage(context[BAGGAGE]):
        baggage = context.pop(BAGGAGE)
        if left_out is not None:
            size = f"{len(baggage)} characters" if isinstance(baggage, str) else "no text"
            left_out.append(f"{BAGGAGE} ({size})")
    return context


def carried_item(headers: Mapping[str, Any] | None, name: str) -> Any:
    """What `decode_context()` would have under `name`, of headers that nobody is to decode for it; `None` where there is nothing."""
    if not headers:
        return None
    prefixed = HEADER_PREFIX + name
    first, second = (name, prefixed) if name in _UNPREFIXED else (prefixed, name)
    return headers[first] if first in headers else headers.get(second)


def _first(headers: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """As many of `headers` as may become context: those with a meaning, then the first."""
    known = [DEADLINE_HEADER, *_UNPREFIXED, *(HEADER_PREFIX + key for key in _KEPT)]
    found = {name: headers[name] for name in known if name in headers}
    for name, value in headers.items():
        if len(found) >= MAX_CONTEXT_ITEMS:
            break
        found[name] = value
    left_out.append(f"{len(headers) - len(found)} of {len(headers)} headers")
    return found


def read_deadline_ms(headers: Mapping[str, Any] | None) -> int | None:
    """When the call is given up, in milliseconds since the epoch; `None` if nobody said, or not with a number.

    Text that is a number counts as one: not every client keeps its headers' types. Past and future are bounded by the
    epoch and the year 9999, so that whatever a header holds can be computed with.
    """
    value = headers.get(DEADLINE_HEADER) if headers else None
    if value is None:
        return None
    if type(value) is int and 0 < value < _YEAR_9999_MS:
        return value  # nearly always
    deadline_ms = _whole_number(value)
    return None if deadline_ms is None else min(max(deadline_ms, 0), _YEAR_9999_MS)


def read_attempt(headers: Mapping[str, Any] | None) -> int:
    """Which attempt a message is, from 1 to `MAX_ATTEMPT`; 1 if the header is absent or no number."""
    value = headers.get(ATTEMPT_HEADER) if headers else None
    if value is None:
        return 1
    attempt = _whole_number(value)
    return 1 if attempt is None else min(max(attempt, 1), MAX_ATTEMPT)


def read_returns(headers: Mapping[str, Any] | None) -> int:
    """What `RETURNS_HEADER` says, from 0 to `MAX_ATTEMPT`; 0 if the header is absent or no number."""
    value = headers.get(RETURNS_HEADER) if headers else None
    if value is None:
        return 0
    returns = _whole_number(value)
    return 0 if returns is None else min(max(returns, 0), MAX_ATTEMPT)


def trace_id_of(traceparent: Any) -> str | None:
    """The trace id in a W3C `traceparent` (`00-{32 hex digits}-{16}-{2}`); `None` where there is none."""
    if not isinstance(traceparent, str):
        return None
    parts = traceparent.split("-", 4)
    if len(parts) < 4 or len(parts[1]) != 32 or not (parts[1].isascii() and parts[1].isalnum()):
        return None
    return parts[1]


def read_published_ms(headers: Mapping[str, Any] | None) -> int | None:
    """When a message was published first, in milliseconds since the epoch; `None` if nobody said, or not with such a number."""
    value = headers.get(PUBLISHED_HEADER) if headers else None
    return value if type(value) is int and 0 < value < _YEAR_9999_MS else None


_YEAR_9999_MS = 253_402_300_799_999
_MAX_DIGITS = (
    32  # no number that makes sense is longer, and `int()` takes ever longer for long text
)


def _whole_number(value: object) -> int | None:
    """`value` as a whole number, where it is a number or the text of one."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and len(value) > _MAX_DIGITS:
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):  # text that is no number; NaN; infinity
        return None
