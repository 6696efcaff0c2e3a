"""AMQP 0-9-1 as data: exchanges, queues, bindings, properties, deliveries. Pure: no socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import msgspec

__all__ = [
    "STREAM_OFFSET",
    "TRANSIENT",
    "Binding",
    "Delivery",
    "Exchange",
    "ExchangeBinding",
    "FaultyDelivery",
    "Message",
    "Properties",
    "Queue",
    "Returned",
    "Settler",
]


STREAM_OFFSET = "x-stream-offset"
"""Header of a stream's deliveries, and the argument that says where a consumer of a stream begins."""

TRANSIENT = 1
"""Delivery mode of a message that need not outlive its broker."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare. The default exchange has the empty name and is never declared."""

    name: str
    type: str = "topic"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    passive: bool = False
    """Only check that it exists; `TopologyError` if not."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare.

    Where it exists with other arguments it is adopted as it stands, and the difference is logged once.
    """

    name: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    passive: bool = False
    """Only check that it exists; `TopologyError` if not."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue bound to an exchange."""

    queue: str
    exchange: str
    routing_key: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ExchangeBinding:
    """An exchange bound to another: what `exchange` routes by this key goes on to `destination` (RabbitMQ's extension)."""

    destination: str
    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Properties(msgspec.Struct):
    """The fourteen `basic` properties (AMQP 0-9-1 §1.8.3); `None` means absent.

    A mutable `msgspec.Struct`, because one is made for each message each way. `expiration` is text in milliseconds and
    `timestamp` is whole seconds since the epoch, as on the wire.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None

    def republished(self, headers: dict[str, Any] | None) -> Properties:
        """All properties as they are, with other `headers`: for a message that is sent on, kept or put back."""
        return msgspec.structs.replace(self, headers=headers)

    def __repr__(self) -> str:
        present = (
            f"{name}={value!r}"
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None
        )
        return f"Properties({', '.join(present)})"


class Message(msgspec.Struct, frozen=True, gc=False):
    """What is published, and where to. Made once, and carried as it is down to the wire.

    A `msgspec.Struct` because one is made for each publishing: 40 ns, a tenth of a frozen dataclass. `gc=False` holds as
    long as nobody hangs a message into its own headers.
    """

    exchange: str
    """The empty name is the default exchange, which leads to the queue named by the routing key."""
    routing_key: str
    body: bytes
    properties: Properties
    mandatory: bool = False
    """Tell the publisher when no queue is bound for it."""

    @property
    def target(self) -> str:
        """Where it goes, for error texts."""
        return f'exchange "{self.exchange}", routing key "{self.routing_key}"'


class Settler(Protocol):
    """Where a delivery's fate is told; one for each consumer and channel incarnation.

    Telling the fate of a delivery whose channel is gone does nothing: the broker has already requeued it.
    """

    def ack(self, delivery_tag: int) -> None: ...

    def nack(self, delivery_tag: int, requeue: bool) -> None: ...

    @property
    def is_lost(self) -> bool:
        """Whether the channel is gone, so that nothing can be settled here any more."""
        ...


class Delivery(msgspec.Struct, eq=False):
    """One message as the broker delivered it. Settle it exactly once: `ack()` or `nack()`.

    A second settling of the same delivery does nothing. Both never wait: what they say leaves with the next
    coalesced write. Belongs to the event loop's thread.
    """

    fault: ClassVar[Exception | None] = None
    """Why properties or headers could not be decoded (see `FaultyDelivery`); `None` for every ordinary delivery."""
    raw_headers: ClassVar[bytes] = b""
    """The header table as it came, where it could not be decoded."""

    settler: Settler
    consumer_tag: str
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes

    def ack(self) -> None:
        """The message is handled; the broker may forget it."""
        self.settler.ack(self.delivery_tag)

    def nack(self, *, requeue: bool = False) -> None:
        """The message is not handled: back to the queue (`requeue`), else dead-lettered or dropped by the queue's rules."""
        self.settler.nack(self.delivery_tag, requeue)

    @property
    def is_lost(self) -> bool:
        """Whether the channel it came on is gone: the broker has taken it back, and settling it does nothing.

        Says nothing about whether it was settled before. Always false for a `no_ack` consumer's, which is ours for good.
        """
        return self.settler.is_lost

    @property
    def offset(self) -> int | None:
        """Its place in a stream (the header `x-stream-offset`); `None` if it comes from a queue and nobody set that header."""
        headers = self.properties.headers
        offset = None if headers is None else headers.get(STREAM_OFFSET)
        return offset if type(offset) is int else None

    def __repr__(self) -> str:
        return (
            f"Delivery(tag={self.delivery_tag}, exchange={self.exchange!r}, routing_key={self.routing_key!r}, "
            f"{len(self.body)} bytes)"
        )


class FaultyDelivery(Delivery, eq=False, kw_only=True):
    """A delivery whose properties or headers cannot be decoded.

    It is handed up all the same, so that it can be answered or buried with its body; `properties` holds what could be read
    (see `salvage_properties()`), `raw_headers` the whole table.
    """

    fault: Exception  # type: ignore[misc]  # a field here, a constant in the base: costs others nothing
    raw_headers: bytes  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, fault={self.fault})"


@dataclass(frozen=True, slots=True)
class Returned:
    """A mandatory publishing that came back (`basic.return`)."""

    reply_code: int
    reply_text: str
    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
