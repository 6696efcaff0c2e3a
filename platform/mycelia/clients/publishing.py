"""Publishing: options as data, and the one function that turns a payload into a confirmed message."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mycelia.amqp import Link, Message, Properties
from mycelia.call import Call, tighter
from mycelia.clients.outbound import event_headers
from mycelia.errors import ConfigError
from mycelia.wire import SerializerRegistry, new_uuid

__all__ = ["DEFAULT_OPTIONS", "PublishOptions", "publish_message", "read_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishOptions:
    """How a message is published. Names are those of Nameko's publisher (nameko/amqp/publish.py:53)."""

    serializer: str | None = None
    """Name of the serializer; the configured one if `None`."""
    delivery_mode: int = 2
    """2 persistent, 1 transient."""
    mandatory: bool = False
    """Raise `Unroutable` when no queue is bound, instead of letting the message go nowhere."""
    priority: int | None = None
    expiration: float | None = None
    """Seconds after which the broker drops the message if nobody took it."""
    use_confirms: bool = True
    """Wait until the broker has the message. Without, it is published at most once."""
    headers: Mapping[str, Any] | None = None
    extra_headers: Mapping[str, Any] | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    """Made where `None`; the same for every repetition of one publishing."""
    type: str | None = None
    app_id: str | None = None
    timeout: float | None = None
    """Seconds to wait for the broker; the setting `mycelia.publish_timeout` (30) if `None`."""


DEFAULT_OPTIONS = PublishOptions()

_KNOWN = frozenset(field.name for field in dataclasses.fields(PublishOptions))
_NEEDLESS = frozenset({"retry", "retry_policy", "transport_options", "declare", "immediate"})
"""Options of Nameko's that the link makes needless: it always reconnects, repeats, and declares."""


def read_options(base: PublishOptions, options: Mapping[str, Any], where: str) -> PublishOptions:
    """`base` with `options` over it.

    Raises:
        ConfigError: an option that does not exist, naming it and `where` it was given.
    """
    changes = {name: value for name, value in options.items() if name in _KNOWN}
    unknown = options.keys() - _KNOWN - _NEEDLESS
    if unknown:
        raise ConfigError(
            f"{where}: unknown option {', '.join(sorted(unknown))}. Known: {', '.join(sorted(_KNOWN))}."
        )
    return dataclasses.replace(base, **changes) if changes else base


async def publish_message(
    link: Link,
    serializers: SerializerRegistry,
    exchange: str,
    routing_key: str,
    payload: Any,
    options: PublishOptions,
    *,
    parent: Call | None,
    caller: str,
    default_timeout: float,
) -> None:
    """Publish `payload` with the context of the call being handled.

    Raises:
        BrokerUnavailable, BrokerBlocked: the broker did not take it in time; it may or may not have arrived.
        PublishRejected, Unroutable: the broker said no.
        UnserializableValueError: the payload cannot be carried.
    """
    serializer = (
        serializers.default
        if options.serializer is None
        else serializers.by_name(options.serializer)
    )
    headers = event_headers(parent, caller)
    if options.headers:
        headers |= options.headers
    if options.extra_headers:
        headers |= options.extra_headers
    timeout = default_timeout if options.timeout is None else options.timeout
    if parent is not None and parent.deadline is not None:
        now = time.monotonic()
        deadline = tighter(parent.deadline, now + timeout)
        assert deadline is not None
        timeout = max(deadline - now, 0.0)
    expiration = options.expiration
    properties = Properties(
        content_type=serializer.content_type,
        content_encoding=serializer.content_encoding,
        headers=headers,
        delivery_mode=options.delivery_mode,
        priority=options.priority,
        correlation_id=options.correlation_id,
        reply_to=options.reply_to,
        expiration=None if expiration is None else str(int(expiration * 1000)),
        message_id=options.message_id or new_uuid(),
        timestamp=int(time.time()),
        type=options.type,
        app_id=options.app_id,
    )
    body = serializer.encode(payload)
    if options.use_confirms:
        await link.publish(
            Message(exchange, routing_key, body, properties, mandatory=options.mandatory),
            timeout=timeout,
        )
    else:
        if not link.writable:
            await link.ready(timeout)
        link.publish_nowait(
            Message(exchange, routing_key, body, properties, mandatory=options.mandatory)
        )
