"""Where a dead letter goes when it is sent again, and whether anybody is there to handle it."""

from __future__ import annotations

from typing import Final

import msgspec

from mycelia.amqp import Link
from mycelia.amqp.refusals import QueueNodeDown
from mycelia.control.dead_letters.letters import Letter
from mycelia.errors import AccessRefused, ConfigError, TopologyError

__all__ = ["Destination", "Router", "Stranded"]

MAX_KNOWN: Final = 10_000
"""Queues whose state is remembered for one run. Arbitrary; each dead letter of a broadcast may name another one."""


class Destination(msgspec.Struct, frozen=True):
    """Exchange and routing key to publish to."""

    exchange: str
    routing_key: str

    def __str__(self) -> str:
        if not self.exchange:
            return f'queue "{self.routing_key}"'
        return f'exchange "{self.exchange}", routing key "{self.routing_key}"'


class Stranded(msgspec.Struct, frozen=True):
    """Why a dead letter cannot be sent where it came from. One record for all that have the same reason."""

    queue: str | None
    """The queue that it came from."""
    why: str


_NO_QUEUE: Final = "its queue does not exist any more: the handler is gone, was renamed, or was one instance of a BROADCAST"
_NO_CONSUMER: Final = (
    "nobody consumes from its queue: the handler is gone, or its service does not run"
)
_UNKNOWN: Final = "it does not say which queue it came from"


class Router:
    """Finds the ways of dead letters, and asks the broker about each queue once.

    Args:
        link: an open link.
        to: a queue to send all of them to, instead of the one that each came from.
        to_exchange: publish each to the exchange and with the routing key that it was first published with: every handler of
            the event gets it again.
        unattended: send to queues that nobody consumes from, too.
    """

    def __init__(
        self,
        link: Link,
        *,
        to: str | None = None,
        to_exchange: bool = False,
        unattended: bool = False,
        timeout: float = 30.0,
    ) -> None:
        if to is not None and to_exchange:
            raise ConfigError("a queue and the exchange are two ways: choose one.")
        self._link = link
        self._to = to
        self._to_exchange = to_exchange
        self._unattended = unattended
        self._timeout = timeout
        self._known: dict[str, str | None] = {}
        """What is wrong with each queue; `None` if nothing is."""

    @property
    def is_told(self) -> bool:
        """Whether all go to one queue, whatever they say of themselves."""
        return self._to is not None

    async def check(self) -> None:
        """Look at the one queue that all are to go to, where there is one.

        Raises:
            TopologyError: it does not exist.
        """
        if self._to is not None:
            await self._link.message_count(self._to, self._timeout)

    async def route(self, letter: Letter) -> Destination | Stranded:
        """The way of `letter`.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        if self._to is not None:
            return Destination("", self._to)
        if self._to_exchange:
            if letter.exchange and letter.routing_key is not None:
                return Destination(letter.exchange, letter.routing_key)
            return Stranded(
                letter.queue, "it was published to no exchange, but to a queue by its name"
            )
        queue = letter.queue
        if queue is None:
            return Stranded(None, _UNKNOWN)
        if queue not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[queue] = await self._trouble_with(queue)
        trouble = self._known[queue]
        return Destination("", queue) if trouble is None else Stranded(queue, trouble)

    def note_gone(self, route: Destination) -> Stranded:
        """A message has just come back from there: there is no queue."""
        if not route.exchange:
            self._known[route.routing_key] = _NO_QUEUE
            return Stranded(route.routing_key, _NO_QUEUE)
        return Stranded(None, f"nothing is bound to {route}")

    async def _trouble_with(self, queue: str) -> str | None:
        try:
            consumers = await self._link.consumer_count(queue, self._timeout)
        except QueueNodeDown:
            return "the node of its queue is down"
        except AccessRefused:
            return None  # we may not look; publishing is another right
        except TopologyError as exc:
            # A queue that is exclusive to another connection is there, and somebody is on it.
            return None if "exclusive" in str(exc) or "LOCKED" in str(exc) else _NO_QUEUE
        return None if consumers or self._unattended else _NO_CONSUMER
