"""What services declare at the broker: the exchange of a service's events, and queues as their users describe them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from mycelia.amqp import Binding, Exchange, Queue
from mycelia.errors import ConfigError
from mycelia.wire import event_exchange_name

__all__ = [
    "ExchangeLike",
    "QueueLike",
    "event_exchange",
    "exchange_from",
    "parts_of",
    "queue_topology",
]


class ExchangeLike(Protocol):
    """A `kombu.Exchange`, as far as it is read."""

    name: Any
    type: Any
    durable: Any
    auto_delete: Any
    arguments: Any


class QueueLike(Protocol):
    """A `kombu.Queue`, as far as it is read."""

    name: Any
    exchange: Any
    routing_key: Any
    bindings: Any
    queue_arguments: Any


def event_exchange(source_service: str, config: Any) -> Exchange:
    """The exchange of a service's events, as Nameko's configuration keys want it (nameko/standalone/events.py:11)."""
    return Exchange(
        event_exchange_name(source_service),
        auto_delete=bool(config.get("AUTO_DELETE_EVENT_EXCHANGES")),
    )


def exchange_from(declared: Any) -> Exchange | None:
    """An exchange to declare, from ours or from a `kombu.Exchange`; `None` for the default exchange."""
    if isinstance(declared, Exchange):
        return declared if declared.name else None
    if not declared or not declared.name:
        return None
    return Exchange(
        declared.name,
        type=declared.type,
        durable=bool(declared.durable),
        auto_delete=bool(declared.auto_delete),
        arguments=dict(declared.arguments or {}),
        passive=bool(getattr(declared, "passive", False)),
    )


def queue_topology(
    declared: Any, *, called: str = "anonymous"
) -> tuple[Queue, list[Exchange | Queue | Binding]]:
    """A queue and all that must be declared for it, from a name, a `Queue`, or a `kombu.Queue` with its bindings.

    kombu's objects are read by their attributes; kombu itself is not imported. A queue without a name, which AMQP leaves to
    the server, gets one here, another each time: so it is the same one after a reconnect, and its bindings with it.

    Args:
        called: what such a name begins with.

    Raises:
        ConfigError: it is no queue, or an empty text.
    """
    if isinstance(declared, str):
        if not declared:
            raise ConfigError(
                "a queue's name is empty. Write `Queue(\"\", exclusive=True)` for one of this process's own."
            )
        queue = Queue(declared, arguments={"x-queue-type": "quorum"})
        return queue, [queue]
    if isinstance(declared, Queue):
        if not declared.name:
            declared = replace(declared, name=_own_name(called))
        return declared, [declared]
    if not hasattr(declared, "queue_arguments"):
        raise ConfigError(
            f"{declared!r} is no queue: expected a name, a mycelia.Queue, or a kombu.Queue."
        )
    arguments = dict(declared.queue_arguments or {})
    for name, argument, factor in (
        ("expires", "x-expires", 1000),
        ("message_ttl", "x-message-ttl", 1000),
        ("max_length", "x-max-length", 1),
        ("max_length_bytes", "x-max-length-bytes", 1),
        ("max_priority", "x-max-priority", 1),
    ):
        value = getattr(declared, name, None)
        if value is not None:
            arguments[argument] = int(value * factor)
    queue = Queue(
        declared.name or _own_name(called),
        durable=bool(declared.durable),
        exclusive=bool(declared.exclusive),
        auto_delete=bool(declared.auto_delete),
        arguments=arguments,
        passive=bool(getattr(declared, "no_declare", False)),
    )
    parts: list[Exchange | Queue | Binding] = [queue]
    links = [(declared.exchange, declared.routing_key, declared.binding_arguments)]
    links += [(b.exchange, b.routing_key, b.arguments) for b in declared.bindings or ()]
    for exchange, routing_key, binding_arguments in links:
        ours = exchange_from(exchange)
        if ours is not None:
            binding = Binding(
                queue.name, ours.name, routing_key or "", dict(binding_arguments or {})
            )
            parts += [ours, binding]
    # Bindings last: they need both ends.
    parts.sort(key=lambda part: isinstance(part, Binding))
    return queue, parts


def _own_name(called: str) -> str:
    return f"{called}-{uuid.uuid4().hex}"  # "amq.gen-…" is the server's to give


def parts_of(declared: Iterable[Any]) -> list[Exchange | Queue | Binding]:
    """All that must be declared for exchanges and queues, ours or kombu's, bindings last; names are taken as declared."""
    exchanges: list[Exchange | Queue | Binding] = []
    queues: list[Exchange | Queue | Binding] = []
    for one in declared:
        if one is None or isinstance(one, str):
            continue
        if isinstance(one, Queue) or hasattr(one, "queue_arguments"):
            queues.extend(queue_topology(one)[1])
        elif (exchange := exchange_from(one)) is not None:
            exchanges.append(exchange)
    return [*exchanges, *queues]
