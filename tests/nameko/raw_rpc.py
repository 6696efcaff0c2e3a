"""RPC by hand, with pika alone: what a client in another language does."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pika

__all__ = ["publish_raw", "raw_call", "take"]


def raw_call(
    uri: str,
    routing_key: str,
    body: Any,
    *,
    headers: dict[str, Any] | None = None,
    timeout: float = 5.0,
    **properties: Any,
) -> Any:
    """Send a request as it stands and return the decoded reply; `None` after `timeout` seconds.

    `body` is sent as JSON unless it is bytes. `properties` are pika's, over those of an ordinary request.
    """
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    try:
        channel = connection.channel()
        key = str(uuid.uuid4())
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "nameko-rpc", key)
        _publish(channel, "nameko-rpc", routing_key, body, headers, {"reply_to": key, **properties})
        for _, _, reply in channel.consume(queue, auto_ack=True, inactivity_timeout=timeout):
            return None if reply is None else json.loads(reply)
    finally:
        connection.close()
    return None


def publish_raw(
    uri: str,
    exchange: str,
    routing_key: str,
    body: Any,
    *,
    headers: dict[str, Any] | None = None,
    **properties: Any,
) -> None:
    """Publish a message as it stands."""
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    try:
        _publish(connection.channel(), exchange, routing_key, body, headers, properties)
    finally:
        connection.close()


def _publish(
    channel: Any,
    exchange: str,
    routing_key: str,
    body: Any,
    headers: dict[str, Any] | None,
    properties: dict[str, Any],
) -> None:
    given = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
    channel.confirm_delivery()
    channel.basic_publish(
        exchange,
        routing_key,
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        pika.BasicProperties(headers=headers, **given),
    )


def take(uri: str, queue: str) -> tuple[bytes, dict[str, Any]] | None:
    """Take one message off a queue: its body and headers; `None` if there is none, or no such queue."""
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    try:
        method, properties, body = connection.channel().basic_get(queue, auto_ack=True)
    except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker):
        return None  # no such queue, or a quorum queue that is being made at this moment
    finally:
        if connection.is_open:
            connection.close()
    return None if method is None else (body, properties.headers or {})
