"""`Publisher`: messages to any exchange or queue. `await self.publish(payload, routing_key="imports")`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from mycelia.amqp import Exchange, Queue
from mycelia.amqp.topology import Part
from mycelia.call import DEFAULT_PUBLISH_OPTIONS, PublishArguments, PublishOptions, with_options
from mycelia.clients.from_thread import run_from_thread
from mycelia.clients.outlets import Outlets
from mycelia.clients.publishing import Outlet
from mycelia.clients.two_ways import Injects, TwoWays
from mycelia.durations import Duration, seconds_until
from mycelia.runtime.topology import ExchangeLike, QueueLike, parts_of, queue_topology

__all__ = ["BlockingPublish", "Declared", "Publish", "Publisher"]

Declared = Exchange | Queue | ExchangeLike | QueueLike
"""What may be declared with a publishing: an exchange or a queue, ours or kombu's."""


class _Arguments(PublishArguments, total=False):
    """What a publishing takes beside its payload."""

    exchange: str | Exchange | ExchangeLike | None
    routing_key: str | None
    declare: Sequence[Declared]


class Publish:
    """What is injected: call it with a payload, and await it."""

    __slots__ = ("_exchange", "_options", "_outlet", "_routing_key")

    def __init__(
        self, outlet: Outlet, exchange: str, routing_key: str, options: PublishOptions
    ) -> None:
        self._outlet = outlet
        self._exchange = exchange
        self._routing_key = routing_key
        self._options = options

    @property
    def timeout(self) -> float:
        """Seconds that a publishing may take which brings no `timeout` of its own."""
        return self._outlet.timeout_of(self._options)

    def __call__(
        self,
        payload: Any,
        *,
        exchange: str | Exchange | ExchangeLike | None = None,
        routing_key: str | None = None,
        declare: Sequence[Declared] = (),
        **options: Unpack[PublishArguments],
    ) -> Coroutine[Any, Any, None]:
        """Publish; awaiting it ends when the broker has the message.

        Args:
            exchange: another exchange than the publisher's; a name, an `Exchange`, or kombu's.
            routing_key: the publisher's queue, if it has one, else empty.
            declare: exchanges and queues to declare before, each once.
            options: as in `PublishOptions`, over the publisher's own.
        """
        chosen = with_options(self._options, options, "publish()") if options else self._options
        publishing = self._outlet.publish(
            self._exchange if exchange is None else _name_of(exchange),
            self._routing_key if routing_key is None else routing_key,
            payload,
            chosen,
        )
        if not declare:
            return publishing
        return self._after_declaring(parts_of(declare), publishing, chosen)

    def later(
        self, after: Duration, /, payload: Any, **options: Unpack[_Arguments]
    ) -> Coroutine[Any, Any, None]:
        """Publish so that the message arrives `after` from now, as `Dispatch.later()` does for events.

        For a queue, it ends in `mycelia.delayed.dead` if that is gone when the time has come.
        """
        options["after"] = after
        return self(payload, **options)

    def at(
        self, when: datetime, payload: Any, **options: Unpack[_Arguments]
    ) -> Coroutine[Any, Any, None]:
        """As `later()`, at a moment in a time zone; now, if that has passed."""
        return self.later(seconds_until(when, time.time()), payload, **options)

    async def _after_declaring(
        self, parts: Sequence[Part], publishing: Coroutine[Any, Any, None], options: PublishOptions
    ) -> None:
        try:
            await self._outlet.declare(parts, self._outlet.timeout_of(options))
        except BaseException:
            publishing.close()
            raise
        await publishing


class BlockingPublish:
    """As `Publish`, for threads beside the event loop: it blocks until the broker has the message."""

    __slots__ = ("_loop", "_publish")

    def __init__(self, publish: Publish, loop: asyncio.AbstractEventLoop) -> None:
        self._publish = publish
        self._loop = loop

    def __call__(
        self,
        payload: Any,
        *,
        exchange: str | Exchange | ExchangeLike | None = None,
        routing_key: str | None = None,
        declare: Sequence[Declared] = (),
        **options: Unpack[PublishArguments],
    ) -> None:
        """Publish; returns when the broker has the message."""
        publish = self._publish
        run_from_thread(
            publish(
                payload, exchange=exchange, routing_key=routing_key, declare=declare, **options
            ),
            self._loop,
            options.get("timeout") or publish.timeout,
        )

    def later(self, after: Duration, /, payload: Any, **options: Unpack[_Arguments]) -> None:
        """As `Publish.later()`; returns when the broker has the message."""
        options["after"] = after
        self(payload, **options)

    def at(self, when: datetime, payload: Any, **options: Unpack[_Arguments]) -> None:
        """As `Publish.at()`; returns when the broker has the message."""
        self.later(seconds_until(when, time.time()), payload, **options)


def _name_of(exchange: str | Exchange | ExchangeLike) -> str:
    return exchange if isinstance(exchange, str) else str(exchange.name)


class Publisher(TwoWays):
    """Injects a function that publishes messages.

    Args:
        exchange: where to: an `Exchange` (declared at start), a `kombu.Exchange`, or `None` for the default exchange.
        queue: a queue to declare and publish to (`Queue`, `kombu.Queue` or a name).
        declare: more exchanges and queues to declare at start.
        routing_key: for every message that brings none.
        options: as in `PublishOptions`, for every message.
    """

    needs_broker = True
    outlets = Outlets()

    def __init__(
        self,
        exchange: str | Exchange | ExchangeLike | None = None,
        queue: str | Queue | QueueLike | None = None,
        declare: Sequence[Declared] | None = None,
        routing_key: str | None = None,
        **options: Unpack[PublishArguments],
    ) -> None:
        self.exchange = exchange
        self.queue = queue
        self.declare = list(declare or [])
        self.options = with_options(DEFAULT_PUBLISH_OPTIONS, options, "Publisher()")
        self.exchange_name = ""
        self.routing_key = routing_key or ""
        if queue is not None:
            self._aim_at_queue(queue, routing_key)
        if exchange is not None:
            self.exchange_name = _name_of(exchange)

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> Publish: ...

    @property
    def blocking(self) -> Injects[BlockingPublish]:
        """The same for `def` methods, as type checkers see it: it returns when the broker has the message."""
        blocking: Injects[BlockingPublish] = self.made_blocking()
        return blocking

    def _aim_at_queue(self, queue: Any, routing_key: str | None) -> None:
        bound_to = getattr(queue, "exchange", None)
        if bound_to:
            self.exchange_name = _name_of(bound_to)
            self.routing_key = routing_key or queue.routing_key or ""
        elif routing_key is None:
            self.routing_key = queue if isinstance(queue, str) else queue.name

    async def setup(self) -> None:
        if self.options.serializer is not None:  # a name that does not exist stops the start
            self.container.host.serializers.by_name(self.options.serializer)
        parts = parts_of([self.exchange, *self.declare])
        if self.queue is not None:
            parts += queue_topology(self.queue)[1]
        if parts:
            await self.container.host.link.declare(*parts)

    def awaited(self) -> Publish:
        return Publish(self.outlets.messages, self.exchange_name, self.routing_key, self.options)

    def waiting(self, loop: asyncio.AbstractEventLoop) -> BlockingPublish:
        return BlockingPublish(self.awaited(), loop)
