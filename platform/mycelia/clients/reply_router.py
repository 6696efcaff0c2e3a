"""Requests out, replies in: the calling side of Nameko's RPC, for one caller process.

One reply queue, one consumer, one timer, however many calls are under way. A reply finds its caller by correlation id;
a request that no queue takes comes back (`mandatory`) and becomes `UnknownService`, unless its queue's node is only down; what has no reply at its deadline
becomes `RpcTimeout`. The reply queue outlives a reconnect (`x-expires`), so a reply sent meanwhile is not lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from mycelia.amqp import (
    CLOSE_TIMEOUT,
    TRANSIENT,
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    Link,
    LinkConsumer,
    LinkState,
    Message,
    Properties,
    Queue,
    QueueNodeDown,
    Returned,
)
from mycelia.call import DeadlineWheel, deadline_to_wire
from mycelia.clients.returned_requests import ReturnedRequests
from mycelia.errors import (
    BrokerBlocked,
    BrokerUnavailable,
    LinkError,
    MyceliaError,
    RpcTimeout,
    UnknownService,
)
from mycelia.log_event import event
from mycelia.wire import (
    DEADLINE_HEADER,
    REPLY_QUEUE_ARGUMENTS,
    Serializer,
    SerializerRegistry,
    decode_reply,
    decode_reply_context,
    encode_request,
    nameko_twin,
    new_uuid,
    read_deadline_ms,
    reply_queue_name,
    service_queue_name,
)

__all__ = ["CallStatistics", "ReplyRouter", "Route"]

log = logging.getLogger("mycelia.clients")


REPLY_PREFETCH = 0
"""Replies are taken as fast as they come: each was asked for, so their number is bounded by the callers."""

EXPLAIN_TIMEOUT = 0.25
"""Seconds that an error of a call without reply may take to find out whether the service runs."""

LOOK_AGAIN_S = 0.1
"""Seconds between two looks for the reply queue while the link has no connection to ask on."""

NO_TIME_LEFT = 0.001
"""Seconds; below this a request is not sent: the broker's expiry counts in whole milliseconds."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where the requests for one method go, and how; worked out once for many of them."""

    service: str
    routing_key: str
    """`service.method`; errors name the method so."""
    timeout: float
    """Seconds that the user allows: for error texts, the deadline is each call's own."""
    serializer: Serializer
    """For the request; the reply comes in the same format."""
    priority: int | None = None


class _NoReply(Exception):
    """The deadline of a pending call has passed; becomes `RpcTimeout` where the call is awaited."""


class _Pending:
    """A call that waits for its reply."""

    __slots__ = ("back", "future", "slot", "target")

    def __init__(
        self, future: asyncio.Future[Any], target: str, slot: int, back: dict[str, Any] | None
    ) -> None:
        self.future = future
        self.target = target
        self.slot = slot
        self.back = back
        """Where the context data that comes back goes; `None` where nobody asks for it."""


class CallStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one caller process: a service, or a `Client`."""

    pending: int
    """Calls that wait for their reply now."""
    unmatched: int
    """Replies for which nobody waited any more."""


class ReplyRouter:
    """Sends requests and hands each reply to its caller. Lives on one event loop.

    Args:
        link: an open link.
        serializers: what requests are written with and replies read with.
        caller: the caller's name, part of the reply queue's name.
        exchange: the RPC exchange.
        requests_expire: whether the broker drops a request at its deadline (`mycelia.requests_expire`).
    """

    def __init__(
        self,
        link: Link,
        serializers: SerializerRegistry,
        *,
        caller: str,
        exchange: str,
        requests_expire: bool = True,
    ) -> None:
        self._link = link
        self._requests_expire = requests_expire
        self._serializers = serializers
        self._exchange = exchange
        self._caller = caller
        self._choose_queue()
        self._prefix = self._routing_key[:18]
        self._counter = 0
        self._pending: dict[str, _Pending] = {}
        self._wheel: DeadlineWheel[str] = DeadlineWheel()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        self._consumer: LinkConsumer | None = None
        self._stop_listening: list[Callable[[], None]] = []
        self._closed = False
        self._looking: asyncio.Task[None] | None = None
        self._unmatched = 0
        self._returned = ReturnedRequests(
            link, is_waiting=self._is_waiting, send=self._send_again, refuse=self._refuse
        )

    def statistics(self) -> CallStatistics:
        return CallStatistics(pending=len(self._pending), unmatched=self._unmatched)

    def _choose_queue(self) -> None:
        self._routing_key = new_uuid()
        self.queue = reply_queue_name(self._caller, self._routing_key)
        self._parts = (
            Exchange(self._exchange),
            Queue(self.queue, arguments=REPLY_QUEUE_ARGUMENTS),
            Binding(self.queue, self._exchange, self._routing_key),
        )

    async def start(self, timeout: float | None = None) -> None:
        """Declare the reply queue and consume it."""
        self._loop = asyncio.get_running_loop()
        await self._consume(timeout)
        self._stop_listening = [
            self._link.on_return(self._on_return),
            self._link.on_refused(self._on_refused),
            self._link.on_state_change(self._on_state_change),
        ]

    async def _consume(self, timeout: float | None) -> None:
        await self._link.declare(*self._parts, timeout=timeout)
        # Acknowledged, though that costs 8 to 15 % of a call: without, the broker forgets what it has put on a
        # connection that is breaking, and the caller waits for a reply that is gone.
        self._consumer = await self._link.consume(
            self.queue, self._on_replies, ConsumeOptions(prefetch=REPLY_PREFETCH), timeout=timeout
        )

    # --- the reply queue's node is down -----------------------------------------------------------

    def _on_state_change(self, state: LinkState) -> None:
        if state is LinkState.RECONNECTING:
            self._look_for_queue()

    def _look_for_queue(self) -> None:
        """See whether the reply queue still answers: it lives on one node of a cluster, which may be down."""
        if self._looking is None and not self._closed:
            self._looking = asyncio.create_task(
                self._move_if_away(), name=f"mycelia:reply-queue:{self._caller}"
            )
            self._looking.add_done_callback(lambda _: setattr(self, "_looking", None))

    async def _move_if_away(self) -> None:
        """Take another reply queue if this one's node is down. Replies to calls under way are lost with it."""
        try:
            while not await self._is_answered():  # noqa: ASYNC110  the link tells of states, not of this queue
                await asyncio.sleep(LOOK_AGAIN_S)
        except QueueNodeDown as exc:
            away, parts, consumer = self.queue, self._parts, self._consumer
            self._choose_queue()
            self._link.forget(*parts[1:])
            log.warning(
                event(
                    "reply_queue_moved",
                    queue=away,
                    to=self.queue,
                    pending=len(self._pending),
                    reason=exc,
                )
            )
            if consumer is not None:
                await consumer.aclose(CLOSE_TIMEOUT)
            try:
                await self._consume(None)
            except MyceliaError as error:
                log.error(event("reply_queue_failed", queue=self.queue, error=error))
        except MyceliaError as exc:  # gone: the link declares it again
            log.debug(event("reply_queue_missing", queue=self.queue, error=exc))

    async def _is_answered(self) -> bool:
        """Whether the broker could be asked for the reply queue.

        Raises:
            QueueNodeDown: its node is down.
        """
        try:
            await self._link.consumer_count(self.queue)
        except QueueNodeDown:
            raise
        except BrokerUnavailable:
            return False
        return True

    async def aclose(self) -> None:
        """Fail the calls under way, and remove the reply queue. Idempotent; bounded; works with the broker down."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for stop in self._stop_listening:
            stop()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(
                    BrokerUnavailable(f"{pending.target}: the caller was closed before the reply")
                )
        self._pending.clear()
        await self._returned.aclose()
        self._link.forget(*self._parts)
        if self._consumer is not None:
            await self._consumer.aclose(CLOSE_TIMEOUT)
            try:
                await self._link.delete_queue(self.queue, CLOSE_TIMEOUT)
            except MyceliaError as exc:
                log.debug(
                    event(
                        "reply_queue_left",
                        queue=self.queue,
                        error=exc,
                        detail="it expires by itself",
                    )
                )

    async def call(
        self,
        route: Route,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: dict[str, Any],
        deadline: float,
        back: dict[str, Any] | None = None,
    ) -> Any:
        """Call a method and wait for its result.

        Cancelling the wait does not stop the remote method; its reply is dropped.

        Args:
            headers: context headers; the deadline is added to this dictionary.
            deadline: on the monotonic clock.
            back: gets the context data that comes back, also with an error; of what an earlier reply left there it is cleared.

        Raises:
            RpcTimeout: no reply before the deadline.
            UnknownService: no such service on this broker.
            BrokerUnavailable, BrokerBlocked: the request could not be sent before the deadline.
            MessageTooLarge, PublishRejected, TopologyError: the broker refused the request.
            UnserializableValueError: an argument cannot be carried.
            Exception: what the remote method raised.
        """
        now = time.monotonic()
        remaining = deadline - now
        routing_key = route.routing_key
        if remaining < NO_TIME_LEFT:
            raise nameko_twin(RpcTimeout)(
                routing_key, route.timeout, "Not sent: the time was used up before."
            )
        serializer = route.serializer
        body = encode_request(args, kwargs, serializer)
        headers[DEADLINE_HEADER] = deadline_to_wire(deadline, monotonic=now, wall=time.time())
        self._counter += 1
        correlation_id = f"{self._prefix}{self._counter:x}"
        properties = Properties(
            serializer.content_type,
            serializer.content_encoding,
            headers,
            TRANSIENT,
            route.priority,
            correlation_id,
            self._routing_key,
            str(int(remaining * 1000)) if self._requests_expire else None,
        )
        try:
            if self._looking is not None:
                raise BrokerUnavailable("the reply queue may be away")
            self._link.publish_nowait(
                Message(self._exchange, routing_key, body, properties, mandatory=True)
            )
        except (BrokerUnavailable, BrokerBlocked):
            await self._send_when_ready(routing_key, body, properties, deadline)
        future = self._loop.create_future()
        slot = self._wheel.add(correlation_id, deadline)
        self._pending[correlation_id] = _Pending(future, routing_key, slot, back)
        if deadline < self._timer_due:
            self._arm_timer()
        try:
            return await future
        except asyncio.CancelledError:
            self._take(correlation_id)
            raise
        except _NoReply:
            raise await self._explain_silence(route) from None

    async def _send_when_ready(
        self, routing_key: str, body: bytes, properties: Properties, deadline: float
    ) -> None:
        """The broker is away or blocked: wait for it within the call's deadline. Nothing has been written yet."""
        while True:
            await self._link.ready(max(deadline - time.monotonic(), 0.0))
            if self._looking is not None:  # which reply queue it will be
                await asyncio.wait((self._looking,), timeout=deadline - time.monotonic())
                properties.reply_to = self._routing_key
            if self._requests_expire:
                remaining_ms = int((deadline - time.monotonic()) * 1000)
                properties.expiration = str(max(remaining_ms, 1))
            try:
                self._link.publish_nowait(
                    Message(self._exchange, routing_key, body, properties, mandatory=True)
                )
            except (BrokerUnavailable, BrokerBlocked):
                continue  # lost again in this very moment; `ready()` bounds the loop
            return

    async def _explain_silence(self, route: Route) -> RpcTimeout:
        """Why there may have been no reply: whether anybody consumes the service's queue is worth a question."""
        hint = ""
        queue = service_queue_name(route.service)
        try:
            if not await self._link.consumer_count(queue, timeout=EXPLAIN_TIMEOUT):
                hint = f'Queue "{queue}" has 0 consumers: start the service.'
        except BrokerUnavailable as exc:
            hint = f'Nor was there an answer about queue "{queue}" ({exc}).'
        except MyceliaError as exc:
            log.debug(event("silence_unexplained", queue=queue, error=exc))
        return nameko_twin(RpcTimeout)(route.routing_key, route.timeout, hint)

    def _take(self, correlation_id: str | None) -> _Pending | None:
        pending = self._pending.pop(correlation_id, None)  # type: ignore[arg-type]  # None finds nothing
        if pending is not None:
            self._wheel.discard(correlation_id, pending.slot)  # type: ignore[arg-type]
        return pending

    def _on_replies(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            delivery.ack()  # leaves with the loop's next write, when this batch has reached its callers
            properties = delivery.properties
            pending = self._take(properties.correlation_id)
            if pending is None or pending.future.done():
                self._unmatched += 1
                log.debug(event("reply_unmatched", correlation_id=properties.correlation_id))
                continue
            try:
                value = self._serializers.decode(
                    delivery.body,
                    properties.content_type,
                    properties.content_encoding,
                    properties.headers,
                )
                result = decode_reply(value)
            except Exception as exc:  # noqa: BLE001  whatever it is, it belongs to the one who waits
                if properties.headers:
                    _bring_back(pending, properties.headers, exc)
                pending.future.set_exception(exc)
            else:
                if properties.headers:
                    _bring_back(pending, properties.headers, None)
                pending.future.set_result(result)

    def _on_return(self, returned: Returned) -> None:
        if self._is_waiting(returned):
            self._returned.add(returned)

    def _is_waiting(self, returned: Returned) -> bool:
        return returned.properties.correlation_id in self._pending

    def _send_again(self, returned: Returned) -> None:
        """With the time that its caller has left."""
        properties = returned.properties
        deadline_ms = read_deadline_ms(properties.headers)
        if deadline_ms is not None and self._requests_expire:
            properties.expiration = str(max(deadline_ms - int(time.time() * 1000), 1))
        self._link.publish_nowait(
            Message(
                returned.exchange, returned.routing_key, returned.body, properties, mandatory=True
            )
        )

    def _refuse(self, returned: Returned) -> None:
        pending = self._take(returned.properties.correlation_id)
        if pending is not None and not pending.future.done():
            pending.future.set_exception(
                nameko_twin(UnknownService)(pending.target.partition(".")[0])
            )

    def _on_refused(self, message: Message, error: LinkError) -> None:
        """The broker said no to a publishing, of ours or of others: over its limit of size, no such exchange."""
        properties = message.properties
        if properties.reply_to != self._routing_key:
            return
        pending = self._take(properties.correlation_id)
        if pending is not None and not pending.future.done():
            pending.future.set_exception(error)

    def _arm_timer(self) -> None:
        """Wake up for the earliest deadline. Calls that were answered meanwhile make an early, idle wake-up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._wheel.next_expiry()
        self._timer_due = math.inf if due is None else due
        if due is not None and not self._closed:
            # By our own clock: the loop's may differ (uvloop keeps a cached one).
            delay = max(due - time.monotonic(), 0.001)
            self._timer = self._loop.call_later(delay, self._expire)

    def _expire(self) -> None:
        for correlation_id in self._wheel.expire(time.monotonic()):
            pending = self._pending.pop(correlation_id, None)
            if pending is not None and not pending.future.done():
                pending.future.set_exception(_NoReply())
                self._look_for_queue()
        self._arm_timer()


def _bring_back(pending: _Pending, headers: Mapping[str, Any], error: Exception | None) -> None:
    """Context data of a reply: to who has asked for it, and to the error."""
    back = decode_reply_context(headers)
    if pending.back is not None:
        pending.back.clear()
        pending.back.update(back)
    if back and error is not None:
        # A class that refuses attributes is still the error to raise.
        with suppress(Exception):
            error.reply_context = back  # type: ignore[attr-defined]
