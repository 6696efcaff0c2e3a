"""`@rpc`: a method that other services call. Exchange, queue and binding are exactly Nameko's, unless the setting
`mycelia.rpc_queue_type` asks for a quorum queue.

All `@rpc` methods of a service share the queue `rpc-{service}`, bound with `{service}.*`; a request is dispatched by
its routing key. The reply goes to the request's `reply_to`, a routing key on the same exchange.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Unpack

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Delivery,
    Exchange,
    LinkConsumer,
    LinkState,
    Message,
    Queue,
)
from mycelia.amqp.delay_levels import time_of
from mycelia.call import (
    Ack,
    Arguments,
    Call,
    CallKind,
    Direction,
    GiveBack,
    Outcome,
    Redeliver,
    Reply,
    Requeue,
    Settlement,
    Target,
    deadline_to_wire,
    monotonic_from_wall,
)
from mycelia.durations import seconds_of
from mycelia.entrypoints.counting import Counting
from mycelia.entrypoints.prefetch_changes import PrefetchChanges
from mycelia.entrypoints.put_back import PutBack
from mycelia.entrypoints.received import (
    counts_returns,
    decode_body,
    history_of,
    is_counted,
    requeue_delay,
    returns_of,
    stop_deliveries,
)
from mycelia.entrypoints.remembered import Remembered, request_key
from mycelia.entrypoints.replies import REPLY_TIMEOUT, Replies
from mycelia.entrypoints.republished import expires_at_ms, for_another_attempt, own_user
from mycelia.entrypoints.shared_prefetch import SharedPrefetch
from mycelia.entrypoints.statistics import ConsumerStatistics
from mycelia.errors import (
    ConfigError,
    DeadlinePassed,
    MalformedRequest,
    MethodNotFound,
    MyceliaError,
    RetryLater,
    TooManyDeliveries,
    UndecodableMessage,
    describe,
)
from mycelia.log_event import event
from mycelia.nearest import nearest
from mycelia.runtime import (
    Container,
    Entrypoint,
    EntrypointArguments,
    Lane,
    Settings,
    SharedExtension,
    SignatureCheck,
    bare_decorator_of,
)
from mycelia.wire import (
    decode_request,
    encode_result,
    read_attempt,
    read_deadline_ms,
    service_binding_key,
    service_queue_name,
)

__all__ = ["Rpc", "RpcConsumer", "rpc"]

log = logging.getLogger("mycelia.entrypoints")

REPLY = Reply()
ACK = Ack()


def _queue_arguments(queue_type: str) -> dict[str, str]:
    """Nameko declares its classic queues without a word about their type."""
    return {} if queue_type == "classic" else {"x-queue-type": queue_type}


class RpcConsumer(SharedExtension):
    """Consumes a service's request queue, dispatches to its `@rpc` methods, and answers."""

    needs_broker = True
    container: Container

    def __init__(self) -> None:
        self._entrypoints: list[Rpc] = []
        self._methods: dict[str, Rpc] = {}
        """By routing key."""
        self._consumer: LinkConsumer | None = None
        self._counting = Counting(lambda: self._consumer)
        self.remembered = Remembered(request_key)
        self._stop_watching: Callable[[], None] = lambda: None
        self._window: SharedPrefetch | None = None
        self._prefetch: PrefetchChanges | None = None
        self._stop_looking: Callable[[], None] = lambda: None

    def register(self, entrypoint: Rpc) -> None:
        self._entrypoints.append(entrypoint)

    async def setup(self) -> None:
        container = self.container
        self._link = container.host.link
        self._exchange = container.settings.rpc_exchange
        self._service = container.service_name
        self._serializers = container.host.serializers
        self._parent_calls_tracked = container.settings.parent_calls_tracked
        settings = container.settings.mycelia
        self._user = own_user(container.settings.AMQP_URI)
        self.queue = service_queue_name(self._service)
        self._put_back = PutBack(
            container.host,
            self.queue,
            user=self._user,
            on_acknowledged=self.remembered.acknowledged,
        )
        self.replies = Replies(
            self._link,
            self._exchange,
            self._serializers,
            queue=self.queue,
            tracebacks=settings.error_tracebacks,
        )
        self._declared = Queue(
            self.queue, arguments=_queue_arguments(container.settings.mycelia.rpc_queue_type)
        )
        await self._link.declare(
            Exchange(self._exchange),
            self._declared,
            Binding(self.queue, self._exchange, service_binding_key(self._service)),
        )
        self._queue_counts = counts_returns(self._declared, self._link)

    async def start(self) -> None:
        container = self.container
        for entrypoint in self._entrypoints:
            entrypoint.lane = container.make_lane(entrypoint)
            self._methods[f"{self._service}.{entrypoint.method_name}"] = entrypoint
        # Requests for methods that do not exist are calls like any other, up to the point where they are refused.
        stray = Target(Direction.INBOUND, CallKind.RPC, self._service, "*")
        self._stray_lane = container.make_lane(self._entrypoints[0], stray)
        prefetch = container.shared_prefetch_of(self._entrypoints)
        self._consumer = await self._link.consume(
            self.queue,
            self._on_deliveries,
            ConsumeOptions(prefetch=prefetch, on_lost=self._on_lost),
        )
        self._stop_watching = self._link.on_state_change(self._on_state)
        self._prefetch = PrefetchChanges(self._consumer)
        if len(self._entrypoints) > 1 and all(e.prefetch is None for e in self._entrypoints):
            self._window = SharedPrefetch(prefetch, container.settings.mycelia.rpc_prefetch_max)
            watch = container.host.watch(asyncio.get_running_loop())
            self._stop_looking = watch.each_look(self._look_at_window)

    def _look_at_window(self) -> None:
        """Let a method that has nothing to do get requests, though another's fill the window."""
        consumer, window, prefetch = self._consumer, self._window, self._prefetch
        if consumer is None or window is None or prefetch is None or prefetch.is_under_way:
            return
        lanes = [entrypoint.lane for entrypoint in self._entrypoints]
        is_full = consumer.unsettled >= window.now
        if window.look(
            unsettled=consumer.unsettled,
            has_idle_method=any(lane.has_room for lane in lanes),
            waiting_bytes=sum(lane.waiting_bytes for lane in lanes) if is_full else 0,
        ):
            prefetch.ask_for(window.now)

    def reconfigure(self, old: Settings, new: Settings) -> None:
        self.replies.tracebacks = new.mycelia.error_tracebacks
        if self._prefetch is None:
            return
        prefetch = self.container.shared_prefetch_of(self._entrypoints)
        if self._window is not None:
            self._window.rebase(prefetch, new.mycelia.rpc_prefetch_max)
            prefetch = self._window.now
        self._prefetch.ask_for(prefetch)

    def statistics(self) -> ConsumerStatistics | None:
        if self._consumer is None:
            return None
        return ConsumerStatistics(
            queue=self.queue,
            is_consuming=self._consumer.is_consuming,
            is_paused=self._consumer.is_paused,
            prefetch=self._consumer.prefetch,
            unsettled=self._consumer.unsettled,
            put_back=len(self._put_back.deliveries),
            retried=self._put_back.retried,
            remembered=len(self.remembered),
        )

    async def stop_consuming(self) -> None:
        """Take no more requests; those that wait here go back to the queue. Idempotent."""
        self._stop_looking()
        if self._prefetch is not None:
            self._prefetch.stop()
        if self._consumer is not None:
            await stop_deliveries(self._consumer)
        for entrypoint in self._methods.values():
            for call in entrypoint.lane.take_backlog():
                self._give_back(call, entrypoint.lane)
        self._counting.stop()

    def _give_back(self, call: Call, lane: Lane) -> None:
        """Back to the queue, not begun. Published anew, so that the next instance does not count it as a return."""
        delivery = call.message
        assert delivery is not None
        expires_at, now_ms = self._expires_at_ms(call, delivery), int(time.time() * 1000)
        if expires_at is not None and expires_at <= now_ms:  # the broker would drop it
            lane.refuse(
                call, DeadlinePassed(f"{call.target.name}: its time was over in the queue.")
            )
            return
        message = Message(
            self._exchange,
            delivery.routing_key,
            delivery.body,
            for_another_attempt(
                delivery,
                attempt=read_attempt(call.headers),
                returns=returns_of(delivery, self._queue_counts),
                expires_at_ms=expires_at,
                now_ms=now_ms,
                user=self._user,
            ),
        )
        resend_until = time.monotonic() + REPLY_TIMEOUT if call.deadline is None else call.deadline
        try:
            self._link.publish_nowait(message, resend_until=resend_until)
        except MyceliaError:
            delivery.nack(requeue=True)
        else:
            delivery.ack()

    async def stop(self) -> None:
        """Let replies that wait for the broker leave. The last worker has ended."""
        self._stop_watching()
        await self._put_back.finish()  # one that is given up is answered
        await self.replies.stop(5.0)

    # --- a request comes in -------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        arrived_at = time.monotonic()
        from_wall = monotonic_from_wall(monotonic=arrived_at, wall=time.time())
        if self.remembered:
            deliveries = self.remembered.claim(deliveries, arrived_at)
        for delivery in deliveries:
            properties = delivery.properties
            headers = properties.headers
            entrypoint = self._methods.get(delivery.routing_key)
            deadline_ms = read_deadline_ms(headers)
            attempt, returns, is_over = history_of(delivery, self._queue_counts)
            call = Call(
                self._stray_target(delivery) if entrypoint is None else entrypoint.target,
                None,
                headers,
                None if deadline_ms is None else deadline_ms / 1000 + from_wall,
                attempt,
                arrived_at,
                delivery,
                self._serializers.for_reply(properties.content_type),
                None if entrypoint is None else entrypoint.decode_arguments,
                self._parent_calls_tracked,
            )
            if entrypoint is None:
                self._stray_lane.refuse(call, self._no_such_method(call))
            elif is_over and call.deadline is None:  # else the lane knows
                entrypoint.lane.refuse(
                    call, DeadlinePassed(f"{call.target.name}: its time to live is over.")
                )
            elif returns and not entrypoint.idempotent:
                self._run_again(call, delivery, entrypoint.lane, returns)
            else:
                entrypoint.lane.submit(call)

    def _no_such_method(self, call: Call) -> MethodNotFound:
        """The caller's error. Its argument is the name alone, as stock callers know it; the text says what there is."""
        known = sorted(entrypoint.method_name for entrypoint in self._entrypoints)
        meant = nearest(call.method, known)
        hint = f' Did you mean "{meant}"?' if meant else ""
        service = self.container.service_name
        return MethodNotFound(
            call.method,
            explanation=f'service "{service}" has no method "{call.method}".{hint} It has: {", ".join(known)}.',
        )

    def _run_again(self, call: Call, delivery: Delivery, lane: Lane, returns: int) -> None:
        """A request that has come back: whoever ran it may have died of it.

        The queue is a classic one in a fleet with stock Nameko, and counts nothing. So the return is made durable before
        the method runs: the request is published anew with its count.
        """
        if returns >= self.container.settings.mycelia.rpc_max_runs:
            lane.refuse(call, TooManyDeliveries(self.queue, returns))
        elif is_counted(delivery, self._queue_counts):
            lane.submit(call)
        else:
            self._counting.begin(lane)
            self._put_back.later(
                delivery,
                self._exchange,
                delivery.routing_key,
                0.0,
                attempt=read_attempt(call.headers),
                returns=returns,
                expires_at_ms=self._expires_at_ms(call, delivery),
                on_given_up=lambda: lane.submit(call),  # not counted, but run
                on_expired=lambda exc: lane.refuse(call, exc),
                on_end=self._counting.end,
            )

    def _expires_at_ms(self, call: Call, delivery: Delivery) -> int | None:
        """When the request is of no use any more, wall clock: at its caller's deadline, or its time to live's end."""
        monotonic, wall = time.monotonic(), time.time()
        if call.deadline is not None:
            return deadline_to_wire(call.deadline, monotonic=monotonic, wall=wall)
        arrived = wall - (monotonic - call.arrived_at)
        return expires_at_ms(delivery, int(arrived * 1000))

    def _on_state(self, state: LinkState) -> None:
        if state is LinkState.RECONNECTING and self._consumer is not None:
            # Also where nothing was unsettled here: all of it may have been on its way.
            self.remembered.expect(self._consumer.prefetch, time.monotonic())

    def _on_lost(self) -> None:
        """The channel is gone, and the broker delivers again what we had: some of it to us."""
        now = time.monotonic()
        self._queue_counts = counts_returns(self._declared, self._link)
        if self._consumer is not None:
            self.remembered.expect(self._consumer.prefetch, now)
        lanes = [self._stray_lane, *(entrypoint.lane for entrypoint in self._methods.values())]
        running = [call.message for lane in lanes for call in lane.running if call.message]
        self.remembered.keep([*running, *self.replies.waiting, *self._put_back.deliveries], now)
        dropped = [call.message for lane in lanes for call in lane.drop_lost() if call.message]
        self.remembered.drop(dropped, now)

    def _stray_target(self, delivery: Delivery) -> Target:
        method = delivery.routing_key.partition(".")[2]
        return Target(Direction.INBOUND, CallKind.RPC, self._service, method)

    # --- an outcome goes out ------------------------------------------------------------------

    def again(self, call: Call, delivery: Delivery, after: float, outcome: Outcome) -> None:
        """Another attempt, by the way that the request came, so that it finds its method again; or the last answer."""
        error = outcome.error
        if call.attempt >= self.container.settings.mycelia.requeue_attempts:
            error = error or TooManyDeliveries(self.queue, call.attempt)
        elif call.deadline is not None and time.monotonic() + time_of(after) >= call.deadline:
            error = error or DeadlinePassed(
                f"{call.target.name}: another attempt in {after:g} s would come after its deadline."
            )
        else:
            self._put_back.later(
                delivery,
                self._exchange,
                delivery.routing_key,
                after,
                attempt=call.attempt + 1,
                failed_at_ms=int(time.time() * 1000),
                expires_at_ms=self._expires_at_ms(call, delivery),
                on_given_up=lambda: self.replies.send(
                    call,
                    delivery,
                    Outcome(error=error or TooManyDeliveries(self.queue, call.attempt)),
                ),
                on_expired=lambda exc: self.replies.send(
                    call, delivery, Outcome(error=error or exc)
                ),
            )
            return
        self.replies.send(call, delivery, Outcome(error=error))


