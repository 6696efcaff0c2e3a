"""What a message becomes when it is published again: for another attempt, or as a dead letter. Pure.

It keeps its body and every property, with these exceptions:

| what | why | where it is kept |
|---|---|---|
| `expiration` | another attempt has only the time that is left; a dead letter must not expire | `x-mycelia-expires-at-ms` (of an attempt), `x-mycelia-expiration` |
| `user_id` of somebody else | RabbitMQ closes the channel over it | `x-mycelia-user-id` |
| the headers `CC` and `BCC` | the broker would send another copy to everyone named there | `x-mycelia-cc`, `x-mycelia-bcc` |
| a queue's own counts | true in that queue only | nowhere |
| exchange and routing key | it goes to a queue by its name | `x-mycelia-exchange`, `x-mycelia-routing-key` |
| other `x-mycelia-…` headers of a former life | a dead letter that somebody put back is a new message | nowhere |

Whatever arrived can be published again: what cannot be encoded or does not fit is cut or left out, and
`x-mycelia-left-out` names it. The body is never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mycelia.amqp import Delivery, Properties
from mycelia.amqp.delay_levels import EXPIRATION_HEADER, EXPIRES_AT_HEADER, expiration_of
from mycelia.amqp.fields import encode_properties, encode_table
from mycelia.amqp.uri import parse_uri
from mycelia.entrypoints.origin import EXCHANGE_HEADER, ROUTING_KEY_HEADER, origin_of
from mycelia.entrypoints.received import RETURNS_HEADERS
from mycelia.errors import ConfigError, class_name_of, text_of, traceback_of
from mycelia.wire import ATTEMPT_HEADER, RETURNS_HEADER, TRACEPARENT, trace_id_of

__all__ = [
    "FIRST_FAILED_HEADER",
    "HEADER_LIMITS",
    "QUEUE_HEADER",
    "REASON_HEADER",
    "as_it_is",
    "dead_letter",
    "dead_letter_headers",
    "expires_at_ms",
    "for_a_new_life",
    "for_another_attempt",
    "own_user",
]

HEADER_LIMITS: Final = (128 * 1024 - 1024, 32 * 1024, 4096 - 128)
"""Bytes of properties and headers to try, one after the other. They travel in one frame: of 128 KiB where nobody sets
`frame_max`, of 4 KiB at the very least (AMQP 0-9-1 §4.2.3)."""

MAX_EXPIRATION_MS: Final = 2**32 - 1
"""More than 49 days. RabbitMQ closes the channel over a longer time to live."""

MAX_ERROR_BYTES = 4 * 1024
MAX_TRACEBACK_BYTES = 16 * 1024
MAX_RAW_HEADERS_BYTES = 16 * 1024
MAX_NAME_BYTES = 1024
"""Of a class's or a method's name, and of the list of what was left out."""

OWN_PREFIX: Final = "x-mycelia-"
USER_ID_HEADER: Final = "x-mycelia-user-id"
TRACEBACK_HEADER: Final = "x-mycelia-traceback"
ERROR_HEADER: Final = "x-mycelia-error"
RAW_HEADERS_HEADER: Final = "x-mycelia-raw-headers"
LEFT_OUT_HEADER: Final = "x-mycelia-left-out"
REASON_HEADER: Final = "x-mycelia-reason"
QUEUE_HEADER: Final = "x-mycelia-queue"
FIRST_FAILED_HEADER: Final = "x-mycelia-first-failed-at-ms"
"""Of an attempt after a failed one, and of a dead letter: when it failed for the first time."""
TRACE_ID_HEADER: Final = "x-mycelia-trace-id"

_OF_EVERY_LIFE: Final = (
    *(EXCHANGE_HEADER, ROUTING_KEY_HEADER, EXPIRATION_HEADER, USER_ID_HEADER),
    *("x-mycelia-cc", "x-mycelia-bcc"),
)
_COPIES: Final = {"CC": "x-mycelia-cc", "BCC": "x-mycelia-bcc"}
_SHRINKABLE: Final = (RAW_HEADERS_HEADER, TRACEBACK_HEADER, ERROR_HEADER)
"""What is cut where there is little room, the least telling first."""


def own_user(uri: str) -> str | None:
    """The user that publishes on a link to `uri`: the only `user_id` that the broker lets through.

    `None` where there is none (`memory://`), or more than one.
    """
    try:
        users = {endpoint.user for endpoint in parse_uri(uri)}
    except ConfigError:
        return None
    return users.pop() if len(users) == 1 else None


def expires_at_ms(delivery: Delivery, now_ms: int) -> int | None:
    """When the message's time to live ends, in milliseconds since the epoch; `None` if it has none.

    An attempt after the first brings the moment along. For the first it is counted from now, as the broker does not tell
    how long the message has waited.
    """
    headers = delivery.properties.headers or {}
    end = headers.get(EXPIRES_AT_HEADER)
    if type(end) is int:
        return end
    expiration = expiration_of(delivery.properties)
    return None if expiration is None else now_ms + int(expiration)


def for_another_attempt(
    delivery: Delivery,
    *,
    attempt: int,
    returns: int,
    failed_at_ms: int | None = None,
    expires_at_ms: int | None,
    now_ms: int,
    user: str | None,
    limit: int = HEADER_LIMITS[0],
) -> Properties:
    """Properties for publishing the message to its queue again.

    Args:
        attempt: which one it will be, from 1.
        returns: how often it has come back without an outcome.
        failed_at_ms: when the attempt before has failed; an earlier failure that it tells of counts.
        expires_at_ms: when its time to live ends; the broker is told what is left of it.
        user: who publishes it.
        limit: bytes that all of it may take.
    """
    exchange, routing_key = origin_of(delivery)
    ours: dict[str, Any] = {
        ATTEMPT_HEADER: attempt,
        EXCHANGE_HEADER: exchange,
        ROUTING_KEY_HEADER: routing_key,
    }
    if returns:
        ours[RETURNS_HEADER] = returns
    theirs = delivery.properties.headers or {}
    failed_before = theirs.get(FIRST_FAILED_HEADER) if ATTEMPT_HEADER in theirs else None
    first_failed_at_ms = failed_before if type(failed_before) is int else failed_at_ms
    if first_failed_at_ms is not None:
        ours[FIRST_FAILED_HEADER] = first_failed_at_ms
    expiration = None
    if expires_at_ms is not None:
        left_ms = max(expires_at_ms - now_ms, 0)
        expiration = str(left_ms) if left_ms <= MAX_EXPIRATION_MS else None
        ours[EXPIRES_AT_HEADER] = expires_at_ms
    return _properties(delivery, ours, expiration, user, limit)


def dead_letter(
    delivery: Delivery, headers: Mapping[str, Any], *, user: str | None, limit: int
) -> Properties:
    """Properties for the message as a dead letter, with `headers` from `dead_letter_headers()`."""
    properties = _properties(delivery, dict(headers), None, user, limit)
    properties.delivery_mode = 2  # it waits for somebody to look at it
    return properties


def for_a_new_life(
    delivery: Delivery, *, user: str | None, limit: int = HEADER_LIMITS[0]
) -> Properties:
    """Properties for sending a dead letter to its handler again: a first attempt, in its old trace, with its `message_id`.

    It keeps the time to live that its publisher gave it, and nothing of its fate but where it was first published. What the
    broker wrote of its former ways goes too: RabbitMQ drops a message that it takes for one that goes in a circle.
    """
    headers = delivery.properties.headers or {}
    ours: dict[str, Any] = {name: headers[name] for name in _OF_EVERY_LIFE if name in headers}
    theirs = {name: value for name, value in headers.items() if not _is_of_one_life(str(name))}
    again = delivery.properties.republished(theirs)
    if user is not None and ours.get(USER_ID_HEADER) == user:
        again.user_id = ours.pop(USER_ID_HEADER)
    return _properties(_like(delivery, again), ours, None, user, limit)


def as_it_is(delivery: Delivery, *, user: str | None, limit: int = HEADER_LIMITS[0]) -> Properties:
    """Properties for publishing a dead letter to its own queue again: a dead letter as before."""
    headers = delivery.properties.headers or {}
    ours = {name: value for name, value in headers.items() if str(name).startswith(OWN_PREFIX)}
    return _properties(delivery, ours, None, user, limit)


def dead_letter_headers(
    delivery: Delivery,
    *,
    queue: str,
    service: str,
    method: str,
    reason: str,
    attempts: int,
    error: BaseException | None,
    now: float,
) -> dict[str, Any]:
    """The headers that tell a message's fate. `now` is wall-clock seconds. Never raises, whatever `error` is."""
    exchange, routing_key = origin_of(delivery)
    failed_at_ms = int(now * 1000)
    theirs = delivery.properties.headers or {}
    first_failed_at_ms = theirs.get(FIRST_FAILED_HEADER) if attempts > 1 else None
    headers: dict[str, Any] = {
        REASON_HEADER: reason,
        QUEUE_HEADER: queue,
        EXCHANGE_HEADER: exchange,
        ROUTING_KEY_HEADER: routing_key,
        "x-mycelia-service": _head(service, MAX_NAME_BYTES),
        "x-mycelia-method": _head(method, MAX_NAME_BYTES),
        "x-mycelia-failed-at-ms": failed_at_ms,
        FIRST_FAILED_HEADER: (
            first_failed_at_ms
            if type(first_failed_at_ms) is int and 0 < first_failed_at_ms < failed_at_ms
            else failed_at_ms
        ),
        "x-mycelia-attempts": attempts,
    }
    if (trace_id := trace_id_of(theirs.get(TRACEPARENT))) is not None:
        headers[TRACE_ID_HEADER] = trace_id
    if delivery.fault is not None:  # what could not be decoded goes along as it came
        headers[RAW_HEADERS_HEADER] = delivery.raw_headers[:MAX_RAW_HEADERS_BYTES]
    if error is not None:
        headers["x-mycelia-error-type"] = _head(class_name_of(error), MAX_NAME_BYTES)
        headers[ERROR_HEADER] = _head(text_of(error), MAX_ERROR_BYTES)
        headers[TRACEBACK_HEADER] = _tail(traceback_of(error), MAX_TRACEBACK_BYTES)
    return headers


