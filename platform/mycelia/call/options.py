"""How a call or a message leaves: each option declared once, carried as its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = ["DEFAULT_CALL_OPTIONS", "DEFAULT_PUBLISH_OPTIONS", "CallOptions", "PublishOptions"]


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a remote method is called."""

    timeout: float | None = None
    """Seconds; the setting `mycelia.rpc_timeout` (30) if `None`. A call inside a worker that has less time left takes
    no longer than the worker may."""
    serializer: str | None = None
    """Name of the serializer for the request; the configured one if `None`. The reply comes in the same format."""
    priority: int | None = None
    """Of the request, on queues that have priorities."""


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True):
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


DEFAULT_CALL_OPTIONS = CallOptions()
DEFAULT_PUBLISH_OPTIONS = PublishOptions()
