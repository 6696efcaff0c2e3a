"""OpenTelemetry's names for what a span says: the one place that knows a version of the semantic conventions. Pure.

Version 1.37.0: RPC (`rpc.*`, status: development), messaging with RabbitMQ (`messaging.*`, development), HTTP (stable), exceptions
(stable). Attributes of our own begin with `mycelia.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mycelia.amqp import Delivery
from mycelia.call import Call, CallKind, Direction, Target
from mycelia.logs import AppendCall

__all__ = [
    "DEAD_LETTER_ATTEMPTS",
    "DEAD_LETTER_REASON",
    "ERROR_TYPE",
    "EXCEPTION_EVENT",
    "EXCEPTION_MESSAGE",
    "EXCEPTION_STACKTRACE",
    "EXCEPTION_TYPE",
    "HTTP_STATUS",
    "REFUSED",
    "SCHEMA_URL",
    "SETTLEMENT",
    "attributes_of_call",
    "attributes_of_resend",
    "attributes_of_target",
    "clean",
    "resend_name",
    "span_name",
]

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.37.0"

ERROR_TYPE: Final = "error.type"
EXCEPTION_EVENT: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
HTTP_STATUS: Final = "http.response.status_code"

REFUSED: Final = "mycelia.refused"
"""True where the method has not run: too late, not readable, no such method."""
SETTLEMENT: Final = "mycelia.settlement"
"""What became of the message of a call that failed, in lower case (`redeliver`, `deadletter`, …); of an answered one, nothing."""
DEAD_LETTER_REASON: Final = "mycelia.dead_letter.reason"
DEAD_LETTER_ATTEMPTS: Final = "mycelia.dead_letter.attempts"
"""How often it was tried, this time included."""

_ATTEMPT: Final = "mycelia.attempt"
_CALL_ID: Final = "mycelia.call_id"
_MAX_TEXT: Final = 256
"""Characters of a name that a message brings."""


def span_name(target: Target, call: Call) -> str:
    """Low in cardinality: a service and its method, an event's type, a route; never a value."""
    kind, is_inbound = target.kind, target.direction is Direction.INBOUND
    match kind:
        case CallKind.RPC:
            return f"{target.service}/{target.method}"
        case CallKind.EVENT | CallKind.MESSAGE | CallKind.LOG if is_inbound:
            return f"process {target.name}"
        case CallKind.EVENT:
            return f"publish {call.target.service}.{call.target.method}"
        case CallKind.MESSAGE:  # a routing key may be anything
            return f"publish {target.service or '(default exchange)'}"
        case CallKind.LOG:
            return f"append {target.service}"
        case CallKind.HTTP:
            return _http_name(call) or target.name
        case _:
            return target.name


def attributes_of_target(target: Target) -> dict[str, Any]:
    """What is the same for all calls of a target."""
    if target.kind is CallKind.RPC:
        return {
            "rpc.system": "mycelia",
            "rpc.service": target.service,
            "rpc.method": target.method,
            "messaging.system": "rabbitmq",
        }
    if target.kind in (CallKind.EVENT, CallKind.MESSAGE, CallKind.LOG):
        is_inbound = target.direction is Direction.INBOUND
        leaves = "append" if target.kind is CallKind.LOG else "publish"
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process" if is_inbound else leaves,
            "messaging.operation.type": "process" if is_inbound else "send",
        }
        if is_inbound:
            attributes |= {"code.function.name": target.name}
        return attributes
    return {"code.function.name": target.name}


def attributes_of_call(call: Call) -> dict[str, Any]:
    """What is one call's own."""
    found: dict[str, Any] = {}
    if call.attempt > 1:
        found[_ATTEMPT] = call.attempt
    if call.target.direction is Direction.INBOUND:
        found[_CALL_ID] = call.call_id
    if call.item_count:
        found["messaging.batch.message_count"] = call.item_count
    for name, value in call.span_attributes.items():
        found[name] = clean(value) if isinstance(value, str) else value
    if call.message is not None:
        _add_delivery(found, call.message)
    elif isinstance(call, AppendCall):
        found["messaging.message.body.size"] = len(call.entry.body)
        found["messaging.destination.name"] = clean(f"{call.service}:{call.partition}")
        found["messaging.destination.partition.id"] = str(call.partition)
    elif call.kind is CallKind.HTTP:
        _add_request(found, call)
    elif call.target.direction is Direction.OUTBOUND and call.kind is not CallKind.RPC:
        exchange = call.service if call.kind is CallKind.MESSAGE else f"{call.service}.events"
        found["messaging.destination.name"] = clean(f"{exchange}:{call.method}")
        found["messaging.rabbitmq.destination.routing_key"] = clean(call.method)
    return found


def resend_name(delivery: Delivery) -> str:
    """Of the span of a dead letter that is sent again: after the queue that it lay in."""
    return f"redrive {clean(delivery.routing_key)}"


def attributes_of_resend(delivery: Delivery, exchange: str, routing_key: str) -> dict[str, Any]:
    """Where a dead letter is sent."""
    found = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "redrive",
        "messaging.operation.type": "send",
    }
    _add_delivery(found, delivery)
    found["messaging.destination.name"] = clean(f"{exchange}:{routing_key}")
    found["messaging.rabbitmq.destination.routing_key"] = clean(routing_key)
    return found


def clean(text: str, limit: int = _MAX_TEXT) -> str:
    """`text` as protobuf takes it: UTF-8, and no longer than `limit` characters."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return (
        text
        if text.isascii()
        else text.encode("utf-8", "backslashreplace").decode("utf-8", "replace")
    )


def _add_delivery(found: dict[str, Any], delivery: Delivery) -> None:
    properties = delivery.properties
    found["messaging.message.body.size"] = len(delivery.body)
    found["messaging.destination.name"] = clean(f"{delivery.exchange}:{delivery.routing_key}")
    found["messaging.rabbitmq.destination.routing_key"] = clean(delivery.routing_key)
    if isinstance(properties.message_id, str):
        found["messaging.message.id"] = clean(properties.message_id)
    if isinstance(properties.correlation_id, str):
        found["messaging.message.conversation_id"] = clean(properties.correlation_id)


def _scope_of(call: Call) -> Mapping[str, Any]:
    scope = getattr(getattr(call, "request", None), "scope", None)
    return scope if isinstance(scope, Mapping) else {}


def _http_name(call: Call) -> str | None:
    scope = _scope_of(call)
    route = getattr(scope.get("route") or scope.get("endpoint"), "path", None)
    method = scope.get("method")
    if not isinstance(route, str) or not isinstance(method, str):
        return None
    return f"{method} {route}"


def _add_request(found: dict[str, Any], call: Call) -> None:
    scope = _scope_of(call)
    if isinstance(method := scope.get("method"), str):
        found["http.request.method"] = clean(method)
    if isinstance(path := scope.get("path"), str):
        found["url.path"] = clean(path)
    route = getattr(scope.get("route") or scope.get("endpoint"), "path", None)
    if isinstance(route, str):
        found["http.route"] = route
