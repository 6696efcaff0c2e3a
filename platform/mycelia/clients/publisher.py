"""`Publisher`: messages to any exchange or queue. `await self.publish(payload, routing_key="imports")`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mycelia.amqp import Binding, Exchange, Queue
from mycelia.call import get_current_call
from mycelia.clients.outbound import run_from_thread
from mycelia.clients.publishing import DEFAULT_OPTIONS, publish_message, read_options
from mycelia.runtime import Container, SharedDependency
from mycelia.runtime.topology import exchange_from, queue_topology

__all__ = ["Publish", "Publisher"]


class Publish:
    """What is injected: call it with a payload."""

    __slots__ = ("_loop", "_options", "_provider")

    def __init__(self, provider: Publisher, loop: asyncio.AbstractEventLoop | None) -> None:
        self._provider = provider
        self._loop = loop
        self._options = read_options(
            DEFAULT_OPTIONS, provider.options, f"Publisher of {provider.container.service_name}"
        )

    def __call__(
        self, payload: Any, *, exchange: Any = None, routing_key: str | None = None, **options: Any
    ) -> Any:
        """Publish; returns when the broker has the message (awaitable in `async def` methods).

        Args:
            exchange: another exchange than the publisher's; a name, an `Exchange`, or kombu's.
            routing_key: the publisher's queue, if it has one, else empty.
            options: as in `PublishOptions`, over the publisher's own.
        """
        provider = self._provider
        container = provider.container
        host = container.host
        chosen = read_options(self._options, options, "publish()") if options else self._options
        timeout = container.settings.mycelia.publish_timeout
        coroutine = publish_message(
            host.link,
            host.serializers,
            provider.exchange_name if exchange is None else _name_of(exchange),
            provider.routing_key if routing_key is None else routing_key,
            payload,
            chosen,
            parent=get_current_call(),
            caller=container.service_name,
            default_timeout=timeout,
        )
        if self._loop is None:
            return coroutine
        return run_from_thread(coroutine, self._loop, chosen.timeout or timeout)


def _name_of(exchange: Any) -> str:
    return exchange if isinstance(exchange, str) else str(exchange.name)


class Publisher(SharedDependency):
    """Injects a function that publishes messages.

    Args:
        exchange: where to: an `Exchange` (declared at start), a `kombu.Exchange`, or `None` for the default exchange.
        queue: a queue to declare and publish to (`Queue`, `kombu.Queue` or a name).
        declare: more exchanges and queues to declare at start.
        routing_key: for every message that brings none.
        options: as in `PublishOptions`, for every message.
    """

    needs_broker = True
    container: Container

    def __init__(
        self,
        exchange: Any = None,
        queue: Any = None,
        declare: list[Any] | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> None:
        self.exchange = exchange
        self.queue = queue
        self.declare = list(declare or [])
        self.options = options
        self.exchange_name = ""
        self.routing_key = routing_key or ""
        if queue is not None:
            self._aim_at_queue(queue, routing_key)
        if exchange is not None:
            self.exchange_name = _name_of(exchange)

    if TYPE_CHECKING:
        # In a worker the attribute holds what is injected.
        def __get__(self, instance: object, owner: type | None = None) -> Publish: ...

    def _aim_at_queue(self, queue: Any, routing_key: str | None) -> None:
        bound_to = getattr(queue, "exchange", None)
        if bound_to:
            self.exchange_name = _name_of(bound_to)
            self.routing_key = routing_key or queue.routing_key or ""
        elif routing_key is None:
            self.routing_key = queue if isinstance(queue, str) else queue.name

    async def setup(self) -> None:
        parts: list[Exchange | Queue | Binding] = []
        queues = [self.queue] if self.queue is not None else []
        for declared in [self.exchange, *self.declare]:
            if declared is None or isinstance(declared, str):
                continue
            if isinstance(declared, Queue) or hasattr(declared, "queue_arguments"):
                queues.append(declared)
            elif (exchange := exchange_from(declared)) is not None:
                parts.append(exchange)
        for queue in queues:
            parts.extend(queue_topology(queue)[1])
        if parts:
            await self.container.host.link.declare(*parts)

    def shared_dependency(self, is_async: bool) -> Publish:
        """One function serves all workers of an entrypoint."""
        return Publish(self, None if is_async else asyncio.get_running_loop())
