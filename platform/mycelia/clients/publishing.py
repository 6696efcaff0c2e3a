"""Publishing: options as data, and the one function that turns a payload into a confirmed message."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from mycelia.amqp import Link, Message, Properties
from mycelia.call import DEFAULT_PUBLISH_OPTIONS, Call, PublishOptions, tighter
from mycelia.clients.outbound import event_headers
from mycelia.errors import ConfigError
from mycelia.wire import SerializerRegistry, new_uuid

__all__ = ["DEFAULT_OPTIONS", "PublishOptions", "publish_message", "read_options"]


DEFAULT_OPTIONS = DEFAULT_PUBLISH_OPTIONS

_KNOWN = frozenset(PublishOptions.__struct_fields__)
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
    return msgspec.structs.replace(base, **changes) if changes else base


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
