"""Between link and broker: TLS, bytes that are no AMQP, other event loops."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop
from tests.link.inbox import Inbox
from tests.tools import require_tool

from mycelia.amqp import LinkOptions, LinkState, Message, Properties, Queue, RabbitLink
from mycelia.errors import BrokerUnavailable
from mycelia.testing import eventually


class Relay:
    """Between link and broker, on the broker's bytes' way back."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = 0
        self.connections = 0
        self.inject: Callable[[bytes], bytes] = lambda data: data

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Relay]:
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._target_port)
            for source, sink, change in (
                (reader, ours, None),
                (theirs, writer, lambda data: self.inject(data)),
            ):
                task = asyncio.create_task(_pump(source, sink, change))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.wait_closed()


async def _pump(
    source: asyncio.StreamReader,
    sink: asyncio.StreamWriter,
    change: Callable[[bytes], bytes] | None,
) -> None:
    try:
        while data := await source.read(65536):
            sink.write(change(data) if change else data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for `localhost`, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    crt, key = directory / "localhost.crt", directory / "localhost.key"
    subprocess.run(
        [
            require_tool("openssl"),
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(crt)),
        ],
        check=True,
        capture_output=True,
    )
    return crt, key


@pytest.fixture
async def tls_relay(rabbit_uri: str, certificate: tuple[Path, Path]) -> AsyncIterator[Relay]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, certificate))
    async with Relay(urlsplit(rabbit_uri).port or 0).running(context) as relay:
        yield relay


def _through(relay: Relay, uri: str, scheme: str = "amqp", host: str = "127.0.0.1") -> str:
    return f"{scheme}://guest:guest@{host}:{relay.port}{urlsplit(uri).path}"


async def _exchange_a_message(link: RabbitLink, size: int) -> None:
    inbox = Inbox(acks=True)
    await link.declare(Queue("q"))
    await link.consume("q", inbox)
    body = b"x" * size
    await link.publish(Message("", "q", body, Properties()), timeout=15)
    await inbox.wait_for(body)


@pytest.mark.parametrize("scheme", ["amqps", "amqp"])
async def test_tls_with_a_known_authority(
    rabbit_uri: str, tls_relay: Relay, certificate: tuple[Path, Path], scheme: str
) -> None:
    uri = _through(tls_relay, rabbit_uri, scheme, "localhost")
    link = RabbitLink(
        uri, LinkOptions(ssl={"ca_certs": str(certificate[0]), "cert_reqs": ssl.CERT_REQUIRED})
    )
    await link.open(timeout=15)

    await _exchange_a_message(link, 2_000_000)
    await link.aclose()


async def test_tls_with_an_unknown_authority_says_so(rabbit_uri: str, tls_relay: Relay) -> None:
    link = RabbitLink(_through(tls_relay, rabbit_uri, "amqps", "localhost"))

    with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await link.open(timeout=1)


async def test_tls_without_verification(rabbit_uri: str, tls_relay: Relay) -> None:
    link = RabbitLink(
        _through(tls_relay, rabbit_uri, "amqps"), LinkOptions(ssl={"cert_reqs": "none"})
    )
    await link.open(timeout=15)

    await _exchange_a_message(link, 10)
    await link.aclose()


async def test_garbage_from_the_broker_costs_one_connection_and_is_named(
    rabbit_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Relay(urlsplit(rabbit_uri).port or 0).running() as relay:
        link = RabbitLink(_through(relay, rabbit_uri))
        await link.open(timeout=15)
        inbox = Inbox(acks=True)
        await link.declare(Queue("q"))
        await link.consume("q", inbox)

        def garble(data: bytes) -> bytes:
            relay.inject = lambda same: same
            return b"garbage garbage " + data

        relay.inject = garble
        await link.publish(Message("", "q", b"through it", Properties()), timeout=30)
        await inbox.wait_for(b"through it", 30)
        await eventually(lambda: link.state is LinkState.CONNECTED, 30)

        assert link.statistics().reconnects == 1
        assert any(
            "connection_lost" in one and "no frame has type 103" in one for one in caplog.messages
        )
        await link.aclose()


@pytest.mark.long
async def test_idle_link_stays_connected_by_heartbeats(rabbit_uri: str) -> None:
    link = RabbitLink(rabbit_uri, LinkOptions(heartbeat=1))
    await link.open(timeout=15)
    await link.declare(Queue("q"))
    await link.consume("q", Inbox())
    loop = asyncio.get_running_loop()
    # RabbitMQ gives up a silent peer after two heartbeats; pika looks for the broker's after one, plus 5 s
    until = loop.time() + 7.0

    await eventually(lambda: loop.time() > until, 30, interval=0.5)

    assert link.state is LinkState.CONNECTED
    assert link.statistics().reconnects == 0
    await link.aclose()


async def test_silent_broker_is_given_up_while_connecting() -> None:
    accepted = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = RabbitLink(f"amqp://127.0.0.1:{port}", LinkOptions(connect_timeout=0.2))

    with pytest.raises(BrokerUnavailable, match=r"no AMQP handshake within 0\.2 s"):
        await link.open(timeout=1)

    assert accepted.is_set()
    server.close()
    await server.wait_closed()


def test_link_works_on_uvloop(rabbit_uri: str, certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, certificate))
        plain = RabbitLink(rabbit_uri)
        await plain.open(timeout=15)
        await _exchange_a_message(plain, 500_000)
        await plain.aclose()
        async with Relay(urlsplit(rabbit_uri).port or 0).running(context) as relay:
            link = RabbitLink(
                _through(relay, rabbit_uri, "amqps", "localhost"),
                LinkOptions(ssl={"ca_certs": str(certificate[0])}),
            )
            await link.open(timeout=15)
            await _exchange_a_message(link, 500_000)
            await link.aclose()

    uvloop.run(scenario())
