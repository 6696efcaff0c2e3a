"""What event handlers and `@consume` have in common: a queue, a lane, and what becomes of each message.

| outcome | what happens to the message |
|---|---|
| handled | acknowledged |
| the handler raised | tried again as its policy says (`Retry`), after a pause at the broker; then, or without one, dead-lettered with the reason |
| … and its time to live is over before the next attempt | dead-lettered |
| undecodable, oversized, not accepted | dead-lettered with the reason |
| a middleware says so (`Outcome.settlement`) | acknowledged, tried again later, or dead-lettered |
| the service stops, or dies | back to the queue; delivered again, dead-lettered when it comes back for the 20th time (quorum queues count; for others, we do) |
| the channel is lost while the handler runs | delivered again; settled with what the handler came to (`remembered`) |
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from random import Random
from typing import Unpack

from msgspec import UNSET, UnsetType

from mycelia.amqp import Binding, ConsumeOptions, Delivery, Exchange, LinkConsumer, Queue
from mycelia.amqp.delay_levels import time_of
from mycelia.call import (
    Ack,
    Arguments,
    Call,
    CallKind,
    DeadLetter,
    GiveBack,
    Outcome,
    Redeliver,
    Requeue,
    Settlement,
)
from mycelia.entrypoints.after_errors import pause_after, policy_after
from mycelia.entrypoints.batches import Batch, Batches, outcomes_of
from mycelia.entrypoints.consumption_guard import ConsumptionGuard
from mycelia.entrypoints.counting import Counting
from mycelia.entrypoints.dead_letters import DeadLetters, dead_letter_queue_name
from mycelia.entrypoints.in_order import (
    BEHIND_EACH,
    RETRY_IN_ORDER,
    InOrder,
    in_order_by,
)
from mycelia.entrypoints.keys import MessageKey, check_key
from mycelia.entrypoints.prefetch_changes import PrefetchChanges
from mycelia.entrypoints.prefetch_window import PrefetchWindow
from mycelia.entrypoints.put_back import PutBack, PutBacks
from mycelia.entrypoints.received import (
    DELIVERY_LIMIT,
    counts_returns,
    decode_body,
    history_of,
    is_counted,
    requeue_delay,
    stop_deliveries,
)
from mycelia.entrypoints.remembered import Remembered, event_key
from mycelia.entrypoints.republished import expires_at_ms, own_user
from mycelia.entrypoints.statistics import ConsumerStatistics
from mycelia.errors import (
    ConfigError,
    DeadlinePassed,
    KeyParked,
    RuntimeStateError,
    TooManyDeliveries,
)
from mycelia.policies.kill_switch import KillSwitch, kill_switch_of
from mycelia.policies.retry import DEFAULT_RETRY, Retry, exponential, retry_of
from mycelia.runtime import (
    MAX_PREFETCH,
    AdaptivePrefetch,
    Container,
    Entrypoint,
    EntrypointArguments,
    KeyedLane,
    Lane,
    Settings,
)
from mycelia.wire import read_attempt

__all__ = ["Subscription"]

log = logging.getLogger("mycelia.entrypoints")


ACK = Ack()


class Subscription(Entrypoint, ABC):
    """An entrypoint that handles the messages of one queue: what `event_handler` and `consume` are, and a base for others.

    A subclass says with `topology()` which queue that is. `orders = Orders.decorator` makes it one that methods are marked
    with: `@orders("north")`.

    Args:
        retry: when a message whose method raises is tried again; `None` for never. By default as the configuration says
            (`mycelia: retry:`), and without a word there after 1 s, 5 s, 30 s, 5 min and 30 min. What has failed so often goes to
            the dead letters. (A stream keeps its messages: by default they are not tried again.)
        requeue_on_error: Nameko's word for a policy: after 0.25 s, twice that, … at most 30 s, up to `mycelia.requeue_attempts`.
        kill_switch: when to stop taking messages because the method fails too often; `False` for never, `True` for the defaults. By
            default as the configuration says (`mycelia: kill_switch:`), and without a word there never.
        key: messages of one key are handled one after the other, in the order of the queue: a field of the payload, or a function
            of it. Their retries are made here, in their place (`InOrder`).
        parks: with `key`: once a message of a key is dead-lettered, all that follow it are as well, until they are redriven.
        batch: the method is given lists of payloads, and says what came of each (`Batch`). `concurrency` counts lists, 1 by default.
        options: those of every entrypoint (`Entrypoint`).
    """

    needs_broker = True
    kind = CallKind.MESSAGE
    settlements = frozenset({Ack, Requeue, Redeliver, DeadLetter})
    container: Container
    dead_letters = DeadLetters()
    put_backs = PutBacks()
    adapts_prefetch = True
    key: MessageKey | None = None
    parks = False
    batch: Batch | None = None

    def __init__(
        self,
        *,
        retry: Retry | UnsetType | None = UNSET,
        requeue_on_error: bool = False,
        kill_switch: KillSwitch | bool | None = None,
        key: MessageKey | None = None,
        parks: bool = False,
        batch: Batch | None = None,
        **options: Unpack[EntrypointArguments],
    ) -> None:
        super().__init__(**options)
        if key is not None:
            check_key(key)
        elif parks:
            raise ConfigError(
                'parks=True parks what follows a failed message of the same key: say which with key="…".'
            )
        if key is not None and kill_switch:
            raise ConfigError(
                "kill_switch= beside key=: it gives messages back, which would change their order."
            )
        if key is not None and isinstance(self.prefetch, AdaptivePrefetch):
            raise ConfigError(
                f"prefetch={self.prefetch!r} beside key=: a change sends what is on its way back behind what is not, which would "
                "change the order of a key. Say a number."
            )
        self.key = key
        self.parks = parks
        if not (batch is None or isinstance(batch, Batch)):
            raise ConfigError(f"batch={batch!r:.60}: expected Batch(size=…, within=…).")
        if batch is not None and (key is not None or kill_switch):
            raise ConfigError("batch= goes neither with key= nor with kill_switch=.")
        self.batch = batch
        if batch is not None and self.concurrency is None:
            self.concurrency = 1  # lists at once
        if not (retry is UNSET or retry is None or isinstance(retry, Retry)):
            raise ConfigError(f"retry={retry!r:.60}: expected Retry(…), or None for never.")
        if retry is not UNSET and requeue_on_error:
            raise ConfigError(
                "requeue_on_error=True is a policy of its own: leave it out beside retry=."
            )
        self.retry = retry
        if not (kill_switch is None or isinstance(kill_switch, KillSwitch | bool)):
            raise ConfigError(
                f"kill_switch={kill_switch!r:.60}: expected KillSwitch(…), True or False."
            )
        self.kill_switch = kill_switch
        self._guard: ConsumptionGuard | None = None
        self.requeue_on_error = requeue_on_error
        self._policy: Retry | None = None
        self._random = Random()
        self._consumer: LinkConsumer | None = None
        self._lane: Lane | None = None
        self._prefetch: PrefetchChanges | None = None
        self._window: PrefetchWindow | None = None
        self._stop_looking: Callable[[], None] | None = None
        self._put_back: PutBack | None = None
        self._remembered = Remembered(event_key)
        self._counting = Counting(lambda: self._consumer)
        self._in_order: InOrder | None = None
        self._batches: Batches | None = None
        self._submit: Callable[[Call], None] = _not_started

    @abstractmethod
    def topology(self) -> tuple[Queue, list[Exchange | Queue | Binding]]:
        """The queue to consume, and all that must be declared for it, the queue included."""

    def dead_letter_queue(self) -> str:
        """Where messages go that cannot be handled."""
        return dead_letter_queue_name(self._queue.name)

    async def setup(self) -> None:
        container = self.container
        self._link = container.host.link
        self._serializers = container.host.serializers
        self._parent_calls_tracked = container.settings.parent_calls_tracked
        self._queue, parts = self.topology()
        self._policy = self._policy_of(container.settings)
        self._dead_queue = self.dead_letter_queue()
        self._put_back = self.put_backs.add(
            PutBack(
                container.host,
                self._queue.name,
                user=own_user(container.settings.AMQP_URI),
                may_vanish=self._queue.exclusive or self._queue.auto_delete,
                on_acknowledged=self._remembered.acknowledged,
            )
        )
        await self._link.declare(*parts)
        if self.parks:
            await self.dead_letters.expect(self._dead_queue)
        self._queue_counts = counts_returns(self._queue, self._link)
        if self._policy is not None:
            await self._put_back.expect(self._policy.delay(1, self._random))

    def _policy_of(self, settings: Settings) -> Retry | None:
        """The file's word for this handler, else the declaration's, else the file's for all, else ours.

        Raises:
            ConfigError: what the file says is no policy.
        """
        section, service = settings.mycelia, self.container.service_name
        name = f"{service}.{self.method_name}"
        by_handler = section.handler_retry or {}
        if name in by_handler:
            return retry_of(by_handler[name], f"mycelia.handler_retry.{name}")
        if not isinstance(self.retry, UnsetType):
            return self.retry
        if self.requeue_on_error:
            pauses = exponential(0.25, max=30.0, jitter=False)
            return Retry(section.requeue_attempts, pauses, on=BaseException)
        if service in by_handler:
            return retry_of(by_handler[service], f"mycelia.handler_retry.{service}")
        if section.retry is not None:
            return retry_of(section.retry, "mycelia.retry")
        is_stream = self._queue.arguments.get("x-queue-type") == "stream"
        if is_stream:
            return None
        return DEFAULT_RETRY if self.key is None else RETRY_IN_ORDER

    async def start(self) -> None:
        container = self.container
        if self.key is None:
            self._lane = container.make_lane(self)
        else:
            order = in_order_by(self.key, self._prefetch_now)
            lane = self._lane = container.make_lane(self, order=order)
            assert isinstance(lane, KeyedLane)
            self._in_order = InOrder(lane, queue=self._queue.name, parks=self.parks)
        self._submit = self._lane.submit
        if self.batch is not None:
            self._batches = Batches(self.batch, self.target, self._lane)
            self._submit = self._batches.add
        if self.key is None:
            adaptive = self.prefetch if isinstance(self.prefetch, AdaptivePrefetch) else None
            self._window = PrefetchWindow(
                self._said_prefetch(),
                adaptive,
                max_bytes=container.settings.mycelia.prefetch_bytes,
                each=1 if self.batch is None else self.batch.size,
            )
        self._guard = guard = self._make_guard()
        self._consumer = await self._link.consume(
            self._queue.name,
            self._on_deliveries if guard is None else guard.on_deliveries,
            ConsumeOptions(prefetch=self._prefetch_now(), on_lost=self._on_lost),
        )
        if self._in_order is not None:
            # What is unsettled then comes back in its order; given back one by one it might come behind the rest.
            container.at_end(self._consumer.aclose)
        self._prefetch = PrefetchChanges(self._consumer)
        if guard is not None:
            guard.guard(self._consumer, self._lane, self._prefetch)
        if self._window is not None:
            watch = container.host.watch(asyncio.get_running_loop())
            self._stop_looking = watch.each_look(self._look_at_prefetch)

    def _make_guard(self) -> ConsumptionGuard | None:
        """What stops the consumer when the method fails too often; `None` for nothing.

        Raises:
            ConfigError: the configuration's kill switch is none.
        """
        section = self.container.settings.mycelia
        if self.key is not None or self.batch is not None:
            if self.kill_switch is None and section.kill_switch:
                what, why = (
                    ("key=", "it gives messages back, which would change their order")
                    if self.key is not None
                    else ("batch=", "it counts and tries single messages")
                )
                raise ConfigError(
                    f"{self.target.name} has {what}, and the configuration a kill switch (mycelia.kill_switch) for all handlers; a handler "
                    f"with {what} can have none: {why}. Say kill_switch=False where the handler is declared."
                )
            return None
        if isinstance(self.kill_switch, KillSwitch):
            switch: KillSwitch | None = self.kill_switch
        elif self.kill_switch is None:
            switch = kill_switch_of(section.kill_switch, "mycelia.kill_switch")
        else:
            switch = KillSwitch() if self.kill_switch else None
        if switch is None:
            return None
        queue = self._queue
        return ConsumptionGuard(
            switch,
            self._on_deliveries,
            call=self.target.name,
            queue=queue.name,
            expected=self.expected_exceptions,
            keeps=queue.auto_delete or queue.arguments.get("x-queue-type") == "stream",
            prefetch=self._prefetch_now,
        )

    def _prefetch_now(self) -> int:
        """Messages that the broker may have outstanding here."""
        return self._said_prefetch() if self._window is None else self._window.now

    def _said_prefetch(self) -> int:
        """The same, as the settings are now; where it adapts, at first."""
        container, prefetch = self.container, self.prefetch
        size = 1 if self.batch is None else self.batch.size
        if isinstance(prefetch, AdaptivePrefetch):
            return min(max(prefetch.least, size), prefetch.most)
        if self.batch is not None:
            wanted = 2 * size * container.concurrency_of(self)
            return max(size, min(prefetch or wanted, MAX_PREFETCH))
        if self.key is not None and self.prefetch is None:
            return min(BEHIND_EACH * container.concurrency_of(self), MAX_PREFETCH)
        return container.prefetch_of(self)

    def reconfigure(self, old: Settings, new: Settings) -> None:
        self._policy = self._policy_of(new)
        # A change takes what is on its way back behind what is not: none with a key.
        if self._window is not None:
            self._window.max_bytes = new.mycelia.prefetch_bytes
            self._window.rebase(self._said_prefetch())
            self._ask_for_prefetch()

    def _ask_for_prefetch(self) -> None:
        if self._prefetch is not None:
            asked = self._prefetch if self._guard is None else self._guard
            asked.ask_for(self._prefetch_now())

    def _look_at_prefetch(self) -> None:
        """Some times a second while anything runs: have the prefetch follow what has been seen."""
        lane, window = self._lane, self._window
        assert lane is not None
        assert window is not None
        before, now = window.now, time.monotonic()
        full_since = lane.full_since if window.adapts else None
        stalled_s = 0.0 if full_since is None else now - full_since
        if window.look(now, lane.limit, stalled_s) != before:
            self._ask_for_prefetch()

    def statistics(self) -> ConsumerStatistics | None:
        if self._consumer is None or self._put_back is None:
            return None
        return ConsumerStatistics(
            queue=self._queue.name,
            is_consuming=self._consumer.is_consuming,
            is_paused=self._consumer.is_paused,
            prefetch=self._consumer.prefetch,
            unsettled=self._consumer.unsettled,
            put_back=len(self._put_back.deliveries),
            retried=self._put_back.retried,
            remembered=len(self._remembered),
            kill_switch=None if self._guard is None else self._guard.state.value,
            kill_switch_stops=0 if self._guard is None else self._guard.stops,
        )

    async def stop(self) -> None:
        """Take no more messages; those that wait here go back to the queue."""
        if self._stop_looking is not None:
            self._stop_looking()
        if self._guard is not None:
            self._guard.stop()
        if self._prefetch is not None:
            self._prefetch.stop()
        if self._consumer is not None and self._lane is not None:
            if self._in_order is None:
                await stop_deliveries(self._consumer)
                if self._batches is not None:
                    self._batches.stop()
            else:
                self._consumer.retire()
            self._lane.give_back_backlog()
        self._counting.stop()

    # --- a message comes in -------------------------------------------------------------------

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        submit = self._submit
        arrived_at = time.monotonic()
        if self._window is not None:  # large ones come few at a time
            self._window.came(len(deliveries[0].body))
        if self._remembered:
            deliveries = self._remembered.claim(deliveries, arrived_at)
        for delivery in deliveries:
            attempt, returns, is_over = history_of(delivery, self._queue_counts)
            call = Call(
                self.target,
                headers=delivery.properties.headers,
                attempt=attempt,
                arrived_at=arrived_at,
                message=delivery,
                read=self.decode_arguments,
                parent_calls_tracked=self._parent_calls_tracked,
            )
            if not returns and not is_over:  # nearly always
                submit(call)
            else:
                self._submit_with_history(call, delivery, returns, is_over)

    def _submit_with_history(
        self, call: Call, delivery: Delivery, returns: int, is_over: bool
    ) -> None:
        lane = self._lane
        assert lane is not None
        refusal: Exception | None = None
        if returns >= DELIVERY_LIMIT:
            refusal = TooManyDeliveries(self._queue.name, returns)
        elif is_over:
            refusal = DeadlinePassed(f"{self.target.name}: its time to live is over.")
        if self._in_order is not None:
            call.refusal = refusal  # when it is its turn
            lane.submit(call)
        elif refusal is not None:
            lane.refuse(call, refusal)
        elif returns and not is_counted(delivery, self._queue_counts):
            self._count(call, delivery, lane, returns)
        else:
            self._submit(call)

    def _count(self, call: Call, delivery: Delivery, lane: Lane, returns: int) -> None:
        """Make a return durable that the queue does not count: publish the message to it anew, with its count."""
        assert self._put_back is not None
        self._counting.begin(lane)
        self._put_back.later(
            delivery,
            "",
            self._queue.name,
            0.0,
            attempt=read_attempt(call.headers),
            returns=returns,
            expires_at_ms=self._expires_at_ms(call, delivery),
            on_given_up=lambda: self._submit(call),  # not counted, but handled
            on_expired=lambda exc: lane.refuse(call, exc),
            on_end=self._counting.end,
        )

    def _expires_at_ms(self, call: Call, delivery: Delivery) -> int | None:
        arrived = time.time() - (time.monotonic() - call.arrived_at)
        return expires_at_ms(delivery, int(arrived * 1000))

    def _on_lost(self) -> None:
        """The channel is gone, and the broker delivers again what we had: some of it to us."""
        lane, put_back = self._lane, self._put_back
        assert lane is not None
        assert put_back is not None
        self._queue_counts = counts_returns(self._queue, self._link)
        now = time.monotonic()
        running = [call.message for call in lane.running if call.message is not None]
        running += [item.message for call in lane.running for item in call.items if item.message]
        on_their_way = [*put_back.deliveries, *self.dead_letters.under_way(self._queue.name)]
        self._remembered.keep([*running, *on_their_way], now)
        lost = lane.drop_lost() if self._batches is None else self._batches.drop_lost()
        dropped = [call.message for call in lost if call.message is not None]
        self._remembered.drop(dropped, now)

    def decode_arguments(self, call: Call) -> Arguments:
        """The payload.

        Raises:
            UndecodableMessage: the message is dead-lettered with it; the method does not run.
        """
        assert call.message is not None
        return (decode_body(call.message, self._serializers),), {}

    # --- an outcome goes out ------------------------------------------------------------------

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        error = outcome.error
        if isinstance(error, KeyParked):
            return DeadLetter("parked")
        if isinstance(error, TooManyDeliveries):
            return DeadLetter("too_many_attempts")
        if outcome.is_refused and isinstance(error, DeadlinePassed):
            return DeadLetter("expired")
        if outcome.is_refused:
            return DeadLetter("undecodable")
        assert error is not None
        return self._after_error(error, call.attempt)

    def _after_error(self, error: BaseException, attempt: int) -> Settlement:
        """What the policy makes of a method's error."""
        limit = self.container.settings.mycelia.requeue_attempts
        policy = policy_after(self._policy, error, limit)
        if policy is None:
            return DeadLetter("handler_error")
        after = pause_after(policy, error, attempt, self._random, call=self.target.name)
        if after is not None:
            return Redeliver(after)
        return DeadLetter("too_many_attempts" if policy.attempts > 1 else "handler_error")

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        delivery = call.message
        if self._window is not None and self._window.adapts and call.started_at:
            self._window.took(time.monotonic() - call.started_at)
        if delivery is None:
            if type(settlement) is GiveBack:
                outcome = outcome.replace(settlement=settlement)
            self._settle_items(call, outcome)
            return
        if self._guard is not None:
            self._guard.note(call, outcome, settlement)
        match settlement:
            case Ack():
                delivery.ack()
                self._remembered.acknowledged(delivery)
            case GiveBack() if self._in_order is not None and self._in_order.keeps(delivery):
                pass
            case GiveBack():
                delivery.nack(requeue=True)
            case Requeue():
                self._again(call, delivery, requeue_delay(call.attempt), outcome.error)
            case Redeliver(after):
                self._again(call, delivery, after, outcome.error)
            case DeadLetter(reason):
                self._bury(call, delivery, reason, outcome.error)

    def _settle_items(self, batch: Call, outcome: Outcome) -> None:
        """Each item of a batch, as the handler has said of it, or what came of the whole."""
        for item, own in outcomes_of(batch, outcome):
            settlement = own.settlement
            if settlement is None:
                settlement = ACK if own.error is None else self.settlement_of(item, own)
            if own.error is not None and own is not outcome and type(settlement) is not GiveBack:
                self.log_error(item, own)
            if own.error is not None or own.settlement is not None:
                item.settlement = settlement
            self.settle(item, own, settlement)

    def _again(
        self, call: Call, delivery: Delivery, after: float, error: BaseException | None
    ) -> None:
        expires = self._expires_at_ms(call, delivery)
        limit = self.container.settings.mycelia.requeue_attempts
        if self._policy is not None:
            limit = max(limit, self._policy.attempts)
        now = time.time()
        if call.attempt >= limit:
            self._bury(call, delivery, "too_many_attempts", error)
        elif expires is not None and (now + time_of(after)) * 1000 >= expires:
            self._bury(call, delivery, "expired", error)
        elif self._in_order is not None:
            if not self._in_order.try_again(call, after):
                self._bury(call, delivery, "too_many_attempts", error)
        else:
            assert self._put_back is not None
            self._put_back.later(
                delivery,
                "",
                self._queue.name,
                after,
                attempt=call.attempt + 1,
                failed_at_ms=int(now * 1000),
                expires_at_ms=expires,
                on_given_up=lambda: self._bury(call, delivery, "too_many_attempts", error),
                on_expired=lambda exc: self._bury(call, delivery, "expired", error or exc),
            )

    def _bury(
        self, call: Call, delivery: Delivery, reason: str, error: BaseException | None
    ) -> None:
        call.settlement = DeadLetter(reason)
        if self._in_order is not None:
            self._in_order.failed_for_good(call)
        self.dead_letters.bury(
            delivery,
            queue=self._queue.name,
            method=self.method_name,
            reason=reason,
            attempts=call.attempt,
            error=error,
            dead_queue=self._dead_queue,
            on_acknowledged=self._remembered.acknowledged,
        )


def _not_started(call: Call) -> None:
    raise RuntimeStateError(f"{call.target.name} has not been started")
