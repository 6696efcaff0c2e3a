"""The channel of one stream: what the broker says there that is no plain confirm costs it the channel, and nobody a message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mycelia.amqp import Message, Properties
from mycelia.amqp.model import Returned
from mycelia.amqp.rabbit.confirm_window import ConfirmWindow
from mycelia.amqp.rabbit.connection import ChannelClosed
from mycelia.amqp.rabbit.frames import PublishEncoder
from mycelia.amqp.rabbit.publishing import Publishing
from mycelia.amqp.rabbit.stream_channel import (
    StreamChannel,
    has_room_for_one,
    needs_stream_channels,
)


class FakeChannel:
    def __init__(self, connection: FakeConnection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.is_closed = False
        self.on_closed: Any = None

    async def call(self, method: str, timeout: float, **arguments: Any) -> None:
        assert method == "confirm_delivery"

    def close_nowait(self) -> None:
        self.is_closed = True


class FakeConnection:
    """Keeps what was written, by channel."""

    frame_max = 131072
    channel_max = 4

    def __init__(self, version: str = "3.10.8") -> None:
        self.server_properties = {"version": version}
        self.channels: list[FakeChannel] = []
        self.sinks: dict[int, Any] = {}

    async def open_channel(self, timeout: float) -> FakeChannel:
        self.channels.append(FakeChannel(self, len(self.channels) + 1))
        return self.channels[-1]

    def set_sink(self, number: int, sink: Any) -> None:
        self.sinks[number] = sink


class FakePublisher:
    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        """Channel and body."""
        self.settled: list[tuple[bytes, bool]] = []
        self.refused: list[Publishing] = []
        self.redeclared = 0
        self.may_send = True

    def write(
        self, publishing: Publishing, encoder: PublishEncoder, window: ConfirmWindow[Publishing]
    ) -> None:
        data = encoder.encode(publishing.message, publishing.message_id)
        window.add(publishing, len(data), publishing.message_id)
        self.written.append((int.from_bytes(data[1:3], "big"), publishing.message.body))

    def settle(self, publishing: Publishing, acknowledged: bool) -> None:
        self.settled.append((publishing.message.body, acknowledged))
        if acknowledged and not publishing.done.done():
            publishing.done.set_result(None)

    def note_returned(self, returned: Returned, window: ConfirmWindow[Publishing]) -> None:
        found = window.find_returned(returned.properties.message_id)
        assert found is not None
        found.is_returned = True

    def answered(self) -> None: ...

    def stream_channel_closed(self, channel: StreamChannel, reason: ChannelClosed) -> bool:
        self.refused += channel.take_written()
        return reason.code == 404

    async def redeclare(self, connection: Any) -> None:
        self.redeclared += 1


class Setting:
    def __init__(self) -> None:
        self.publisher = FakePublisher()
        self.connection = FakeConnection()
        fake: Any = self.connection
        self.channel = StreamChannel(self.publisher, fake, lambda: ConfirmWindow(100, 10_000), 1.0)

    async def publish(self, *bodies: bytes) -> list[Publishing]:
        published = []
        for body in bodies:
            message = Message("", "stream", body, Properties(), mandatory=True)
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            published.append(Publishing(message, body.decode(), done, 10.0, 0.0))
            self.channel.publish(published[-1])
        await self.opened()
        return published

    async def opened(self) -> None:
        """The channel that is being opened is there."""
        if self.channel.opening is not None:
            await self.channel.opening

    def confirm(self, tag: int, *, multiple: bool = True, acknowledged: bool = True) -> None:
        """By the channel of now."""
        number = self.connection.channels[-1].number
        self.connection.sinks[number].on_confirm(tag, multiple, acknowledged)


@pytest.fixture
async def setting() -> Setting:
    return Setting()


async def test_confirms_in_their_turn_keep_the_channel(setting: Setting) -> None:
    published = await setting.publish(b"1", b"2", b"3")
    setting.confirm(1, multiple=False)
    setting.confirm(3)

    assert all(one.done.done() for one in published)
    assert len(setting.connection.channels) == 1
    assert setting.channel.unconfirmed == 0


async def test_confirm_out_of_turn_is_not_believed(setting: Setting) -> None:
    published = await setting.publish(b"1", b"2", b"3")
    setting.confirm(2, multiple=False)
    await setting.opened()

    assert not any(one.done.done() for one in published)
    assert setting.publisher.written[3:] == [(2, b"1"), (2, b"2"), (2, b"3")]
    assert setting.connection.channels[0].is_closed


async def test_nack_costs_the_channel_and_what_is_held_is_sent_again(setting: Setting) -> None:
    await setting.publish(b"1", b"2")
    setting.confirm(1, multiple=False, acknowledged=False)
    await setting.opened()

    assert setting.publisher.settled == [(b"1", False)]
    assert setting.publisher.written[2:] == [(2, b"2")]


async def test_returned_publishing_costs_the_channel(setting: Setting) -> None:
    await setting.publish(b"1", b"2")
    returned = Returned(312, "NO_ROUTE", "", "stream", Properties(message_id="2"), b"2")
    setting.connection.sinks[1].on_return(returned)
    setting.confirm(2, multiple=False)
    await setting.opened()

    assert setting.publisher.settled == [(b"2", True)]
    assert setting.publisher.written[2:] == [(2, b"1")]


async def test_next_one_goes_on_another_channel_when_one_was_given_up(setting: Setting) -> None:
    first, second = await setting.publish(b"1", b"2")
    first.done.set_exception(TimeoutError())
    first.done.exception()
    await setting.publish(b"3")

    assert setting.publisher.written[2:] == [(2, b"2"), (2, b"3")]
    assert not second.done.done()


async def test_one_whose_publisher_went_away_does_not_cost_the_channel(setting: Setting) -> None:
    first, _ = await setting.publish(b"1", b"2")
    first.done.cancel()
    await setting.publish(b"3")

    assert setting.publisher.written == [(1, b"1"), (1, b"2"), (1, b"3")]


async def test_late_confirm_of_a_channel_that_was_replaced_says_nothing(setting: Setting) -> None:
    await setting.publish(b"1", b"2")
    setting.confirm(2, multiple=False)
    await setting.opened()
    setting.connection.sinks[1].on_confirm(2, True, True)

    assert setting.publisher.settled == []
    assert setting.channel.unconfirmed == 2


async def test_missing_exchange_is_declared_before_the_next_channel_is_opened(
    setting: Setting,
) -> None:
    (first,) = await setting.publish(b"1")
    setting.connection.channels[0].on_closed(ChannelClosed(404, "no exchange"))
    await setting.opened()

    assert setting.publisher.refused == [first]
    assert setting.publisher.redeclared == 1
    assert len(setting.connection.channels) == 2


async def test_what_is_given_back_is_in_its_order(setting: Setting) -> None:
    published = await setting.publish(b"1", b"2")
    setting.publisher.may_send = False
    published += await setting.publish(b"3")

    assert setting.channel.take_back() == published


@pytest.mark.parametrize(
    ("version", "needs"), [("3.10.8", True), ("3.13.7", True), ("4.0.5", False), ("?", True)]
)
def test_brokers_before_4_need_it(version: str, needs: bool) -> None:
    connection: Any = FakeConnection(version)

    assert needs_stream_channels(connection) is needs


async def test_channel_that_holds_nothing_makes_room_for_another() -> None:
    busy, idle, connection = Setting(), Setting(), FakeConnection()
    await busy.publish(b"1")
    await idle.publish(b"1")
    idle.confirm(1)
    fake: Any = connection
    channels = {"busy": busy.channel}

    assert has_room_for_one(channels, fake)

    channels["idle"] = idle.channel

    assert has_room_for_one(channels, fake)
    assert list(channels) == ["busy"]
    assert idle.connection.channels[0].is_closed

    channels["busy too"] = busy.channel

    assert not has_room_for_one(channels, fake)