# --- inside ----------------------------------------------------------------------------------------


def _is_of_one_life(header: str) -> bool:
    """Whether we wrote it, or RabbitMQ when it dead-lettered the message by itself."""
    return header == "x-death" or header.startswith((OWN_PREFIX, "x-first-death-", "x-last-death-"))


def _like(delivery: Delivery, properties: Properties) -> Delivery:
    """`delivery` with other properties."""
    return msgspec.structs.replace(delivery, properties=properties)


def _properties(
    delivery: Delivery, ours: dict[str, Any], expiration: str | None, user: str | None, limit: int
) -> Properties:
    properties = delivery.properties
    theirs: dict[Any, Any] = {}
    for name, value in (properties.headers or {}).items():
        if name in RETURNS_HEADERS or str(name).startswith(OWN_PREFIX):
            continue
        if name in _COPIES:
            ours[_COPIES[name]] = value
        else:
            theirs[name] = value
    original = expiration_of(properties)
    if original is not None:
        ours[EXPIRATION_HEADER] = original
    kept_user = (properties.headers or {}).get(USER_ID_HEADER)
    again = properties.republished(headers=None)
    again.expiration = expiration
    if properties.user_id is not None and properties.user_id != user:
        again.user_id = None
        ours[USER_ID_HEADER] = properties.user_id
    elif isinstance(kept_user, str):
        ours[USER_ID_HEADER] = kept_user
    left_out = _drop_what_cannot_be_sent(again)
    again.headers = _fitting(theirs, ours, left_out, limit - len(encode_properties(again)))
    return again


