"""`MemoryLink`: the `Link` contract over a broker in this process, for `memory://`.

It keeps AMQP's manners: deliveries come with a later turn of the loop and in batches, a publisher waits for its
confirm, a lost connection ends every channel, and reconnecting declares and consumes again. It passes the suite that
`RabbitLink` passes (`tests/link/`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mycelia.amqp.link import (
    CONSUME_DEFAULTS,
    LINK_DEFAULTS,
    ConsumeOptions,
    LinkConsumer,
    LinkOptions,
    LinkState,
    LinkStatistics,
    OnDeliveries,
    OnRefused,
    OnReturn,
    OnStateChange,
)
from mycelia.amqp.link_status import LinkStatus
from mycelia.amqp.memory.broker import (
    MemoryBroker,
    PublishOutcome,
    Refused,
    broker_at,
)
from mycelia.amqp.memory.consumer import MemoryConsumer, get_one
from mycelia.amqp.model import (
    Binding,
    Delivery,
    Exchange,
    ExchangeBinding,
    Message,
    Queue,
    Returned,
)
from mycelia.amqp.refusals import publishing_nacked, publishing_refused
from mycelia.amqp.topology import Part, Topology, as_fields, in_order
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    LinkError,
    TopologyError,
    Unroutable,
)
from mycelia.log_event import event
from mycelia.redaction import redact

__all__ = ["MemoryLink"]

log = logging.getLogger("mycelia.amqp")


class MemoryLink:
    """A link to an in-process broker. Links of one URI share one broker, as connections share a server.

    Args:
        uri: `memory://` or `memory://name`.
        options: those that do not concern a network.
        broker: the broker to use instead of the one that `uri` names, for instance one on a `ManualClock`.
    """

    def __init__(
        self,
        uri: str = "memory://",
        options: LinkOptions = LINK_DEFAULTS,
        *,
        broker: MemoryBroker | None = None,
    ) -> None:
        self.uri = redact(uri)
        self._options = options
        self.broker = broker if broker is not None else broker_at(uri)
        self._status = LinkStatus(self.uri)
        self._statistics = LinkStatistics()
        self._topology = Topology()
        self._adopted: set[Part] = set()
        self._consumers: list[MemoryConsumer] = []
        self._changed: asyncio.Event | None = None
        """Set, and replaced, at each change of state: what waits for a state waits for this."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tags = itertools.count(1)
        self._topology_check = options.topology_check
        self._next_check: asyncio.TimerHandle | None = None
        self._failing: dict[Part, str] = {}
        """What could not be redeclared lately, and why: said once, not at each attempt."""

    # --- state -----------------------------------------------------------------------------------

    @property
    def state(self) -> LinkState:
        return self._status.state

    @property
    def writable(self) -> bool:
        return self._status.state is LinkState.CONNECTED

    @property
    def settling_time(self) -> float:
        return 0.0

    def statistics(self) -> LinkStatistics:
        return replace(
            self._statistics,
            blocked_s=self._status.blocked_s,
            extra=dict(self._statistics.extra),
        )

    def on_state_change(self, listener: OnStateChange) -> Callable[[], None]:
        return self._status.on_state_change(listener)

    def on_return(self, listener: OnReturn) -> Callable[[], None]:
        return self._status.on_return(listener)

    def on_refused(self, listener: OnRefused) -> Callable[[], None]:
        return self._status.on_refused(listener)

    async def open(self, timeout: float | None = None) -> None:
        if self._status.state is not LinkState.CLOSED:
            return
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._set_state(LinkState.CONNECTING)
        self.broker.forget_dead()
        self.broker.attach(self)
        self._connect()
        try:
            connected = await self._until(lambda: self._is_connected, timeout)
        except BaseException:
            await self.aclose()
            raise
        if not connected:
            await self.aclose()
            raise BrokerUnavailable(
                f"{self.uri}: the memory broker is stopped, and was not started within {timeout:g} s."
            )

    async def aclose(self, timeout: float = 5.0) -> None:
        if self._status.state is LinkState.CLOSED:
            return
        self.broker.detach(self)
        if self._next_check is not None:
            self._next_check.cancel()
        consumers, self._consumers = self._consumers, []
        for consumer in consumers:
            consumer.detach()
        self.broker.disconnect(self)
        for consumer in consumers:
            consumer.closed()
        self._set_state(LinkState.CLOSED)

    async def ready(self, timeout: float) -> None:
        if not await self._until(lambda: self.writable, timeout):
            raise self._not_writable(f"for {timeout:g} s")

    # --- topology --------------------------------------------------------------------------------

    async def declare(self, *parts: Part, timeout: float | None = None) -> None:
        await self._connected_within(timeout, "declare")
        for part in in_order(parts):
            self._declare(part)
        self._topology.remember(parts)
        await asyncio.sleep(0)

    def is_adopted(self, part: Exchange | Queue) -> bool:
        return part in self._adopted

    def forget(self, *parts: Part) -> None:
        self._topology.forget(parts)
        for part in parts:
            self._failing.pop(part, None)

    async def message_count(self, queue: str, timeout: float = 5.0) -> int:
        await self._connected_within(timeout, f'count the messages of "{queue}"')
        await asyncio.sleep(0)
        with _as_topology_error():
            return self.broker.message_count(self, queue)

    async def consumer_count(self, queue: str, timeout: float = 5.0) -> int:
        await self._connected_within(timeout, f'count the consumers of "{queue}"')
        await asyncio.sleep(0)
        with _as_topology_error():
            return self.broker.consumer_count(self, queue)

    async def get(self, queue: str, timeout: float = 5.0) -> Delivery | None:
        await self._connected_within(timeout, f'get a message of "{queue}"')
        await asyncio.sleep(0)
        with _as_topology_error():
            return get_one(self, queue)

    async def delete_queue(self, queue: str, timeout: float = 5.0) -> None:
        await self._connected_within(timeout, f'delete queue "{queue}"')
        with _as_topology_error():
            self.broker.delete_queue(self, queue)
        self._topology.forget_queue(queue)
        await asyncio.sleep(0)

    async def delete_exchange(self, exchange: str, timeout: float = 5.0) -> None:
        await self._connected_within(timeout, f'delete exchange "{exchange}"')
        with _as_topology_error():
            self.broker.delete_exchange(exchange)
        self._topology.forget_exchange(exchange)
        await asyncio.sleep(0)

    # --- messages --------------------------------------------------------------------------------

    def publish_nowait(self, message: Message, *, resend_until: float | None = None) -> None:
        # What is published is in its queues when this returns: there is nothing to send again.
        if not self.writable:
            raise self._not_writable("now")
        try:
            outcome = self.broker.publish(message)
        except Refused as refusal:
            self._statistics.published += 1
            error = publishing_refused(message, refusal.code, refusal.text)
            log.warning(
                event(
                    "publishing_refused",
                    confirmed=False,
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    may_be_lost=0,
                    broker=f"{refusal.code} {refusal.text}",
                )
            )
            # RabbitMQ says so later, when the publisher is long gone
            self._running_loop().call_soon(self._status.tell_refused, message, error)
            return
        self._statistics.published += 1
        if message.mandatory and outcome is PublishOutcome.UNROUTABLE:
            self._statistics.returned += 1
            returned = Returned(
                312,
                "NO_ROUTE",
                message.exchange,
                message.routing_key,
                message.properties,
                message.body,
            )
            self._running_loop().call_soon(self._status.tell_returned, returned)
            self.call_soon(self._repair)

    async def publish(self, message: Message, *, timeout: float = 30.0) -> None:
        started = time.monotonic()
        attempts = 0
        nacked_at = started
        while True:
            outcome = await self._publish_once(message, started + timeout - time.monotonic())
            if outcome is not PublishOutcome.REJECTED:
                break
            attempts += 1
            now = time.monotonic()
            if attempts == 1:
                nacked_at = now
            delay = min(0.025 * 2.0**attempts, 1.0)
            until = min(started + timeout, nacked_at + self._options.rejected_patience)
            if now + delay >= until:
                self._statistics.rejected += 1
                raise publishing_nacked(message, attempts, now - nacked_at)
            await asyncio.sleep(delay)
        self._statistics.confirmed += 1
        if message.mandatory and outcome is PublishOutcome.UNROUTABLE:
            self._statistics.returned += 1
            self.call_soon(self._repair)
            raise Unroutable(message.exchange, message.routing_key)

    async def _publish_once(self, message: Message, timeout: float) -> PublishOutcome:
        if not self.writable:
            self._statistics.unconfirmed += 1
            try:
                writable = await self._until(lambda: self.writable, timeout)
            finally:
                self._statistics.unconfirmed -= 1
            if not writable:
                raise self._not_writable(f"for {timeout:g} s")
        self._statistics.published += 1
        try:
            outcome = self.broker.publish(message, uuid.uuid4().hex)
        except Refused as refusal:
            raise publishing_refused(message, refusal.code, refusal.text) from refusal
        # The confirm comes with a later turn of the loop, as from a socket; else a publisher in a loop would starve
        # the consumers.
        await asyncio.sleep(0)
        return outcome

    async def consume(
        self,
        queue: str,
        on_deliveries: OnDeliveries,
        options: ConsumeOptions = CONSUME_DEFAULTS,
        *,
        timeout: float | None = None,
    ) -> LinkConsumer:
        await self._connected_within(timeout, f'consume from "{queue}"')
        consumer = MemoryConsumer(self, f"ctag-{next(self._tags)}", queue, on_deliveries, options)
        with _as_topology_error():
            consumer.start()
        self._consumers.append(consumer)
        await asyncio.sleep(0)
        return consumer

    # --- what the broker tells (Peer) ------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        return self._loop is not None and not self._loop.is_closed()

    def on_lost(self) -> None:
        for consumer in self._consumers:
            consumer.lost()
        self._set_state(LinkState.RECONNECTING)

    def on_restored(self) -> None:
        self._running_loop().call_soon(self._connect)

    def on_blocked(self) -> None:
        if self._is_connected:
            self._set_state(self._connected_state)

    # --- what a consumer asks (ConsumerHost) -----------------------------------------------------

    def redeclare(self, queue: str) -> None:
        """Declare again what is remembered of `queue`: itself and its bindings. For its consumers.

        Raises:
            TopologyError: refused.
        """
        for part in self._remembered():
            if (isinstance(part, Queue) and part.name == queue) or (
                isinstance(part, Binding) and part.queue == queue
            ):
                self._declare(part)

    def is_auto_delete(self, queue: str) -> bool:
        declared = self._topology.queue(queue)
        return declared is not None and declared.auto_delete

    def count(self, *, delivered: int = 0, acknowledged: int = 0, requeued: int = 0) -> None:
        self._statistics.delivered += delivered
        self._statistics.acknowledged += acknowledged
        self._statistics.requeued += requeued

    def remove(self, consumer: MemoryConsumer) -> None:
        _discard(self._consumers, consumer)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self._running_loop().call_later(delay, callback)

    def call_soon(self, callback: Callable[[], None]) -> None:
        loop = self._running_loop()
        if self.is_elsewhere:  # a loop that sleeps must be woken
            loop.call_soon_threadsafe(callback)
        else:
            loop.call_soon(callback)

    @property
    def is_elsewhere(self) -> bool:
        return asyncio._get_running_loop() is not self._loop

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _is_connected(self) -> bool:
        return self._status.state in (LinkState.CONNECTED, LinkState.BLOCKED)

    @property
    def _connected_state(self) -> LinkState:
        return LinkState.BLOCKED if self.broker.is_blocked else LinkState.CONNECTED

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise BrokerUnavailable(f"{self.uri}: the link is not open. Await open() first.")
        return self._loop

    def _connect(self) -> None:
        if self._status.state not in (LinkState.CONNECTING, LinkState.RECONNECTING):
            return
        try:
            self.broker.connect(self)
        except Refused:
            return  # `on_restored()` comes with its start
        if self._status.state is LinkState.RECONNECTING:
            self._statistics.reconnects += 1
        for part in self._remembered():
            self._redeclare(part)
        self._check_later()
        self._set_state(self._connected_state)
        for consumer in list(self._consumers):
            consumer.come_back()

    def _remembered(self) -> list[Part]:
        shared, own = self._topology.split()
        return [*shared, *own]

    def _redeclare(self, part: Part) -> None:
        try:
            self._declare(part)
        except TopologyError as error:
            if self._failing.get(part) != str(error):
                self._failing[part] = str(error)
                log.warning(event("redeclare_failed", **as_fields(part), reason=str(error)))
        else:
            self._failing.pop(part, None)

    def _check_later(self) -> None:
        """Look after the topology again in `topology_check` seconds."""
        if self._next_check is not None:
            self._next_check.cancel()
        if self._topology_check:
            self._next_check = self._running_loop().call_later(self._topology_check, self._check)

    def _check(self) -> None:
        self._repair()
        self._check_later()

    def _repair(self) -> None:
        """Declare what is missing of the topology that is in use now."""
        if not self._is_connected:
            return
        consumed = {one.queue for one in self._consumers if not one.is_cancelled}
        for part in in_order(self._topology.in_use(consumed)):
            if not (isinstance(part, Exchange) and not part.name):
                self._redeclare(part)

    def _declare(self, part: Part) -> None:
        with _as_topology_error():
            try:
                self._declare_one(part)
            except Refused as refusal:
                self._adopt(part, refusal)

    def _declare_one(self, part: Part) -> None:
        if isinstance(part, Exchange):
            self.broker.declare_exchange(part)
        elif isinstance(part, Binding):
            self.broker.bind(self, part)
        elif isinstance(part, ExchangeBinding):
            self.broker.bind_exchange(part)
        else:
            self.broker.declare_queue(self, part)

    def _adopt(self, part: Part, refusal: Refused) -> None:
        """Take what exists under the name of `part`, where it differs only in its arguments."""
        is_other_type = isinstance(part, Exchange) and "inequivalent arg 'type'" in refusal.text
        if (
            refusal.code != 406
            or isinstance(part, Binding | ExchangeBinding)
            or part.passive
            or is_other_type
        ):
            raise refusal
        try:
            self._declare_one(replace(part, passive=True))
        except Refused:
            raise refusal from None  # it does not exist: the arguments themselves are wrong
        if part not in self._adopted:
            self._adopted.add(part)
            log.warning(
                event("declared_differently", **as_fields(part), adopted=True, broker=refusal.text)
            )

    def _set_state(self, state: LinkState) -> None:
        if state is self._status.state:
            return
        self._status.count_blocked(state is LinkState.BLOCKED)
        changed, self._changed = self._changed, asyncio.Event()
        self._status.change(state)
        if changed is not None:
            changed.set()

    async def _until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait for `condition`, which depends on the state only. `False` at the timeout or on a closed link."""
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    if self._status.state is LinkState.CLOSED or self._changed is None:
                        return False
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _connected_within(self, timeout: float | None, purpose: str) -> None:
        if not await self._until(lambda: self._is_connected, timeout):
            waited = "" if timeout is None else f" within {timeout:g} s"
            raise BrokerUnavailable(
                f"{self.uri}: cannot {purpose}: not connected{waited}; the link is {self._status.state.value}."
            )

    def _not_writable(self, when: str) -> LinkError:
        if self._status.state is LinkState.BLOCKED:
            return BrokerBlocked(
                f"{self.uri}: the broker takes no publishings {when} (connection.blocked). "
                "Relieve its memory or disk alarm."
            )
        return BrokerUnavailable(
            f"{self.uri}: not connected {when}; the link is {self._status.state.value}."
        )


@contextmanager
def _as_topology_error() -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        raise TopologyError(f"{refusal.code} {refusal.text}") from refusal


def _discard(items: list[Any], item: object) -> None:
    if item in items:
        items.remove(item)
