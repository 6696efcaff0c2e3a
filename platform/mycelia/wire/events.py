"""Names of what events travel through, as Nameko declares it (nameko/events.py:226-264, standalone/events.py:11-27).

| handler type | queue | who gets an event |
|---|---|---|
| `SERVICE_POOL` | `evt-{source}-{type}--{service}.{method}` | one instance of each handling service |
| `SINGLETON` | `evt-{source}-{type}` | one instance of one service |
| `BROADCAST` | `evt-{source}-{type}--{service}.{method}-{identifier}` | every instance |

The exchange is a durable topic exchange; each queue is durable and bound with the event type as its key.
"""

from __future__ import annotations

from typing import Final

from mycelia.errors import ConfigError

__all__ = [
    "BROADCAST",
    "SERVICE_POOL",
    "SINGLETON",
    "event_exchange_name",
    "handler_queue_name",
]

SERVICE_POOL: Final = "service_pool"
SINGLETON: Final = "singleton"
BROADCAST: Final = "broadcast"


def event_exchange_name(source: str) -> str:
    """The exchange of the events that `source` dispatches."""
    return f"{source}.events"


def handler_queue_name(
    handler_type: str,
    source: str,
    event_type: str,
    service: str,
    method: str,
    broadcast_identifier: str | None = None,
) -> str:
    """The queue of one event handler.

    Raises:
        ConfigError: unknown handler type, or `BROADCAST` without an identifier.
    """
    queue = f"evt-{source}-{event_type}"
    if handler_type == SERVICE_POOL:
        return f"{queue}--{service}.{method}"
    if handler_type == SINGLETON:
        return queue
    if handler_type == BROADCAST:
        if not broadcast_identifier:
            raise ConfigError(
                f"{service}.{method}: a broadcast handler needs a broadcast identifier, which tells its instances "
                "apart. Set broadcast_identifier, or reliable_delivery=False to get a new one at each start."
            )
        return f"{queue}--{service}.{method}-{broadcast_identifier}"
    raise ConfigError(
        f"{service}.{method}: handler type {handler_type!r} is unknown; "
        f"use {SERVICE_POOL!r}, {SINGLETON!r} or {BROADCAST!r}."
    )
