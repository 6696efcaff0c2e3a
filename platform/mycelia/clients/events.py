"""`EventDispatcher`: announce what happened. `await self.emit("departed", payload)`; in a `def` method it blocks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from mycelia.amqp import Exchange
from mycelia.call import (
    DEFAULT_PUBLISH_OPTIONS,
    PublishArguments,
    PublishOptions,
    with_options,
)
from mycelia.clients.from_thread import run_from_thread
from mycelia.clients.outlets import Outlets
from mycelia.clients.publisher import Declared
from mycelia.clients.publishing import Outlet
from mycelia.clients.two_ways import Injects, TwoWays
from mycelia.durations import Duration, seconds_until
from mycelia.runtime.topology import event_exchange, parts_of

__all__ = ["BlockingDispatch", "Dispatch", "EventDispatcher"]


class Dispatch:
    """What is injected: call it with an event type and a payload, and await it."""

    __slots__ = ("_options", "_outlet", "_service")

    def __init__(self, outlet: Outlet, service: str, options: PublishOptions) -> None:
        self._outlet = outlet
        self._service = service
        self._options = options

    @property
    def timeout(self) -> float:
        """Seconds that an event may take which brings no `timeout` of its own."""
        return self._outlet.timeout_of(self._options)

    def __call__(
        self, event_type: str, event_data: Any = None, **options: Unpack[PublishArguments]
    ) -> Coroutine[Any, Any, None]:
        """Publish the event; awaiting it ends when the broker has it.

        An event that no handler has ever subscribed to goes nowhere, as in Nameko; `mandatory=True` makes that an
        error (`Unroutable`).

        Args:
            options: as in `PublishOptions`, over the dispatcher's own.
        """
        chosen = self._options
        if options:
            chosen = with_options(chosen, options, f'event "{event_type}"')
        return self._outlet.publish(self._service, event_type, event_data, chosen)

    def later(
        self,
        after: Duration,
        /,
        event_type: str,
        event_data: Any = None,
        **options: Unpack[PublishArguments],
    ) -> Coroutine[Any, Any, None]:
        """Publish the event so that it is handled `after` from now: `await self.emit.later("5m", "reminder", order)`.

        Awaiting it ends when the broker has it, which keeps it meanwhile, through restarts; up to 45 days. It arrives up to
        0.25 s later, in no promised order. It cannot be taken back: let the handler look whether it is still due.

        Raises:
            ConfigError: `after` is no duration, or more than 45 days; or `mandatory=True`.
        """
        options["after"] = after
        return self(event_type, event_data, **options)

    def at(
        self,
        when: datetime,
        event_type: str,
        event_data: Any = None,
        **options: Unpack[PublishArguments],
    ) -> Coroutine[Any, Any, None]:
        """As `later()`, at a moment in a time zone; now, if that has passed.

        Raises:
            ConfigError: `when` has no time zone, or is more than 45 days away.
        """
        return self.later(seconds_until(when, time.time()), event_type, event_data, **options)


class BlockingDispatch:
    """As `Dispatch`, for threads beside the event loop: it blocks until the broker has the event."""

    __slots__ = ("_dispatch", "_loop")

    def __init__(self, dispatch: Dispatch, loop: asyncio.AbstractEventLoop) -> None:
        self._dispatch = dispatch
        self._loop = loop

    def __call__(
        self, event_type: str, event_data: Any = None, **options: Unpack[PublishArguments]
    ) -> None:
        """Publish the event; returns when the broker has it."""
        dispatch = self._dispatch
        run_from_thread(
            dispatch(event_type, event_data, **options),
            self._loop,
            options.get("timeout") or dispatch.timeout,
        )

    def later(
        self,
        after: Duration,
        /,
        event_type: str,
        event_data: Any = None,
        **options: Unpack[PublishArguments],
    ) -> None:
        """As `Dispatch.later()`; returns when the broker has the event."""
        options["after"] = after
        self(event_type, event_data, **options)

    def at(
        self,
        when: datetime,
        event_type: str,
        event_data: Any = None,
        **options: Unpack[PublishArguments],
    ) -> None:
        """As `Dispatch.at()`; returns when the broker has the event."""
        self.later(seconds_until(when, time.time()), event_type, event_data, **options)


class EventDispatcher(TwoWays):
    """Injects a function that publishes events of this service.

    Args:
        declare: exchanges and queues to declare at start, beside the exchange of the service's events.
        options: as in `PublishOptions`, for every event of this dispatcher.
    """

    needs_broker = True
    outlets = Outlets()

    def __init__(
        self, declare: Sequence[Declared] | None = None, **options: Unpack[PublishArguments]
    ) -> None:
        self.declare = list(declare or [])
        self.options = with_options(DEFAULT_PUBLISH_OPTIONS, options, "EventDispatcher()")

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None) -> Dispatch: ...

    @property
    def blocking(self) -> Injects[BlockingDispatch]:
        """The same for `def` methods, as type checkers see it: it returns when the broker has the event."""
        blocking: Injects[BlockingDispatch] = self.made_blocking()
        return blocking

    @property
    def exchange(self) -> Exchange:
        return event_exchange(self.container.service_name, self.container.config)

    async def setup(self) -> None:
        if self.options.serializer is not None:  # a name that does not exist stops the start
            self.container.host.serializers.by_name(self.options.serializer)
        parts = parts_of(self.declare)
        if self.container.config.get("DECLARE_EVENT_EXCHANGES") is not False:
            parts.insert(0, self.exchange)
        if parts:
            await self.container.host.link.declare(*parts)

    def awaited(self) -> Dispatch:
        return Dispatch(self.outlets.events, self.container.service_name, self.options)

    def waiting(self, loop: asyncio.AbstractEventLoop) -> BlockingDispatch:
        return BlockingDispatch(self.awaited(), loop)
