"""Messages that arrive later, on both links."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import pytest
from tests.link.conftest import QUORUM
from tests.link.inbox import Inbox

from mycelia.amqp import Binding, Delivery, Exchange, Link, Message, Properties, Queue, connect
from mycelia.amqp.delay_levels import restored
from mycelia.amqp.delays import ORPHANS, Delays
from mycelia.errors import ConfigError
from mycelia.testing.eventually import eventually

ReadyCount = Callable[[str, int], Awaitable[None]]


async def take(link: Link, queue: str) -> Delivery:
    """The next message of `queue`, as soon as it is there."""
    found: list[Delivery] = []

    async def came() -> bool:
        delivery = await link.get(queue)
        if delivery is not None:
            found.append(delivery)
        return bool(found)

    await eventually(came, 30, what=f"a message in {queue}")
    found[0].ack()
    return found[0]


async def test_message_arrives_after_its_delay_and_not_before(link: Link, queue: str) -> None:
    delays, inbox, sent = Delays(link), Inbox(acks=True), {}
    await link.consume(queue, inbox)
    for number, after in enumerate((1.3, 0.0, 0.5, 0.25, 0.75)):
        sent[str(number).encode()] = time.monotonic() + after
        await delays.publish(Message("", queue, str(number).encode(), Properties()), after)

    for count in range(1, 6):
        await inbox.wait(count)
        body = inbox.bodies[count - 1]
        assert sent[body] - 0.05 <= time.monotonic() < sent[body] + 3

    assert inbox.bodies[-1] == b"0"
    assert len(inbox.bodies) == 5


async def test_delayed_message_keeps_all_that_it_had(link: Link, queue: str) -> None:
    properties = Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={
            "a": [1, {"b": b"\xff"}],
            "x-death": [{"queue": "mycelia.delay.short.500ms", "reason": "expired", "count": 1}],
            "x-first-death-queue": "another",
        },
        delivery_mode=1,
        priority=7,
        correlation_id="c",
        reply_to="r",
        expiration="60000",
        message_id="m",
        timestamp=1_700_000_000,
        type="t",
        app_id="app",
    )
    sent = Message("", queue, b"\x00body", properties)
    await Delays(link).publish(sent, 0.75)

    came = await take(link, queue)
    restored(came)

    headers = came.properties.headers or {}
    assert {name: headers[name] for name in ("a", "x-death", "x-first-death-queue")} == (
        properties.headers
    )
    assert not [name for name in headers if name.startswith(("x-mycelia-delay", "x-last"))]
    assert (came.body, came.routing_key) == (sent.body, queue)
    came.properties.headers = properties.headers
    assert came.properties == properties


async def test_message_for_a_queue_keeps_its_own_routing_key(link: Link, queue: str) -> None:
    key = "k" * 255
    await Delays(link).publish(Message("", key, b"1", Properties()), 0.3, queue=queue)

    assert (await take(link, queue)).routing_key == key


async def test_queue_may_have_the_longest_of_names(link: Link) -> None:
    name = "q" * 255
    await link.declare(Queue(name, arguments=QUORUM))
    await Delays(link).publish(Message("", name, b"1", Properties()), 0.3)

    assert (await take(link, name)).body == b"1"


async def test_message_for_an_exchange_is_routed_when_its_time_has_come(link: Link) -> None:
    await link.declare(Exchange("orders"))
    await Delays(link).publish(Message("orders", "order.placed", b"1", Properties()), 0.6)
    await link.declare(Queue("late", arguments=QUORUM), Binding("late", "orders", "order.*"))

    came = await take(link, "late")
    restored(came)

    assert (came.exchange, came.routing_key) == ("orders", "order.placed")


async def test_event_that_nobody_handles_holds_up_nobody(link: Link, queue: str) -> None:
    await link.declare(Exchange("orders"))
    delays = Delays(link)
    for number in range(40):  # more than the 32 that RabbitMQ dead-letters at once
        await delays.publish(Message("orders", f"nobody.{number}", b"1", Properties()), 0.25)
    await delays.publish(Message("", queue, b"2", Properties()), 0.25)

    assert (await take(link, queue)).body == b"2"
    assert await link.message_count(ORPHANS) == 0


async def test_message_whose_queue_is_gone_is_kept_as_an_orphan_and_holds_up_nobody(
    link: Link, queue: str
) -> None:
    delays = Delays(link)
    await link.declare(Queue("gone", arguments=QUORUM))
    for number in range(40):
        await delays.publish(Message("", "gone", str(number).encode(), Properties()), 0.5)
    await link.delete_queue("gone")
    await delays.publish(Message("", queue, b"2", Properties()), 0.5)

    assert (await take(link, queue)).body == b"2"
    orphans = [await take(link, ORPHANS) for _ in range(40)]
    assert sorted(int(orphan.body) for orphan in orphans) == list(range(40))
    assert (orphans[0].properties.headers or {})["x-mycelia-delay-to"] == "queue:gone"


async def test_message_that_may_vanish_is_no_orphan(link: Link, queue: str) -> None:
    delays = Delays(link)
    await link.declare(Queue("gone", arguments=QUORUM))
    await delays.publish(Message("", "gone", b"1", Properties()), 0.5, may_vanish=True)
    await link.delete_queue("gone")
    await delays.publish(Message("", queue, b"2", Properties()), 0.75)

    assert (await take(link, queue)).body == b"2"
    assert await link.message_count(ORPHANS) == 0


async def test_expected_queue_that_is_made_anew_gets_what_was_on_its_way(
    link: Link, link_factory: Callable[[], Awaitable[Link]]
) -> None:
    await link.declare(Queue("expected", arguments=QUORUM))
    delays, inbox = Delays(link), Inbox(acks=True)
    await delays.expect("expected")
    await link.consume("expected", inbox)
    await delays.publish(Message("", "expected", b"1", Properties()), 4.0)
    await (await link_factory()).delete_queue(
        "expected"
    )  # by somebody else: the consumer repairs it

    await inbox.wait(1)


async def test_level_that_was_deleted_is_declared_again(link: Link, queue: str) -> None:
    delays = Delays(link)
    await delays.publish(Message("", queue, b"1", Properties()), 0.25)
    assert (await take(link, queue)).body == b"1"
    await link.delete_queue("mycelia.delay.short.250ms")
    await delays.publish(Message("", queue, b"2", Properties()), 0.25)

    assert (await take(link, queue)).body == b"2"


async def test_levels_are_declared_as_they_are_needed_and_again_after_an_hour(
    link: Link, queue: str
) -> None:
    times = itertools.count(0, 3600.0)
    now = [next(times)]
    delays = Delays(link, monotonic=lambda: now[0])
    await delays.publish(Message("", queue, b"1", Properties()), 0.75)
    names = [f"mycelia.delay.short.{label}" for label in ("250ms", "500ms")]
    assert [await link.message_count(name) >= 0 for name in names] == [True, True]
    with pytest.raises(Exception, match="no queue"):
        await link.message_count("mycelia.delay.short.1s")
    await take(link, queue)
    await link.delete_queue(names[0])  # it has expired, as far as this process can know
    now[0] = next(times) + 1
    await delays.publish(Message("", queue, b"1", Properties()), 0.75)

    assert await link.message_count(names[0]) >= 0


async def test_hundreds_at_once_arrive_once_each(link: Link, queue: str) -> None:
    delays, inbox = Delays(link), Inbox(acks=True)
    await link.consume(queue, inbox)
    bodies = [str(number).encode() for number in range(500)]
    await asyncio.gather(
        *(
            delays.publish(Message("", queue, body, Properties()), 0.25 * (1 + index % 7))
            for index, body in enumerate(bodies)
        )
    )

    await inbox.wait(500)
    assert sorted(inbox.bodies) == sorted(bodies)


@pytest.mark.parametrize("after", [-1.0, 45 * 86400 + 1.0, float("inf"), float("nan")])
async def test_delay_that_cannot_be_kept_is_refused(link: Link, queue: str, after: float) -> None:
    with pytest.raises(ConfigError, match="45 days"):
        await Delays(link).publish(Message("", queue, b"1", Properties()), after)


async def test_month_is_taken(link: Link, queue: str) -> None:
    await Delays(link).publish(Message("", queue, b"1", Properties()), 31 * 86400.0)

    assert await link.message_count("mycelia.delay.long.2097152s") == 1
    assert await link.message_count(queue) == 0


@pytest.mark.rabbit
async def test_new_level_is_given_time_to_settle_and_an_old_one_none(
    rabbit_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mycelia.amqp.rabbit.link._SETTLING_S", 1.0)
    link = connect(rabbit_uri)
    await link.open(15)
    await link.declare(Queue("goal", arguments=QUORUM))
    delays = Delays(link)
    await delays.expect("goal", after=0.25)  # does not wait itself

    async def took(delays: Delays, after: float) -> float:
        begun = time.monotonic()
        await asyncio.gather(
            *(delays.publish(Message("", "goal", b"", Properties()), after) for _ in range(9))
        )
        return time.monotonic() - begun

    assert await took(delays, 0.25) > 0.8
    assert await took(delays, 0.25) < 0.8
    assert await took(delays, 0.75) > 0.9  # two levels, of which one is new
    assert await took(Delays(link), 0.75) < 0.8  # as another process would
    await link.aclose()
