"""Whatever happens to a queue, each message is ready, with one consumer, settled or dead: never two of them, never none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from mycelia.amqp import Message
from mycelia.amqp.memory.broker import MemoryBroker, PublishOutcome, Subscription
from mycelia.amqp.memory.clock import ManualClock
from mycelia.amqp.memory.queues import Entry
from mycelia.amqp.model import Properties, Queue


class SilentPeer:
    """A connection that takes what comes."""

    is_alive = True

    def on_lost(self) -> None:
        pass

    def on_restored(self) -> None:
        pass

    def on_blocked(self) -> None:
        pass


class QueueMachine(RuleBasedStateMachine):
    """Random publishers, consumers, settlements, closings and passing time on a queue with a dead-letter queue."""

    subscriptions = Bundle("subscriptions")

    @initialize(
        queue_type=st.sampled_from(["classic", "quorum"]),
        limits=st.fixed_dictionaries(
            {},
            optional={
                "x-message-ttl": st.integers(1, 3000),
                "x-max-length": st.integers(1, 5),
                "x-single-active-consumer": st.booleans(),
            },
        ),
        delivery_limit=st.none() | st.integers(0, 3),
    )
    def declare(self, queue_type: str, limits: dict[str, Any], delivery_limit: int | None) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(self.clock)
        self.peer = SilentPeer()
        self.broker.connect(self.peer)
        arguments: dict[str, Any] = {
            "x-queue-type": queue_type,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
            **limits,
        }
        if queue_type == "quorum" and delivery_limit is not None:
            arguments["x-delivery-limit"] = delivery_limit
        self.broker.declare_queue(self.peer, Queue("work", arguments=arguments))
        self.broker.declare_queue(self.peer, Queue("dead"))
        self.published = 0
        self.acknowledged: Counter[bytes] = Counter()
        self.delivered: dict[Subscription, dict[int, bytes]] = {}

    @rule(ttl_ms=st.none() | st.integers(0, 3000))
    def publish(self, ttl_ms: int | None) -> None:
        body = b"%d" % self.published
        self.published += 1
        properties = Properties(expiration=None if ttl_ms is None else str(ttl_ms))
        outcome = self.broker.publish(Message("", "work", body, properties))
        assert outcome is PublishOutcome.CONFIRMED

    @rule(target=subscriptions, prefetch=st.integers(1, 3))
    def consume(self, prefetch: int) -> Subscription:
        inbox: dict[int, bytes] = {}

        def deliver(tag: int, entry: Entry, _: Mapping[str, Any]) -> None:
            assert tag not in inbox
            inbox[tag] = entry.message.body
            assert len(subscription.unsettled) <= prefetch

        subscription = Subscription(
            "tag",
            deliver,
            lambda: None,
            prefetch=prefetch,
            no_ack=False,
            exclusive=False,
            arguments={},
        )
        self.delivered[subscription] = inbox
        self.broker.consume(self.peer, "work", subscription)
        return subscription

    @rule(subscription=subscriptions, choice=st.randoms(use_true_random=False))
    def acknowledge(self, subscription: Subscription, choice: Any) -> None:
        if subscription.unsettled:
            tag = choice.choice(sorted(subscription.unsettled))
            self.acknowledged[self.delivered[subscription][tag]] += 1
            self.broker.settle(subscription, tag, accepted=True)

    @rule(subscription=subscriptions, requeue=st.booleans())
    def reject(self, subscription: Subscription, requeue: bool) -> None:
        if subscription.unsettled:
            tag = min(subscription.unsettled)
            self.broker.settle(subscription, tag, accepted=False, requeue=requeue)

    @rule(subscription=subscriptions)
    def cancel(self, subscription: Subscription) -> None:
        self.broker.cancel(subscription)

    @rule(target=subscriptions, subscription=consumes(subscriptions))
    def close(self, subscription: Subscription) -> Any:
        self.broker.close(subscription)
        assert not subscription.unsettled
        return multiple()

    @rule(seconds=st.floats(0.0, 2.0))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        if not hasattr(self, "broker"):
            return
        unsettled = Counter(
            entry.message.body
            for subscription in self.delivered
            for entry in subscription.unsettled.values()
        )
        ready = self.broker.message_count(self.peer, "work")
        dead = self.broker.message_count(self.peer, "dead")
        assert ready + dead + unsettled.total() + self.acknowledged.total() == self.published
        assert max((unsettled + self.acknowledged).values(), default=0) <= 1

    @invariant()
    def nobody_waits_while_messages_are_ready(self) -> None:
        if not hasattr(self, "broker"):
            return
        ready = self.broker.message_count(self.peer, "work")
        consuming = list(self.broker._queues["work"]._consumers)
        if self.broker._queues["work"].declared.arguments.get("x-single-active-consumer"):
            consuming = consuming[:1]
        assert not ready or not any(one.has_room for one in consuming)


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase
