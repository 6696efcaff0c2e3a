"""`RabbitLink`: the link to RabbitMQ. Puts the parts together; each part's rules are in its own module.

    supervisor.py   keeps a connection up       publisher.py    publishes, confirms, sends again
    liveness.py     notices a dead peer         unconfirmed.py  publishes without confirms
    connection.py   one connection (pika)       consumer.py     consumes, settles, resumes
                                                stream_channel.py   publishes to one stream
    shared_work.py  one question for all who ask it
    declarer.py     declares and adopts         getter.py       one message at a time
    topology.py     what to declare again       topology_watch.py   looks whether it is still there

Two connections: one publishes (and declares), one consumes, so that a blocked publisher never blocks acknowledgements. The
consuming one is opened when it is first needed. Exclusive queues belong to one connection, and are declared, counted and deleted on
the consuming one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, Final

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
from mycelia.amqp.model import (
    Binding,
    Delivery,
    Exchange,
    ExchangeBinding,
    Message,
    Queue,
    Returned,
)
from mycelia.amqp.rabbit.backoff import Backoff
from mycelia.amqp.rabbit.connection import BrokerConnection, ConnectionLost, open_connection
from mycelia.amqp.rabbit.consumer import RabbitConsumer
from mycelia.amqp.rabbit.declarer import Declarer
from mycelia.amqp.rabbit.getter import Getter
from mycelia.amqp.rabbit.publisher import RabbitPublisher
from mycelia.amqp.rabbit.shared_work import SharedWork
from mycelia.amqp.rabbit.supervisor import Supervisor
from mycelia.amqp.rabbit.topology_watch import TopologyWatch
from mycelia.amqp.topology import Part, Topology
from mycelia.amqp.uri import Endpoint, parse_uri, redact, ssl_context
from mycelia.errors import BrokerBlocked, BrokerUnavailable, TopologyError, Unroutable
from mycelia.log_event import event

__all__ = ["RabbitLink"]

_log = logging.getLogger("mycelia.amqp")

_CHANNELS_TO_ASK: Final = 8
"""Declarations and questions at once. Each takes a channel, and one that waits for a node that is down must not hold up the others."""
_REMIND_EVERY_S: Final = 30.0
"""Between two lines about a declaration that waits for a queue's node. Arbitrary."""

_SETTLING_S: Final = 1.5
"""RabbitMQ confirms the declaration of a quorum queue before it has noted it on disk, which it does every 500 ms. Killed 0.6 s after the
declaration, 3.10.8 and 4.3.6 came back without what the queue had confirmed; killed after 1 s, with all of it."""