class Rpc(Entrypoint):
    """The entrypoint behind `@rpc`.

    Args:
        idempotent: a request whose process dies is run again by the next, without a limit but its deadline; else the
            setting `mycelia.rpc_max_runs` (2) limits it.
        options: those of every entrypoint (`Entrypoint`).
    """

    needs_broker = True
    kind = CallKind.RPC
    on_success = REPLY
    settlements = frozenset({Reply, Requeue, Redeliver})
    sheds_overload = True
    container: Container
    consumer = RpcConsumer()
    lane: Lane
    """Where its workers run, once it has started."""

    def __init__(self, *, idempotent: bool = False, **options: Unpack[EntrypointArguments]) -> None:
        super().__init__(**options)
        self.idempotent = idempotent

    def setup(self) -> None:
        self._serializers = self.container.host.serializers
        self._signature = SignatureCheck(self.method)
        self.consumer.register(self)

    async def stop(self) -> None:
        await self.consumer.stop_consuming()

    def decode_arguments(self, call: Call) -> Arguments:
        """The request's arguments, once they fit the method.

        Raises:
            MalformedRequest, IncorrectSignature: said to the caller; the method does not run.
        """
        assert call.message is not None
        try:
            value = decode_body(call.message, self._serializers)
        except UndecodableMessage as exc:
            raise MalformedRequest(str(exc)) from exc
        args, kwargs = decode_request(value)
        self._signature.check(args, kwargs)
        return args, kwargs

    def encode_result(self, call: Call, value: Any) -> bytes:
        """The reply's body, made in the worker, so that an unserializable result is the worker's error."""
        return encode_result(value, call.serializer or self._serializers.default)

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        error = outcome.error
        if outcome.is_refused and isinstance(error, DeadlinePassed) and call.deadline is not None:
            return ACK  # nobody waits for the answer any more
        if (
            error is call.interruption
            and call.deadline is not None
            and call.deadline <= time.monotonic()
        ):
            return ACK  # given up because its caller has: that one knows it by its own clock
        if isinstance(error, RetryLater) and not outcome.is_refused:
            try:
                return Redeliver(seconds_of(error.after, "RetryLater()"))
            except ConfigError as exc:
                log.error(
                    event("retry_later_unreadable", call=call.target.name, error=describe(exc))
                )
        return REPLY

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        delivery = call.message
        assert delivery is not None
        consumer = self.consumer
        if type(settlement) is Reply:  # nearly always
            consumer.replies.send(call, delivery, outcome)
            consumer.remembered.acknowledged(delivery)
            return
        match settlement:
            case GiveBack():
                delivery.nack(requeue=True)
            case Requeue():
                self.consumer.again(call, delivery, requeue_delay(call.attempt), outcome)
            case Redeliver(after):
                self.consumer.again(call, delivery, after, outcome)
            case _:
                delivery.ack()


rpc = bare_decorator_of(
    "rpc",
    Rpc,
    "Make a method callable by other services: `@rpc` or `@rpc(concurrency=…, expected_exceptions=…)`.",
)
