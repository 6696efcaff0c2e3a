"""Whoever holds deliveries learns that their channel is gone, before anything of the next channel arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.link.inbox import Inbox, cut_until

from mycelia.amqp import ConsumeOptions, Delivery, Link, Message, Properties, Queue
from mycelia.testing.eventually import eventually

Cut = Callable[[], Awaitable[None]]
LinkFactory = Callable[[], Awaitable[Link]]


class Holder:
    """Holds deliveries unsettled and drops the lost ones when it is told, as a lane does."""

    def __init__(self) -> None:
        self.waiting: list[Delivery] = []
        self.dropped: list[Delivery] = []
        self.told = 0
        self.mixed = False
        """Whether lost deliveries and those of the next channel ever waited side by side."""

    def on_deliveries(self, batch: list[Delivery]) -> None:
        self.mixed = self.mixed or any(one.is_lost for one in self.waiting)
        self.waiting += batch

    def on_lost(self) -> None:
        self.told += 1
        self.dropped += [one for one in self.waiting if one.is_lost]
        self.waiting = [one for one in self.waiting if not one.is_lost]

    @property
    def bodies(self) -> list[bytes]:
        return [one.body for one in self.waiting]


async def hold(link: Link, queue: str, count: int) -> Holder:
    """A holder of `count` unsettled deliveries of `queue`."""
    holder = Holder()
    await link.consume(
        queue, holder.on_deliveries, ConsumeOptions(prefetch=20, on_lost=holder.on_lost)
    )
    for number in range(count):
        await link.publish(Message("", queue, b"%d" % number, Properties()))
    await eventually(lambda: len(holder.waiting) == count, 30)
    return holder


async def cut_off(cut: Cut, holder: Holder) -> None:
    told = holder.told
    await cut_until(cut, lambda: holder.told > told)


async def test_holder_is_told_once_and_drops_what_the_broker_has_taken_back(
    link: Link, any_queue: str, cut: Cut
) -> None:
    holder = await hold(link, any_queue, 5)
    assert not any(one.is_lost for one in holder.waiting)

    await cut_off(cut, holder)
    await eventually(lambda: len(holder.waiting) == 5, 20, what="delivered again")

    assert len(holder.dropped) == 5 * holder.told
    assert all(one.is_lost for one in holder.dropped)
    assert not holder.mixed
    assert sorted(holder.bodies) == [b"0", b"1", b"2", b"3", b"4"]
    assert not any(one.is_lost for one in holder.waiting)


async def test_backlog_does_not_grow_with_each_cut(link: Link, any_queue: str, cut: Cut) -> None:
    holder = await hold(link, any_queue, 5)

    for _ in range(3):
        await cut_off(cut, holder)
        await eventually(lambda: len(holder.waiting) == 5, 20, what="delivered again")
        assert len(holder.dropped) == 5 * holder.told

    for one in holder.dropped:
        one.ack()  # of channels that are gone: does nothing
    assert len(holder.waiting) == 5
    assert not holder.mixed


async def test_holder_is_told_also_where_all_was_settled(
    link: Link, any_queue: str, cut: Cut
) -> None:
    """The acknowledgements may have been on their way."""
    holder = await hold(link, any_queue, 3)
    for one in holder.waiting:
        one.ack()

    await cut_off(cut, holder)

    assert not holder.mixed
    assert sorted(one.body for one in holder.dropped[:3]) == [b"0", b"1", b"2"]


async def test_nobody_is_told_where_nothing_was_handed_out(
    link: Link, any_queue: str, cut: Cut
) -> None:
    holder = await hold(link, any_queue, 0)

    await cut()
    await link.publish(Message("", any_queue, b"later", Properties()), timeout=15)
    await eventually(lambda: b"later" in holder.bodies, 20)

    assert holder.told == 0


async def test_deliveries_of_a_deleted_queue_are_lost(
    link: Link, link_factory: LinkFactory, any_queue: str
) -> None:
    other = await link_factory()
    holder = await hold(link, any_queue, 3)

    await other.delete_queue(any_queue)
    await eventually(lambda: holder.told == 1, 30)

    assert len(holder.dropped) == 3


async def test_closing_a_consumer_loses_what_it_has_not_settled(link: Link, any_queue: str) -> None:
    holder = Holder()
    consumer = await link.consume(
        any_queue, holder.on_deliveries, ConsumeOptions(on_lost=holder.on_lost)
    )
    for number in range(3):
        await link.publish(Message("", any_queue, b"%d" % number, Properties()))
    await eventually(lambda: len(holder.waiting) == 3, 30)
    holder.waiting[0].ack()

    await consumer.cancel()
    assert not holder.waiting[1].is_lost  # it can still be settled
    await consumer.aclose()

    assert holder.told == 1
    assert all(one.is_lost for one in holder.dropped)


async def test_closing_the_link_loses_what_was_not_settled(
    link_factory: LinkFactory, link: Link, any_queue: str
) -> None:
    other = await link_factory()
    holder = await hold(other, any_queue, 3)

    await other.aclose()

    assert holder.told == 1
    assert len(holder.dropped) == 3


async def test_no_ack_deliveries_are_never_lost(link: Link, any_queue: str, cut: Cut) -> None:
    holder = Holder()
    await link.consume(
        any_queue,
        holder.on_deliveries,
        ConsumeOptions(no_ack=True, on_lost=holder.on_lost),
    )
    await link.publish(Message("", any_queue, b"mine", Properties()))
    await eventually(lambda: holder.bodies == [b"mine"], 30)

    await cut()
    await link.ready(timeout=15)

    assert holder.told == 0
    assert not holder.waiting[0].is_lost


async def test_raising_when_told_does_not_keep_the_consumer_away(
    link: Link, any_queue: str, cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()

    def on_lost() -> None:
        raise RuntimeError("a fault of the runtime")

    await link.consume(any_queue, inbox, ConsumeOptions(on_lost=on_lost))
    await link.publish(Message("", any_queue, b"", Properties()))
    await inbox.wait(1)

    await cut_until(cut, lambda: len(inbox.deliveries) > 1)

    assert any("on_lost_raised" in one for one in caplog.messages)


async def log_of_six(link: Link) -> None:
    await link.declare(Queue("log", arguments={"x-queue-type": "stream"}))
    for number in range(6):
        await link.publish(Message("", "log", b"%d" % number, Properties()))


async def test_stream_resumes_from_the_checkpoint_it_is_told(link: Link, cut: Cut) -> None:
    """And not from what was settled: a checkpoint may be older."""
    await log_of_six(link)
    inbox = Inbox(acks=True)
    asked: list[int | None] = []

    def checkpoint() -> int | None:
        asked.append(3)
        return 3

    await link.consume(
        "log",
        inbox,
        ConsumeOptions(prefetch=4, arguments={"x-stream-offset": "first"}, resume_from=checkpoint),
    )
    await inbox.wait(6)
    assert asked == []  # the start is where the options say
    assert [one.offset for one in inbox.deliveries] == [0, 1, 2, 3, 4, 5]

    await cut_until(cut, lambda: bool(asked))

    await inbox.wait(9, 20)
    assert [one.offset for one in inbox.deliveries[6:9]] == [3, 4, 5]


@pytest.mark.parametrize("fault", ["none", "raises"])
async def test_stream_whose_checkpoint_is_unknown_goes_on_from_the_first_unsettled(
    link: Link, cut: Cut, fault: str
) -> None:
    await log_of_six(link)
    inbox = Inbox()

    def checkpoint() -> int | None:
        if fault == "raises":
            raise RuntimeError("the state store is away")
        return None

    await link.consume(
        "log",
        inbox,
        ConsumeOptions(arguments={"x-stream-offset": "first"}, resume_from=checkpoint),
    )
    await inbox.wait(6)
    for one in inbox.deliveries[:4]:
        one.ack()
    await asyncio.sleep(0.01)

    await cut_until(cut, lambda: len(inbox.deliveries) > 6)

    await inbox.wait(8, 20)
    assert [one.offset for one in inbox.deliveries[6:8]] == [4, 5]


async def test_message_of_a_queue_that_bears_a_streams_header_keeps_no_consumer_away(
    link: Link, any_queue: str, cut: Cut
) -> None:
    """A message of a stream that somebody published to a queue, headers and all."""
    holder = await hold(link, any_queue, 1)
    await link.publish(
        Message("", any_queue, b"strange", Properties(headers={"x-stream-offset": 7}))
    )
    await eventually(lambda: len(holder.waiting) == 2, 30)

    await cut_off(cut, holder)

    await eventually(lambda: sorted(holder.bodies) == [b"0", b"strange"], 20)


async def test_message_of_a_queue_has_no_offset(link: Link, any_queue: str) -> None:
    inbox = Inbox()
    await link.consume(any_queue, inbox)

    await link.publish(Message("", any_queue, b"", Properties(headers={"x-stream-offset": "text"})))

    assert (await inbox.wait(1))[0].offset is None
