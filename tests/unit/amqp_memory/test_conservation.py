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
from mycelia.amqp.memory.broker import MemoryBroker, PublishOutcome, QueueSubscriber
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

    subscribers = Bundle("subscribers")

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
        self.delivered: dict[QueueSubscriber, dict[int, bytes]] = {}

    @rule(ttl_ms=st.none() | st.integers(0, 3000))
    def publish(self, ttl_ms: int | None) -> None:
        body = b"%d" % self.published
        self.published += 1
        properties = Properties(expiration=None if ttl_ms is None else str(ttl_ms))
        outcome = self.broker.publish(Message("", "work", body, properties))
        assert outcome is PublishOutcome.CONFIRMED

    @rule(target=subscribers, prefetch=st.integers(1, 3))
    def consume(self, prefetch: int) -> QueueSubscriber:
        inbox: dict[int, bytes] = {}

        def deliver(tag: int, entry: Entry, _: Mapping[str, Any]) -> None:
            assert tag not in inbox
            inbox[tag] = entry.message.body
            assert len(subscriber.unsettled) <= prefetch

        subscriber = QueueSubscriber(
            "tag",
            deliver,
            lambda: None,
            prefetch=prefetch,
            no_ack=False,
            exclusive=False,
            arguments={},
        )
        self.delivered[subscriber] = inbox
        self.broker.consume(self.peer, "work", subscriber)
        return subscriber

    @rule(subscriber=subscribers, choice=st.randoms(use_true_random=False))
    def acknowledge(self, subscriber: QueueSubscriber, choice: Any) -> None:
        if subscriber.unsettled:
            tag = choice.choice(sorted(subscriber.unsettled))
            self.acknowledged[self.delivered[subscriber][tag]] += 1
            self.broker.settle(subscriber, tag, accepted=True)

    @rule(subscriber=subscribers, requeue=st.booleans())
    def reject(self, subscriber: QueueSubscriber, requeue: bool) -> None:
        if subscriber.unsettled:
            tag = min(subscriber.unsettled)
            self.broker.settle(subscriber, tag, accepted=False, requeue=requeue)

    @rule(subscriber=subscribers)
    def cancel(self, subscriber: QueueSubscriber) -> None:
        self.broker.cancel(subscriber)

    @rule(target=subscribers, subscriber=consumes(subscribers))
    def close(self, subscriber: QueueSubscriber) -> Any:
        self.broker.close(subscriber)
        assert not subscriber.unsettled
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
            for subscriber in self.delivered
            for entry in subscriber.unsettled.values()
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


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestQueue = QueueMachine.TestCase
