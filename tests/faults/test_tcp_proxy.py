"""The proxy itself: a fault that is not really there would make every test behind it worthless."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mycelia.testing import Fault, TcpProxy, eventually


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.port = 0
        self.received = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    async with TcpProxy("127.0.0.1", echo.port, timeout_s=0.1) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, proxy: TcpProxy) -> Client:
        return cls(*await asyncio.open_connection(proxy.host, proxy.port))

    async def say(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), 5)

    async def ends(self) -> bool:
        """Whether the connection ends, by a reset or in order."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 5) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


async def test_bytes_go_through_unchanged_both_ways(proxy: TcpProxy) -> None:
    client = await Client.connect(proxy)
    data = bytes(range(256)) * 20_000

    assert await client.say(data) == data

    client.close()


async def test_end_of_the_client_reaches_the_server_after_its_last_bytes(
    proxy: TcpProxy, echo: Echo
) -> None:
    proxy.latency_s = 0.02
    client = await Client.connect(proxy)
    client.writer.write(b"last words")
    client.close()

    await eventually(lambda: bytes(echo.received) == b"last words")
    await eventually(lambda: proxy.connection_count == 0)


async def test_refused_connections_fail_and_open_ones_are_cut(proxy: TcpProxy) -> None:
    client = await Client.connect(proxy)
    await client.say(b"before")

    await proxy.fail(Fault.REFUSED)

    assert await client.ends()
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(proxy)
    client.close()


async def test_proxy_keeps_its_port_over_a_refusal(proxy: TcpProxy) -> None:
    port = proxy.port
    await proxy.fail(Fault.REFUSED)
    await proxy.heal()
    client = await Client.connect(proxy)

    assert await client.say(b"after") == b"after"
    assert proxy.port == port
    client.close()


async def test_closed_connections_are_cut_at_once_and_counted(proxy: TcpProxy) -> None:
    await proxy.fail(Fault.CLOSED)
    for _ in range(3):
        client = await Client.connect(proxy)
        assert await client.ends()
        client.close()

    assert proxy.accepted_count == 3


async def test_drop_cuts_what_is_open_and_welcomes_new_connections(proxy: TcpProxy) -> None:
    client = await Client.connect(proxy)
    await client.say(b"before")

    proxy.drop()

    assert await client.ends()
    other = await Client.connect(proxy)
    assert await other.say(b"after") == b"after"
    client.close()
    other.close()


async def test_upstream_blackhole_swallows_what_the_client_sends(
    proxy: TcpProxy, echo: Echo
) -> None:
    client = await Client.connect(proxy)
    await client.say(b"before")

    await proxy.fail(Fault.UPSTREAM_BLACKHOLE)
    client.writer.write(b"lost")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.1)
    assert bytes(echo.received) == b"before"
    client.close()


async def test_downstream_blackhole_swallows_what_the_server_sends(
    proxy: TcpProxy, echo: Echo
) -> None:
    client = await Client.connect(proxy)
    await client.say(b"before")

    await proxy.fail(Fault.DOWNSTREAM_BLACKHOLE)
    client.writer.write(b"arrives")

    await eventually(lambda: bytes(echo.received) == b"beforearrives")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.1)
    client.close()


async def test_stall_reads_nothing_and_loses_nothing(proxy: TcpProxy, echo: Echo) -> None:
    client = await Client.connect(proxy)
    await client.say(b"before")

    await proxy.fail(Fault.UPSTREAM_STALL)
    client.writer.write(bytes(50_000_000))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.writer.drain(), 0.2)
    assert bytes(echo.received) == b"before"
    await proxy.heal()

    await asyncio.wait_for(client.reader.readexactly(50_000_000), 20)
    assert len(echo.received) == 50_000_006
    client.close()


async def test_connection_with_a_hole_stays_broken_and_a_new_one_is_whole(
    proxy: TcpProxy, echo: Echo
) -> None:
    client = await Client.connect(proxy)
    await proxy.fail(Fault.UPSTREAM_BLACKHOLE)
    client.writer.write(b"lost")
    other = await Client.connect(proxy)  # a round trip, so that "lost" has come to the proxy
    await eventually(lambda: proxy.connection_count == 2)
    other.close()

    await proxy.heal()
    client.writer.write(b"lost too")
    whole = await Client.connect(proxy)

    assert await whole.say(b"whole") == b"whole"
    assert bytes(echo.received) == b"whole"
    client.close()
    whole.close()


@pytest.mark.parametrize("fault", [Fault.UPSTREAM_TIMEOUT, Fault.DOWNSTREAM_TIMEOUT])
async def test_connection_under_a_timeout_fault_is_cut_after_it(
    proxy: TcpProxy, fault: Fault
) -> None:
    await proxy.fail(fault)
    client = await Client.connect(proxy)
    client.writer.write(b"lost")

    assert await client.ends()
    client.close()


async def test_latency_delays_each_way_and_keeps_the_order(proxy: TcpProxy) -> None:
    client = await Client.connect(proxy)
    proxy.latency_s = 0.05
    loop = asyncio.get_running_loop()

    started = loop.time()
    assert await client.say(b"one") == b"one"
    took = loop.time() - started
    client.writer.write(b"two")
    await asyncio.wait_for(client.reader.readexactly(0), 1)
    proxy.latency_s = 0.0

    assert await client.say(b"three") == b"twoth"
    assert took >= 0.09  # uvloop's timers are whole milliseconds
    client.close()


async def test_target_that_is_down_ends_the_connection() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with TcpProxy("127.0.0.1", port) as proxy:
        client = await Client.connect(proxy)

        assert await client.ends()
        client.close()


async def test_uri_leads_through_the_proxy(proxy: TcpProxy) -> None:
    assert (
        proxy.uri("amqp://guest:p%40ss@10.0.0.1:5672/v%2Fh?heartbeat=1")
        == f"amqp://guest:p%40ss@127.0.0.1:{proxy.port}/v%2Fh?heartbeat=1"
    )
