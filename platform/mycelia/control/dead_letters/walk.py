"""The messages of a queue one after the other, each of them left in its place unless it is taken away.

Nothing is copied and nothing is in the memory but what comes next: what is to stay is held unsettled, and goes back when the
channel closes, however that happens. That is the one way back that keeps every message's place in every kind of queue:

| how a message goes back | its place | counts towards the delivery limit |
|---|---|---|
| the channel closes | kept: classic queues, quorum queues with and without a limit, 3.10.8, 4.0.5, 4.3.6 | yes |
| `basic.nack`, `basic.reject` | lost in a quorum queue of 3.10.8 without a limit, and of 4.0.5 with `-1` | yes; `basic.nack` not with 4.3.6 |

What is held takes room in the window of unsettled messages. When that is full the consumer is followed by another one on the same
channel; RabbitMQ gives back what up to 32 of them hold in their order. So windows grow, and some hundred thousand messages of a
kilobyte keep their order.

A quorum queue that was declared without a limit drops a message at its 21st return with 4.x. What comes near that in a queue not
known to have a higher limit is not given back: it is published to the end of its queue again, and counts from 0.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from mycelia.amqp import ConsumeOptions, Delivery, Link, LinkConsumer, Message, Queue
from mycelia.entrypoints.dead_letters import SUFFIX, dead_letter_queue
from mycelia.entrypoints.republished import as_it_is
from mycelia.errors import AccessRefused, BrokerUnavailable, LinkError, TopologyError

__all__ = ["Walk", "WalkInterrupted"]

FIRST_LOOK: Final = 4
"""Messages to ask for first, to see how large they are."""
WINDOW_BYTES: Final = 8 * 1024 * 1024
LARGEST_WINDOW_BYTES: Final = 64 * 1024 * 1024
"""What may be on its way here, as far as the messages so far tell: at first, and when windows have grown. Arbitrary."""
MAX_WINDOW: Final = 65_535
"""All that AMQP can say."""
SAFE_RETURNS: Final = 15
"""Returns of a message that leave room for a few crashes before RabbitMQ 4's default limit of 20."""
SILENCE_S: Final = 1.0
"""Without a message, before it is asked whether there are any left."""
PATIENCE_S: Final = 60.0
"""Without a message although the queue has some: its node is in trouble."""
GIVE_BACK_LOOKS: Final = 200
"""For what goes back to be there again, 10 ms apart. Arbitrary; it is a matter of milliseconds."""
BUSY_LOOKS: Final = 30
BUSY_PAUSE_S: Final = 0.1


class WalkInterrupted(LinkError):
    """The broker took everything back (connection lost, or held for longer than its `consumer_timeout`). Nothing is lost."""


