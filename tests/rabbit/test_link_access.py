"""Opening a link: what is refused is refused at once and in words; what is not there yet is waited for."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import pytest

from mycelia.amqp import LinkOptions, LinkState, Message, Properties, Queue, RabbitLink
from mycelia.broker.node import PrivateNode
from mycelia.errors import AccessRefused, BrokerUnavailable
from mycelia.testing import eventually


async def test_wrong_password_is_refused_at_once_and_not_shown(
    rabbit_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    link = RabbitLink(rabbit_uri.replace("guest:guest@", "guest:wr0ng-secret@"))

    with pytest.raises(AccessRefused) as caught:
        await link.open()

    assert link.state is LinkState.CLOSED
    assert f"127.0.0.1:{urlsplit(rabbit_uri).port}" in str(caught.value)
    assert 'user "guest"' in str(caught.value)
    assert "wr0ng-secret" not in str(caught.value) + caplog.text + repr(link)


async def test_unknown_virtual_host_is_refused_at_once(rabbit_uri: str) -> None:
    link = RabbitLink(rabbit_uri + "-not-there")

    with pytest.raises(AccessRefused, match="virtual host") as caught:
        await link.open()

    assert "-not-there" in str(caught.value)


async def test_line_about_a_connection_names_the_broker_and_its_version(
    rabbit_uri: str, rabbit_node: PrivateNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mycelia.amqp")
    link = RabbitLink(rabbit_uri)

    await link.open(timeout=15)
    await link.aclose()

    (line,) = [one for one in caplog.messages if one.startswith("connected ")]
    assert f"broker=127.0.0.1:{urlsplit(rabbit_uri).port}" in line
    assert f"version={rabbit_node.status().version}" in line


async def test_link_that_never_consumes_has_one_connection(
    rabbit_uri: str, rabbit_vhost: str, rabbit_node: PrivateNode
) -> None:
    link = RabbitLink(rabbit_uri, LinkOptions(name="only-publishes"))
    await link.open(timeout=15)
    await link.declare(Queue("q"))
    await link.publish(Message("", "q", b"", Properties()))

    def names() -> list[str]:
        return [
            one["client_properties"]["connection_name"]
            for one in rabbit_node.api.connections(rabbit_vhost)
        ]

    await eventually(lambda: asyncio.to_thread(names), 30, what="the connection is listed")
    assert await asyncio.to_thread(names) == ["only-publishes:publish"]
    await link.aclose()


async def test_second_broker_serves_when_the_first_is_not_there(rabbit_uri: str) -> None:
    link = RabbitLink(f"amqp://guest:guest@127.0.0.1:1/x;{rabbit_uri}")

    await link.open(timeout=15)

    assert link.state is LinkState.CONNECTED
    await link.aclose()


async def test_broker_that_is_not_there_is_named_with_the_reason() -> None:
    link = RabbitLink("amqp://me:secret@127.0.0.1:1/v")

    with pytest.raises(BrokerUnavailable, match="refused") as caught:
        await link.open(timeout=0.3)

    assert "amqp://me:***@127.0.0.1:1/v" in str(caught.value)


async def test_port_of_another_protocol_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = RabbitLink(f"amqp://127.0.0.1:{port}")

    with pytest.raises(BrokerUnavailable, match="Is this the port of an AMQP"):
        await link.open(timeout=0.5)

    server.close()
    await server.wait_closed()


async def test_use_before_open_is_refused(rabbit_uri: str) -> None:
    link = RabbitLink(rabbit_uri)

    with pytest.raises(BrokerUnavailable):
        link.publish_nowait(Message("", "q", b"", Properties()))
    with pytest.raises(BrokerUnavailable, match="Await open"):
        await link.declare(Queue("q"))


async def test_one_line_in_the_log_for_each_connection(
    rabbit_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    link = RabbitLink(rabbit_uri)
    await link.open(timeout=15)
    await link.aclose()

    assert [record.name for record in caplog.records] == ["mycelia.amqp"]
    assert caplog.messages[0].startswith("connected link=mycelia role=publish broker=")