class RabbitLink:
    """A `Link` to RabbitMQ 3.10 or later, on the running event loop.

    Args:
        uri: `amqp://user:password@host:port/vhost`; several brokers separated by `;`. See `parse_uri()`.
        random: for the jitter of reconnects.
    """

    def __init__(
        self,
        uri: str,
        options: LinkOptions = LINK_DEFAULTS,
        *,
        random: Random | None = None,
    ) -> None:
        ssl = options.ssl
        self._endpoints = parse_uri(uri)
        if ssl and not any(one.tls for one in self._endpoints):
            self._endpoints = [replace(one, tls=True) for one in self._endpoints]
        self._uri = redact(uri)
        self._ssl = ssl_context(ssl or any(one.tls for one in self._endpoints))
        self._server_hostname = ssl.get("server_hostname") if isinstance(ssl, Mapping) else None
        self._options = options
        self._name = options.name
        self._random = random or Random()  # jitter, not secrets
        self._status = LinkStatus(options.name)
        self._statistics = LinkStatistics()
        self._topology = Topology()
        self._declarer = Declarer(options.step_timeout)
        self._consumers: set[RabbitConsumer] = set()
        self._writable_waiters: set[asyncio.Future[None]] = set()
        self._is_open = False
        self._watch = TopologyWatch(self._name, self._repair, options.topology_check, self._random)
        self._publishing = self._supervise("publish", self._prepare_publishing)
        self._consuming = self._supervise("consume", self._prepare_consuming)
        self._publisher = RabbitPublisher(
            self._statistics,
            on_return=self._tell_returned,
            on_refused=self._status.tell_refused,
            on_writable=self._wake_writable,
            redeclare=self._redeclare_shared,
            declares_exchange=self._topology.has_exchange,
            leads_to_stream=self._topology.leads_to_stream,
            window_messages=options.confirm_messages,
            window_bytes=options.confirm_bytes,
            step_timeout=options.step_timeout,
            rejected_patience=options.rejected_patience,
            random=self._random,
        )
        self._shared_work = SharedWork(f"mycelia:link:{self._name}:ask", _CHANNELS_TO_ASK)
        self._waited_for: dict[Hashable, str] = {}
        """Declarations that wait, and for what."""
        self._getter = Getter(self._statistics, self._connected_to_consume, options.step_timeout)

    def __repr__(self) -> str:
        return f"<RabbitLink {self._name} {self._uri} {self.state.value}>"

    # --- state ---

    @property
    def state(self) -> LinkState:
        return self._status.state

    @property
    def writable(self) -> bool:
        return self._publisher.writable

    @property
    def settling_time(self) -> float:
        return _SETTLING_S

    def statistics(self) -> LinkStatistics:
        return replace(
            self._statistics,
            unconfirmed=self._publisher.unconfirmed,
            unproven=self._publisher.unproven,
            blocked_s=self._status.blocked_s,
            extra=dict(self._statistics.extra),
        )

    def on_state_change(self, listener: OnStateChange) -> Callable[[], None]:
        return self._status.on_state_change(listener)

    def on_return(self, listener: OnReturn) -> Callable[[], None]:
        return self._status.on_return(listener)

    def on_refused(self, listener: OnRefused) -> Callable[[], None]:
        return self._status.on_refused(listener)

    def _refresh_state(self) -> None:
        self._status.change(self._current_state())

    def _current_state(self) -> LinkState:
        if not self._is_open:
            return LinkState.CLOSED
        publishing = self._publishing.connection
        if publishing is None:
            return LinkState.RECONNECTING if self._publishing.was_up else LinkState.CONNECTING
        if self._consuming.was_up and self._consuming.connection is None:
            return LinkState.RECONNECTING
        return LinkState.BLOCKED if publishing.blocked else LinkState.CONNECTED

    def _tell_returned(self, returned: Returned) -> None:
        self._watch.hint()
        self._status.tell_returned(returned)

    # --- life ---

    async def open(self, timeout: float | None = None) -> None:
        if self._is_open:
            return
        self._is_open = True
        self._watch.start()
        self._refresh_state()
        try:
            async with asyncio.timeout(timeout):
                await self._publishing.connected()
        except TimeoutError:
            reason = self._publishing.last_error or "no answer"
            await self.aclose(0)
            raise BrokerUnavailable(
                f"no broker at {self._uri} within {timeout:g} s ({reason}). "
                "Is it running, and reachable from here?"
            ) from None
        except BaseException:
            await self.aclose(0)
            raise

    async def aclose(self, timeout: float = 5.0) -> None:
        deadline = asyncio.get_running_loop().time() + timeout

        def remaining() -> float:
            return max(0.0, deadline - asyncio.get_running_loop().time())

        await self._watch.aclose()
        # side by side, so that a blocked publisher does not keep acknowledgements from leaving
        await asyncio.gather(
            self._publisher.drain(timeout),
            *(consumer.aclose(timeout) for consumer in list(self._consumers)),
        )
        self._is_open = False
        await self._consuming.aclose(remaining())
        await self._publisher.aclose()
        await self._publishing.aclose(remaining())
        self._publishing = self._supervise("publish", self._prepare_publishing)
        self._consuming = self._supervise("consume", self._prepare_consuming)
        self._status.count_blocked(False)
        self._refresh_state()
        self._wake_writable()

    def cut_connections(self) -> None:
        """Cut the connections off at once, as a network does that fails; the link reconnects by itself. For tests of that."""
        for side in (self._publishing, self._consuming):
            if side.connection is not None:
                side.connection.abort(ConnectionLost(f"{side.connection.endpoint}: cut on purpose"))

    def _supervise(self, role: str, prepare: Callable[[BrokerConnection], Any]) -> Supervisor:
        return Supervisor(
            self._name,
            role,
            self._endpoints,
            connect=self._connect,
            prepare=prepare,
            on_up=self._refresh_state,
            on_down=self._on_publishing_down if role == "publish" else self._refresh_state,
            # the publishing side is up first: what it may, the consuming one may too
            refusal_is_final=role == "publish",
            backoff=Backoff(self._random),
        )

    async def _connect(self, endpoint: Endpoint, role: str) -> BrokerConnection:
        return await open_connection(
            endpoint,
            ssl_context=self._ssl if endpoint.tls else None,
            server_hostname=self._server_hostname,
            heartbeat=self._options.heartbeat if endpoint.heartbeat is None else endpoint.heartbeat,
            connection_name=f"{self._name}:{role}",
            timeout=self._options.connect_timeout,
            write_buffer_bytes=self._options.write_buffer_bytes,
            peer_timeout=self._options.peer_timeout,
        )

    async def _prepare_publishing(self, connection: BrokerConnection) -> None:
        await self._redeclare_shared(connection)
        connection.on_blocked = self._on_blocked
        await self._publisher.attach(connection)
        if self._publishing.was_up:
            self._statistics.reconnects += 1

    async def _prepare_consuming(self, connection: BrokerConnection) -> None:
        await self._redeclare_all(connection)
        if self._consuming.was_up:
            self._statistics.reconnects += 1

    def _on_publishing_down(self) -> None:
        self._status.count_blocked(False)
        self._publisher.detach()
        self._refresh_state()

    def _on_blocked(self, blocked: bool) -> None:
        connection = self._publishing.connection
        broker = None if connection is None else str(connection.endpoint)
        if blocked:
            _log.warning(event("publishing_blocked", link=self._name, broker=broker))
        else:
            _log.warning(event("publishing_unblocked", link=self._name, broker=broker))
        self._status.count_blocked(blocked)
        self._refresh_state()
        if not blocked:
            self._publisher.on_unblocked()
            self._wake_writable()

    async def ready(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                while not self.writable:
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._writable_waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._writable_waiters.discard(waiter)
                    if not self._is_open:
                        raise BrokerUnavailable(f"link {self._name} is closed")
        except TimeoutError:
            if self._publisher.is_blocked:
                raise BrokerBlocked(
                    f"link {self._name}: the broker took no publishings for {timeout:g} s"
                ) from None
            raise BrokerUnavailable(
                f"link {self._name}: no connection to {self._uri} for {timeout:g} s"
            ) from None

    def _wake_writable(self) -> None:
        if self._writable_waiters and (self.writable or not self._is_open):
            for waiter in self._writable_waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # --- topology ---

    async def declare(
        self, *parts: Exchange | Queue | Binding | ExchangeBinding, timeout: float | None = None
    ) -> None:
        self._require_open("declare()")
        shared, own = self._topology.split(parts)
        waited_for = self._waited_for
        asked = [
            ((side.role, tuple(some)), side, some)
            for side, some in ((self._publishing, shared), (self._consuming, own))
            if some
        ]
        try:
            async with asyncio.timeout(timeout):
                for key, side, some in asked:
                    await self._shared_work.run(key, partial(self._declare_on, key, side, some))
        except TimeoutError:
            reasons = [waited_for[key] for key, _, _ in asked if key in waited_for]
            reason = reasons[0] if reasons else f"no answer from {self._uri}"
            raise BrokerUnavailable(
                f"declaring {len(parts)} parts: not done within {timeout:g} s; {reason}"
            ) from None

    async def _declare_on(self, key: Hashable, side: Supervisor, parts: list[Part]) -> None:
        backoff = Backoff(self._random)
        remind_at = 0.0
        try:
            while True:
                connection = await side.connected()
                try:
                    async with self._shared_work.turn:
                        await self._declarer.declare(connection, parts)
                except BrokerUnavailable as exc:
                    if connection.lost.done():
                        continue  # connected() waits for the next one
                    # a queue's node is down: it may be back before we give up
                    self._waited_for[key] = str(exc)
                    delay = backoff.next_delay()
                    now = connection.loop.time()
                    if now >= remind_at:
                        remind_at = now + _REMIND_EVERY_S
                        _log.warning(
                            event(
                                "declare_waiting",
                                link=self._name,
                                retry_in_s=round(delay, 2),
                                reason=exc,
                            )
                        )
                    await asyncio.sleep(delay)
                    continue
                self._topology.remember(parts)
                return
        finally:
            self._waited_for.pop(key, None)

    def is_adopted(self, part: Exchange | Queue) -> bool:
        return self._declarer.is_adopted(part)

    def forget(self, *parts: Exchange | Queue | Binding | ExchangeBinding) -> None:
        self._topology.forget(parts)
        self._declarer.forget(parts)

    async def _repair(self) -> None:
        """Declare what is missing of the topology that is in use now."""
        consumed = {one.queue for one in self._consumers if not one.is_cancelled}
        shared, own = self._topology.split(self._topology.in_use(consumed))
        consuming, publishing = self._consuming.connection, self._publishing.connection
        if consuming is not None:
            await self._declarer.repair(consuming, [*shared, *own])
        elif publishing is not None and not publishing.blocked:  # blocked, it would not be read
            await self._declarer.repair(publishing, shared)

    async def _redeclare_shared(self, connection: BrokerConnection) -> None:
        await self._declarer.redeclare(connection, self._topology.split()[0])

    async def _redeclare_all(self, connection: BrokerConnection) -> None:
        shared, own = self._topology.split()
        await self._declarer.redeclare(connection, [*shared, *own])

    async def message_count(self, queue: str, timeout: float = 5.0) -> int:
        self._require_open("message_count()")
        async with _bounded(f'counting queue "{queue}"', timeout):
            return await self._shared_work.run(
                ("message_count", queue), partial(self._count, self._declarer.message_count, queue)
            )

    async def consumer_count(self, queue: str, timeout: float = 5.0) -> int:
        self._require_open("consumer_count()")
        async with _bounded(f'counting consumers of queue "{queue}"', timeout):
            return await self._shared_work.run(
                ("consumer_count", queue),
                partial(self._count, self._declarer.consumer_count, queue),
            )

    async def _count(
        self, count: Callable[[BrokerConnection, str, float], Awaitable[int]], queue: str
    ) -> int:
        connection = await self._side_of(queue).connected()
        async with self._shared_work.turn:
            return await count(connection, queue, self._options.step_timeout)

    async def delete_queue(self, queue: str, timeout: float = 5.0) -> None:
        self._require_open("delete_queue()")
        async with _bounded(f'deleting queue "{queue}"', timeout):
            connection = await self._side_of(queue).connected()
            async with self._shared_work.turn:
                await self._declarer.delete_queue(connection, queue, timeout)
        self._topology.forget_queue(queue)

    async def delete_exchange(self, exchange: str, timeout: float = 5.0) -> None:
        self._require_open("delete_exchange()")
        async with _bounded(f'deleting exchange "{exchange}"', timeout):
            connection = await self._publishing.connected()
            async with self._shared_work.turn:
                await self._declarer.delete_exchange(connection, exchange, timeout)
        self._topology.forget_exchange(exchange)

    async def get(self, queue: str, timeout: float = 5.0) -> Delivery | None:
        self._require_open("get()")
        declared = self._topology.queue(queue)
        if declared is not None and declared.arguments.get("x-queue-type") == "stream":
            raise TopologyError(  # asked, RabbitMQ closes the whole connection
                f'queue "{queue}" is a stream, of which no single message can be got. Consume from it.'
            )
        async with _bounded(f'getting a message of queue "{queue}"', timeout):
            return await self._getter.get(queue)

    async def _connected_to_consume(self) -> BrokerConnection:
        return await self._consuming.connected()

    def _side_of(self, queue: str) -> Supervisor:
        return self._consuming if self._topology.is_exclusive(queue) else self._publishing

    # --- publish and consume ---

    def publish_nowait(self, message: Message, *, resend_until: float | None = None) -> None:
        self._publisher.publish_nowait(message, resend_until)

    async def publish(self, message: Message, *, timeout: float = 30.0) -> None:
        self._require_open("publish()")
        try:
            await self._publisher.publish(message, timeout)
        except Unroutable:
            self._watch.hint()
            raise

    async def consume(
        self,
        queue: str,
        on_deliveries: OnDeliveries,
        options: ConsumeOptions = CONSUME_DEFAULTS,
        *,
        timeout: float | None = None,
    ) -> LinkConsumer:
        self._require_open("consume()")
        consumer = RabbitConsumer(
            queue,
            options,
            on_deliveries,
            self._statistics,
            declared=self._topology.queue,
            is_adopted=self._declarer.is_adopted,
            connected=self._consuming.connected,
            redeclare=self._watch.looked,
            backoff=Backoff(self._random),
            step_timeout=self._options.step_timeout,
            on_closed=self._consumers.discard,
        )
        self._consumers.add(consumer)
        await consumer.start(timeout)
        return consumer

    def _require_open(self, what: str) -> None:
        if not self._is_open:
            raise BrokerUnavailable(f"{what}: link {self._name} is not open. Await open() first.")


@asynccontextmanager
async def _bounded(what: str, timeout: float) -> AsyncIterator[None]:
    """`asyncio.timeout()` that ends in `BrokerUnavailable`, naming what was being done."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise BrokerUnavailable(f"{what}: no answer from the broker within {timeout:g} s") from None
