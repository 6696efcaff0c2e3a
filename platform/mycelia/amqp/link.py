"""The link's contract: what the runtime may ask of a broker, and what it is promised.

Two implementations pass the same conformance suite (`tests/link/`): `RabbitLink` (`amqp://`, `amqps://`) and
`MemoryLink` (`memory://`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from mycelia.amqp.model import Binding, Delivery, Exchange, Properties, Queue, Returned

__all__ = [
    "Capabilities",
    "Consumer",
    "Link",
    "LinkState",
    "LinkStatistics",
    "OnDeliveries",
    "OnReturn",
    "OnStateChange",
]

OnDeliveries = Callable[[list[Delivery]], None]
"""Takes what one socket read brought for one consumer, in arrival order. Called on the loop; must not raise or block."""

OnReturn = Callable[[Returned], None]
"""Takes an unconfirmed mandatory publishing that came back. Called on the loop; must not raise or block."""


class LinkState(Enum):
    """Where a link stands. `BLOCKED` is connected, but the broker takes no publishings for now."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    BLOCKED = "blocked"
    RECONNECTING = "reconnecting"


OnStateChange = Callable[[LinkState], None]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the broker at the other end can do, read from its `server-properties`."""

    product: str = "memory"
    version: tuple[int, ...] = (0,)
    quorum_queues: bool = True
    streams: bool = True
    delayed_retry: bool = False
    """Quorum queues with native delayed retry (RabbitMQ 4.3)."""


@dataclass(slots=True)
class LinkStatistics:
    """Counters since the link was made. All are counts of messages unless the name says otherwise."""

    published: int = 0
    confirmed: int = 0
    returned: int = 0
    rejected: int = 0
    republished: int = 0
    """Unconfirmed publishings sent again after a reconnect."""
    delivered: int = 0
    acknowledged: int = 0
    requeued: int = 0
    reconnects: int = 0
    unconfirmed: int = 0
    """Publishings waiting for their confirm right now."""
    blocked_s: float = 0.0
    extra: dict[str, int] = field(default_factory=dict)


class Consumer(Protocol):
    """A running consumer. It survives reconnects, channel errors and cancellation by the broker."""

    @property
    def queue(self) -> str: ...

    @property
    def unsettled(self) -> int:
        """Deliveries handed out and not yet settled."""
        ...

    async def cancel(self) -> None:
        """Stop further deliveries. What was handed out can still be settled. Idempotent; works with the broker down."""
        ...

    async def aclose(self, timeout: float = 5.0) -> None:
        """Cancel, let settled deliveries' acks leave, and close the channel: the broker requeues the rest."""
        ...


class Link(Protocol):
    """A self-healing connection to a broker. Lives on one event loop."""

    @property
    def state(self) -> LinkState: ...

    @property
    def capabilities(self) -> Capabilities:
        """Of the broker connected now or last."""
        ...

    @property
    def writable(self) -> bool:
        """Whether `publish_nowait()` would be taken: connected, not blocked, write buffer below its bound."""
        ...

    def statistics(self) -> LinkStatistics: ...

    def on_state_change(self, listener: OnStateChange) -> Callable[[], None]:
        """Call `listener` at each change. Returns a function that removes it."""
        ...

    def on_return(self, listener: OnReturn) -> Callable[[], None]:
        """Call `listener` for each unconfirmed mandatory publishing that came back. Returns a remover."""
        ...

    async def open(self, timeout: float | None = None) -> None:
        """Connect, trying every host with jittered backoff until it works or `timeout` seconds have passed.

        Raises:
            BrokerUnavailable: no host answered in time. The link is closed again.
            AccessRefused: user, password or virtual host are wrong; raised at once.
        """
        ...

    async def aclose(self, timeout: float = 5.0) -> None:
        """Flush what is written, close channels and connections. Idempotent; bounded; works with the broker down."""
        ...

    async def ready(self, timeout: float) -> None:
        """Wait until `writable`.

        Raises:
            BrokerUnavailable: still not connected after `timeout` seconds.
            BrokerBlocked: connected, but blocked for all of `timeout`.
        """
        ...

    async def declare(
        self, *parts: Exchange | Queue | Binding, timeout: float | None = None
    ) -> None:
        """Declare now, and again after every reconnect (each distinct part is remembered once).

        A queue that exists with other arguments is adopted and the difference logged once.

        Raises:
            TopologyError: refused for good (for instance, an exchange of another type).
            BrokerUnavailable: not connected within `timeout` seconds (`None`: waits as long as the link reconnects).
        """
        ...

    def forget(self, *parts: Exchange | Queue | Binding) -> None:
        """Do not redeclare these any more."""
        ...

    def publish_nowait(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool = False,
    ) -> None:
        """Publish at most once, without a confirm. Leaves with the loop turn's one coalesced write.

        An unroutable `mandatory` message comes back through `on_return`.

        Raises:
            BrokerUnavailable: not connected.
            BrokerBlocked: the broker takes no publishings, or the write buffer is over its bound.
        """
        ...

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool = False,
        timeout: float = 30.0,
    ) -> None:
        """Publish at least once: returns when the broker has confirmed.

        A `message_id` is set where absent. If the connection is lost before the confirm, the message is sent
        again with the same `message_id` after the reconnect, until `timeout`. Cancelling the wait does not take
        back a message already written.

        Raises:
            Unroutable: `mandatory`, and no queue is bound.
            PublishRejected: the broker said no (`basic.nack`).
            BrokerUnavailable, BrokerBlocked: not confirmed within `timeout` seconds; it may or may not have arrived.
        """
        ...

    async def consume(
        self,
        queue: str,
        on_deliveries: OnDeliveries,
        *,
        prefetch: int = 100,
        no_ack: bool = False,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Consumer:
        """Consume on a channel of its own, with per-consumer prefetch, until cancelled.

        After a reconnect, a channel error or a cancellation by the broker, the link's remembered topology is
        declared again and consuming resumes; deliveries unsettled then are delivered again by the broker.

        Args:
            prefetch: unsettled deliveries the broker may have outstanding here (`basic.qos`, per consumer).
            no_ack: the broker forgets each message as it sends it; settling does nothing.
        """
        ...

    async def message_count(self, queue: str, timeout: float = 5.0) -> int:
        """Messages ready in `queue` (a passive declare).

        Raises:
            TopologyError: no such queue.
        """
        ...

    async def consumer_count(self, queue: str, timeout: float = 5.0) -> int:
        """Consumers of `queue` (a passive declare).

        Raises:
            TopologyError: no such queue.
        """
        ...

    async def delete_queue(self, queue: str, timeout: float = 5.0) -> None:
        """Delete `queue`, whatever it holds. Nothing happens if it does not exist."""
        ...