def _drop_what_cannot_be_sent(properties: Properties) -> list[str]:
    """Remove properties that have no form on the wire, as a handler may have left them; return their names."""
    try:
        encode_properties(properties)
    except Exception:  # noqa: BLE001  whatever stands there, the body is kept
        dropped = []
        for name in Properties.__struct_fields__:
            try:
                encode_properties(Properties(**{name: getattr(properties, name)}))
            except Exception:  # noqa: BLE001
                setattr(properties, name, None)
                dropped.append(name)
        return dropped
    return []


def _fitting(
    theirs: dict[Any, Any], ours: dict[str, Any], left_out: list[str], room: int
) -> dict[str, Any]:
    """Both, within `room` bytes: first what tells an error is cut, then the largest of `theirs` are left out."""
    sizes: dict[Any, int] = {}
    for headers in (theirs, ours):
        for name, value in list(headers.items()):
            size = _size_of(name, value)
            if size is None:
                del headers[name]
                left_out.append(str(name))
            else:
                sizes[name] = size
    if not left_out and sum(sizes.values()) + 4 <= room:
        return {**theirs, **ours}
    room -= 4 + len(LEFT_OUT_HEADER) + 6 + MAX_NAME_BYTES
    excess = sum(sizes.values()) - room
    for name in _SHRINKABLE:
        if excess > 0 and name in ours:
            excess -= _shrink(ours, name, excess)
    for name in sorted(theirs, key=sizes.__getitem__, reverse=True):
        if excess <= 0:
            break
        del theirs[name]
        left_out.append(f"{name} ({sizes[name]} bytes)")
        excess -= sizes[name]
    for name in sorted(ours, key=sizes.__getitem__, reverse=True):
        if excess <= 0:
            break
        del ours[name]
        excess -= sizes[name]
    if left_out:
        ours[LEFT_OUT_HEADER] = _head(", ".join(left_out), MAX_NAME_BYTES)
    return {**theirs, **ours}


def _size_of(name: Any, value: Any) -> int | None:
    """Bytes of one header on the wire; `None` if it cannot be there."""
    try:
        return len(encode_table({name: value})) - 4
    except Exception:  # noqa: BLE001  ProtocolError, or what a strange value does when it is looked at
        return None


def _shrink(headers: dict[str, Any], name: str, excess: int) -> int:
    """Cut a header by `excess` bytes, or remove it. Returns how many bytes that made."""
    value = headers[name]
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    left = len(raw) - excess
    if left <= 0:
        del headers[name]
        return len(raw) + len(name) + 6
    if isinstance(value, bytes):
        headers[name] = value[:left]
    else:
        headers[name] = (_tail if name == TRACEBACK_HEADER else _head)(value, left)
    return excess


def _head(text: str, max_bytes: int) -> str:
    raw = text.encode("utf-8", "backslashreplace")
    return text if len(raw) <= max_bytes else raw[:max_bytes].decode("utf-8", "ignore")


def _tail(text: str, max_bytes: int) -> str:
    raw = text.encode("utf-8", "backslashreplace")
    return text if len(raw) <= max_bytes else raw[-max_bytes:].decode("utf-8", "ignore")
