"""`EventDispatcher`: announce what happened. `await self.emit("departed", payload)`; in a `def` method it blocks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mycelia.amqp import Exchange
from mycelia.call import get_current_call
from mycelia.clients.outbound import run_from_thread
from mycelia.clients.publishing import DEFAULT_OPTIONS, publish_message, read_options
from mycelia.runtime import Container, SharedDependency
from mycelia.runtime.topology import event_exchange
from mycelia.wire import event_exchange_name

__all__ = ["Dispatch", "EventDispatcher"]


class Dispatch:
    """What is injected: call it with an event type and a payload."""

    __slots__ = ("_exchange", "_loop", "_options", "_provider")

    def __init__(self, provider: EventDispatcher, loop: asyncio.AbstractEventLoop | None) -> None:
        self._provider = provider
        self._loop = loop
        self._exchange = event_exchange_name(provider.container.service_name)
        self._options = read_options(
            DEFAULT_OPTIONS,
            provider.options,
            f"EventDispatcher of {provider.container.service_name}",
        )

    def __call__(self, event_type: str, event_data: Any = None, **options: Any) -> Any:
        """Publish the event; returns when the broker has it (awaitable in `async def` methods).

        An event that no handler has ever subscribed to goes nowhere, as in Nameko; `mandatory=True` makes that an
        error (`Unroutable`).
        """
        container = self._provider.container
        host = container.host
        chosen = (
            read_options(self._options, options, f'event "{event_type}"')
            if options
            else self._options
        )
        timeout = container.settings.mycelia.publish_timeout
        coroutine = publish_message(
            host.link,
            host.serializers,
            self._exchange,
            event_type,
            event_data,
            chosen,
            parent=get_current_call(),
            caller=container.service_name,
            default_timeout=timeout,
        )
        if self._loop is None:
            return coroutine
        return run_from_thread(coroutine, self._loop, chosen.timeout or timeout)


class EventDispatcher(SharedDependency):
    """Injects a function that publishes events of this service.

    Args:
        options: as in `PublishOptions`, for every event of this dispatcher.
    """

    needs_broker = True
    container: Container

    def __init__(self, **options: Any) -> None:
        self.options = options

    if TYPE_CHECKING:
        # In a worker the attribute holds what is injected.
        def __get__(self, instance: object, owner: type | None = None) -> Dispatch: ...

    @property
    def exchange(self) -> Exchange:
        return event_exchange(self.container.service_name, self.container.config)

    async def setup(self) -> None:
        if self.container.config.get("DECLARE_EVENT_EXCHANGES") is not False:
            await self.container.host.link.declare(self.exchange)

    def shared_dependency(self, is_async: bool) -> Dispatch:
        """One function serves all workers of an entrypoint."""
        return Dispatch(self, None if is_async else asyncio.get_running_loop())
