"""Declaring, adopting, forgetting, counting and deleting."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest
from tests.link.inbox import Inbox

from mycelia.amqp import (
    Binding,
    ConsumeOptions,
    Exchange,
    ExchangeBinding,
    Link,
    Message,
    Properties,
    Queue,
)
from mycelia.errors import TopologyError, Unroutable
from mycelia.testing.eventually import eventually

LinkFactory = Callable[[], Awaitable[Link]]


async def receive(link: Link, queue: str, count: int) -> list[bytes]:
    """Consume `count` messages and settle them."""
    inbox = Inbox(acks=True)
    consumer = await link.consume(queue, inbox)
    await inbox.wait(count)
    await consumer.aclose()
    return inbox.bodies


async def test_declaring_the_same_parts_again_changes_nothing(link: Link) -> None:
    parts = (
        Exchange("orders", "topic"),
        Queue("orders", arguments={"x-queue-type": "quorum"}),
        Binding("orders", "orders", "order.*"),
    )
    await link.declare(*parts)
    await link.publish(Message("orders", "order.placed", b"1", Properties()))
    await link.declare(*parts)
    await link.publish(Message("orders", "order.placed", b"2", Properties()))

    assert await receive(link, "orders", 2) == [b"1", b"2"]


async def test_parts_may_be_given_in_any_order(link: Link) -> None:
    await link.declare(Binding("orders", "orders", "#"), Queue("orders"), Exchange("orders"))
    await link.publish(Message("orders", "any", b"1", Properties(), mandatory=True))

    assert await receive(link, "orders", 1) == [b"1"]


async def test_queue_that_exists_with_other_arguments_is_adopted_and_reported(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    there, wanted = (Queue("work", arguments={"x-queue-type": t}) for t in ("classic", "quorum"))
    await link.declare(there)

    with caplog.at_level(logging.WARNING, "mycelia.amqp"):
        await link.declare(wanted)

    assert any("work" in record.getMessage() for record in caplog.records)
    assert (link.is_adopted(there), link.is_adopted(wanted)) == (False, True)
    await link.publish(Message("", "work", b"1", Properties(), mandatory=True))
    assert await receive(link, "work", 1) == [b"1"]


async def test_link_works_on_after_a_queue_was_adopted(link: Link) -> None:
    await link.declare(Queue("work", arguments={"x-message-ttl": 60_000}))
    await link.declare(
        Exchange("orders"),
        Queue("work", arguments={"x-message-ttl": 1}),
        Binding("work", "orders", "#"),
    )
    await link.publish(Message("orders", "x", b"kept", Properties(), mandatory=True))

    assert await receive(link, "work", 1) == [b"kept"]


async def test_exchange_that_exists_with_other_settings_is_adopted(link: Link) -> None:
    await link.declare(Exchange("orders", "topic", durable=True))

    await link.declare(Exchange("orders", "topic", durable=False), Queue("work"))
    await link.declare(Binding("work", "orders", "#"))

    await link.publish(Message("orders", "any", b"", Properties(), mandatory=True))


async def test_exchange_of_another_type_is_refused_for_good(link: Link) -> None:
    await link.declare(Exchange("orders", "topic"))

    with pytest.raises(TopologyError, match="orders"):
        await link.declare(Exchange("orders", "fanout"))

    await link.declare(Queue("still-works"))


async def test_arguments_that_do_not_fit_together_are_refused_for_good(link: Link) -> None:
    with pytest.raises(TopologyError, match="non-durable"):
        await link.declare(Queue("work", durable=False, arguments={"x-queue-type": "quorum"}))


async def test_binding_to_an_exchange_that_does_not_exist_is_refused(link: Link) -> None:
    await link.declare(Queue("work"))

    with pytest.raises(TopologyError, match="nowhere"):
        await link.declare(Binding("work", "nowhere", "#"))


@pytest.mark.parametrize("part", [Exchange("absent", passive=True), Queue("absent", passive=True)])
async def test_passive_declaration_of_what_does_not_exist_is_refused(
    link: Link, part: Exchange | Queue
) -> None:
    with pytest.raises(TopologyError, match="absent"):
        await link.declare(part)


async def test_passive_declaration_accepts_what_exists_in_any_form(link: Link) -> None:
    await link.declare(Exchange("orders", "fanout"), Queue("work", arguments={"x-max-length": 5}))

    await link.declare(Exchange("orders", passive=True), Queue("work", passive=True))


async def test_one_refused_declaration_leaves_the_others_of_the_link_alone(link: Link) -> None:
    await link.declare(Queue("work"))
    inbox = Inbox(acks=True)
    await link.consume("work", inbox)

    with pytest.raises(TopologyError):
        await link.declare(Queue("absent", passive=True))
    await link.publish(Message("", "work", b"1", Properties()))

    await inbox.wait(1)


@pytest.mark.parametrize(
    ("exchange_type", "bindings", "routing_key", "expected"),
    [
        ("direct", ["a", "b"], "a", [True, False]),
        ("fanout", ["a", "b"], "zzz", [True, True]),
        ("topic", ["a.*", "a.#"], "a", [False, True]),
        ("topic", ["a.*", "a.#"], "a.b", [True, True]),
        ("topic", ["a.*", "a.#"], "a.b.c", [False, True]),
        ("topic", ["#.c", "*.*.c"], "a.b.c", [True, True]),
        ("topic", ["#", "*"], "", [True, False]),
        ("topic", ["#.b.#", "*.b"], "b", [True, False]),
    ],
)
async def test_exchange_routes_by_its_type(
    link: Link, exchange_type: str, bindings: list[str], routing_key: str, expected: list[bool]
) -> None:
    await link.declare(Exchange("x", exchange_type), Queue("q0"), Queue("q1"))
    await link.declare(*(Binding(f"q{at}", "x", key) for at, key in enumerate(bindings)))

    await link.publish(Message("x", routing_key, b"", Properties()))

    counts = [await link.message_count("q0"), await link.message_count("q1")]
    assert counts == [int(one) for one in expected]


async def test_headers_exchange_routes_by_all_or_any_header(link: Link) -> None:
    await link.declare(
        Exchange("x", "headers"),
        Queue("all"),
        Queue("any"),
        Binding("all", "x", "", {"x-match": "all", "carrier": "AA", "late": True}),
        Binding("any", "x", "", {"x-match": "any", "carrier": "AA", "late": True}),
    )

    await link.publish(Message("x", "", b"", Properties(headers={"carrier": "AA", "late": False})))
    await link.publish(Message("x", "", b"", Properties(headers={"carrier": "AA", "late": True})))
    await link.publish(Message("x", "", b"", Properties(headers={"carrier": "UA"})))

    assert [await link.message_count("all"), await link.message_count("any")] == [1, 2]


async def test_message_bound_twice_to_a_queue_arrives_once(link: Link) -> None:
    await link.declare(
        Exchange("x"), Queue("work"), Binding("work", "x", "#"), Binding("work", "x", "a.*")
    )

    await link.publish(Message("x", "a.b", b"", Properties()))

    assert await link.message_count("work") == 1


async def test_alternate_exchange_takes_what_no_queue_is_bound_for(link: Link) -> None:
    await link.declare(
        Exchange("spare", "fanout"),
        Exchange("x", "direct", arguments={"alternate-exchange": "spare"}),
        Queue("rest"),
        Binding("rest", "spare", ""),
    )

    await link.publish(Message("x", "nobody", b"", Properties(), mandatory=True))

    assert await link.message_count("rest") == 1


async def test_message_count_of_an_absent_queue_is_an_error(link: Link) -> None:
    with pytest.raises(TopologyError, match="absent"):
        await link.message_count("absent")


async def test_message_count_counts_what_is_ready_and_not_what_is_unsettled(
    link: Link, queue: str, ready_count: Callable[[str, int], Awaitable[None]]
) -> None:
    for number in range(5):
        await link.publish(Message("", queue, b"%d" % number, Properties()))
    await ready_count(queue, 5)
    inbox = Inbox()
    await link.consume(queue, inbox, ConsumeOptions(prefetch=2))
    await inbox.wait(2)

    await ready_count(queue, 3)


async def test_deleted_queue_is_gone_with_its_messages(link: Link, queue: str) -> None:
    await link.publish(Message("", queue, b"1", Properties()))

    await link.delete_queue(queue)

    with pytest.raises(Unroutable):
        await link.publish(Message("", queue, b"2", Properties(), mandatory=True))


async def test_deleting_an_absent_queue_does_nothing(link: Link) -> None:
    await link.delete_queue("absent")


async def test_deleted_exchange_is_gone_with_its_bindings(link: Link, queue: str) -> None:
    exchange = Exchange("short-lived", "direct")
    await link.declare(exchange, Binding(queue, exchange.name, "key"))
    message = Message(exchange.name, "key", b"1", Properties(), mandatory=True)
    await link.publish(message)

    await link.delete_exchange(exchange.name)

    with pytest.raises(TopologyError):
        await link.declare(Exchange(exchange.name, "direct", passive=True))
    await link.declare(exchange)
    with pytest.raises(Unroutable):
        await link.publish(message)


async def test_deleting_an_absent_exchange_does_nothing(link: Link) -> None:
    await link.delete_exchange("absent")


async def test_deleting_the_broker_s_own_exchange_is_refused(link: Link) -> None:
    with pytest.raises(TopologyError):
        await link.delete_exchange("amq.direct")


async def test_forgotten_queue_does_not_come_back_for_its_consumer(
    link: Link, link_factory: LinkFactory, queue: str
) -> None:
    inbox = Inbox(acks=True)
    consumer = await link.consume(queue, inbox)
    link.forget(Queue(queue, arguments={"x-queue-type": "quorum"}))
    other = await link_factory()

    await other.delete_queue(queue)
    await link.declare(Queue("elsewhere"))  # the link has had every chance to declare

    with pytest.raises(TopologyError):
        await other.message_count(queue)
    await consumer.aclose()


async def test_exclusive_queue_serves_its_own_link_only(
    link: Link, link_factory: LinkFactory
) -> None:
    other = await link_factory()
    await link.declare(Exchange("x"), Queue("mine", exclusive=True), Binding("mine", "x", "#"))
    inbox = Inbox(acks=True)
    await link.consume("mine", inbox)

    with pytest.raises(TopologyError, match="mine"):
        await other.consume("mine", Inbox(), timeout=5)
    await other.publish(Message("x", "any", b"1", Properties(), mandatory=True))

    await inbox.wait(1)


async def test_exclusive_queue_vanishes_with_its_link(
    link: Link, link_factory: LinkFactory
) -> None:
    owner = await link_factory()
    await owner.declare(Queue("mine", exclusive=True))

    await owner.aclose()

    async def is_gone() -> bool:
        try:
            await link.publish(Message("", "mine", b"", Properties(), mandatory=True))
        except Unroutable:
            return True
        return False

    await eventually(is_gone)


async def test_auto_delete_queue_vanishes_with_its_last_consumer(link: Link) -> None:
    await link.declare(Queue("fleeting", auto_delete=True))
    first = await link.consume("fleeting", Inbox())
    second = await link.consume("fleeting", Inbox())

    await first.aclose()
    await link.publish(Message("", "fleeting", b"", Properties(), mandatory=True))
    await second.aclose()

    async def is_gone() -> bool:
        try:
            await link.publish(Message("", "fleeting", b"", Properties(), mandatory=True))
        except Unroutable:
            return True
        return False

    await eventually(is_gone)


async def test_unused_queue_expires(link: Link) -> None:
    await link.declare(Queue("fleeting", arguments={"x-expires": 100}))

    async def is_gone() -> bool:
        try:
            await link.publish(Message("", "fleeting", b"", Properties(), mandatory=True))
        except Unroutable:
            return True
        return False

    await eventually(is_gone)


async def test_exchange_bound_to_an_exchange_gets_what_that_one_routes_to_it(link: Link) -> None:
    await link.declare(
        Exchange("first", arguments={"alternate-exchange": "else"}),
        Exchange("second"),
        Exchange("else", "fanout"),
        Queue("orders"),
        Queue("rest"),
        ExchangeBinding("second", "first", "order.#"),
        Binding("orders", "second", "order.placed"),
        Binding("rest", "else", ""),
    )
    await link.publish(Message("first", "order.placed", b"1", Properties(), mandatory=True))
    await link.publish(Message("first", "invoice", b"2", Properties(), mandatory=True))
    with pytest.raises(Unroutable):  # it has led on: the alternate is not asked
        await link.publish(Message("first", "order.paid", b"3", Properties(), mandatory=True))

    assert await receive(link, "orders", 1) == [b"1"]
    assert await receive(link, "rest", 1) == [b"2"]


async def test_exchange_that_is_not_there_cannot_be_bound(link: Link) -> None:
    with pytest.raises(TopologyError, match="absent"):
        await link.declare(Exchange("first"), ExchangeBinding("absent", "first", "#"))