class Walk:
    """Goes through what is in a queue now; what arrives meanwhile is left alone.

    Use it as `async with`; iterate over it, and settle each delivery by `keep()` or `take()` before or after going on.

    Args:
        link: an open link.
        queue: any queue but a stream.
        count: how many messages to look at, at most; `None` for all that are there.
        window: how many may be on their way here at most.
        user: who publishes on the link.
    """

    def __init__(
        self,
        link: Link,
        queue: str,
        *,
        count: int | None = None,
        window: int = MAX_WINDOW,
        user: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.queue = queue
        self.total = 0
        """Messages in the queue when it began."""
        self.seen = 0
        self.moved_to_the_end = 0
        """Messages that were near their queue's limit of deliveries."""
        self._link = link
        self._wanted = count
        self._largest_window = window
        self._user = user
        self._timeout = timeout
        self._consumer: LinkConsumer | None = None
        self._locked_by: Queue | None = None
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._window = FIRST_LOOK
        self._kept_in_window = 0
        self._last_tag = 0
        self._window_after = 0
        """The last delivery tag before this window: what came before takes no room in it."""
        self._received = 0
        self._taken = 0
        self._largest_body = 1
        self._is_lost = False
        self._is_limited = False
        """Whether messages may be dropped for having been looked at."""

    # --- its life ---

    async def __aenter__(self) -> Self:
        """Begin.

        Raises:
            TopologyError: no such queue, or somebody else is at work on it.
            AccessRefused, BrokerUnavailable: as the link says.
        """
        await self._link.message_count(self.queue, self._timeout)  # does it exist?
        await self._lock()
        try:
            await self._begin()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give back what was kept, each message to its place."""
        await self._leave()

    async def _begin(self) -> None:
        await self._wait_until_alone()
        self.total = await self._link.message_count(self.queue, self._timeout)
        if self._wanted is None or self._wanted > self.total:
            self._wanted = self.total
        if not self._wanted:
            return
        self._is_limited = await self._may_drop()
        self._window = min(FIRST_LOOK, self._wanted, self._largest_window)
        self._consumer = await self._link.consume(
            self.queue,
            self._on_deliveries,
            ConsumeOptions(prefetch=self._window, on_lost=self._on_lost),
            timeout=self._timeout,
        )
        await self._look_at_sizes()

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._waiting.clear()
        try:
            if consumer is not None:
                await self._give_back(consumer)
        finally:
            await self._unlock()

    async def _give_back(self, consumer: LinkConsumer) -> None:
        held = 0 if self._is_lost else self._received - self._taken - self.moved_to_the_end
        there = await self._link.message_count(self.queue, self._timeout) if held else 0
        await consumer.aclose()
        if not held:
            return
        # A quorum queue learns a moment later that the channel is gone: whoever looks next should find them.
        with suppress(LinkError):
            for _ in range(GIVE_BACK_LOOKS):
                if await self._link.message_count(self.queue) >= there + held:
                    return
                await asyncio.sleep(0.01)

    async def _may_drop(self) -> bool:
        """Whether the queue may be one without a limit of its own, of which RabbitMQ 4 makes 20."""
        if not self.queue.endswith(SUFFIX):
            return True
        declared = dead_letter_queue(self.queue)
        try:
            await self._link.declare(declared, timeout=self._timeout)  # it is there: this asks
        except (AccessRefused, TopologyError):
            return True
        return self._link.is_adopted(declared)

    async def _wait_until_alone(self) -> None:
        """Wait a moment for other consumers to go: a run that was killed just before, perhaps.

        Raises:
            TopologyError: they do not.
        """
        for looks in range(BUSY_LOOKS, -1, -1):
            if not await self._link.consumer_count(self.queue, self._timeout):
                return
            if looks:
                await asyncio.sleep(BUSY_PAUSE_S)
        raise _is_busy(self.queue)

    async def _lock(self) -> None:
        """Keep other walks out: of an exclusive queue there is one, and it ends with its connection, however that ends.

        Raises:
            TopologyError: somebody else has it.
        """
        mark = hashlib.sha256(self.queue.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        lock = Queue(f"{self.queue[:100]}~{mark}.lock", exclusive=True, auto_delete=True)
        for looks in range(BUSY_LOOKS, -1, -1):
            try:
                await self._link.declare(lock, timeout=self._timeout)
            except AccessRefused:
                return  # this user may not declare it: then there is none
            except TopologyError as exc:
                if not looks:
                    raise _is_busy(self.queue) from exc
                await asyncio.sleep(BUSY_PAUSE_S)
            else:
                self._locked_by = lock
                return

    async def _unlock(self) -> None:
        lock, self._locked_by = self._locked_by, None
        if lock is not None:
            with suppress(LinkError):  # it goes with the connection
                await self._link.delete_queue(lock.name, self._timeout)

    async def _look_at_sizes(self) -> None:
        """Wait for the first messages, and let as many come from now on as their size allows.

        All of the first window is here when it changes: what is on its way then would lose its place.
        """
        if await self._more(self._window):
            wide = max(1, min(WINDOW_BYTES // self._largest_body, self._largest_window))
            if wide > self._window:
                await self._widen(wide)

    def _next_window(self) -> int:
        grown = min(
            max(self._window * 5 // 4, self._window + 1),
            max(1, LARGEST_WINDOW_BYTES // self._largest_body),
            self._largest_window,
        )
        return grown if grown != self._window else grown - 1 or 2  # the same would change nothing

    async def _widen(self, window: int) -> None:
        """Go on with another window: what is held counts no more."""
        assert self._consumer is not None
        self._window = window
        self._kept_in_window = 0
        self._window_after = self._last_tag
        await self._consumer.set_prefetch(window)

    # --- what comes ---

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        if self._is_lost:
            return  # the consumer has come back; they go back when it closes
        self._waiting.extend(deliveries)
        self._received += len(deliveries)
        self._last_tag = deliveries[-1].delivery_tag
        self._largest_body = max(self._largest_body, *(len(one.body) for one in deliveries))
        self._arrived.set()

    def _on_lost(self) -> None:
        self._is_lost = True
        self._waiting.clear()
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """The next message.

        Raises:
            WalkInterrupted: everything that was held is back in the queue.
            BrokerUnavailable: the queue has messages, and gives none.
        """
        assert self._wanted is not None
        while self.seen < self._wanted:
            if self._is_lost:
                raise WalkInterrupted(
                    f'queue "{self.queue}": the broker took back what was held after {self.seen} messages: the '
                    "connection was lost, or it took longer than the broker's consumer_timeout. Nothing is lost."
                )
            if self._waiting:
                self.seen += 1
                return self._waiting.popleft()
            if self._kept_in_window >= self._window:
                await self._widen(self._next_window())
                continue
            if not await self._more():
                break
        raise StopAsyncIteration

    async def _more(self, count: int = 1) -> bool:
        """Wait until `count` messages wait here, or what was held is lost. False when there are no more."""
        silent_s = 0.0
        while len(self._waiting) < count and not self._is_lost:
            self._arrived.clear()
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._arrived.wait()
                silent_s = 0.0
            except TimeoutError:
                silent_s += SILENCE_S
                if not await self._link.message_count(self.queue, self._timeout):
                    return len(self._waiting) >= count
                if silent_s > PATIENCE_S:
                    raise BrokerUnavailable(
                        f'queue "{self.queue}" has messages, and has given none for {PATIENCE_S:g} s. Look at its node.'
                    ) from None
        return True

    # --- what becomes of it ---

    async def keep(self, delivery: Delivery) -> None:
        """Leave it where it is.

        Raises:
            LinkError: it is near the limit of deliveries, and cannot be published to its queue again; it stays all the same.
        """
        if self._is_limited and _returns(delivery) >= SAFE_RETURNS and delivery.fault is None:
            properties = as_it_is(delivery, user=self._user)
            copy = Message("", self.queue, delivery.body, properties, mandatory=True)
            await self._link.publish(copy, timeout=self._timeout)
            delivery.ack()
            self.moved_to_the_end += 1
        elif delivery.delivery_tag > self._window_after:
            self._kept_in_window += 1

    def take(self, delivery: Delivery) -> None:
        """It is somewhere else, or to be thrown away: remove it."""
        self._taken += 1
        delivery.ack()


def _is_busy(queue: str) -> TopologyError:
    return TopologyError(
        f'queue "{queue}": somebody else consumes from it, so that nobody can tell what is in it. '
        "Wait for the other command to end, or stop that consumer."
    )


def _returns(delivery: Delivery) -> int:
    """What RabbitMQ compares with the delivery limit."""
    count = (delivery.properties.headers or {}).get("x-delivery-count")
    return count if type(count) is int else 0
