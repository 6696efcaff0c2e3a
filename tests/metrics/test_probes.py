"""`/live` and `/ready` of one process: what is not ready is named; whoever asks badly is hung up on."""

from __future__ import annotations

import asyncio
import socket
import sys
import urllib.error
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.metrics.conftest import Scrape

from mycelia import DependencyProvider, RpcProxy, Runner, event_handler, rpc
from mycelia.amqp import LinkState
from mycelia.errors import ConfigError
from mycelia.providers.metrics import server as server_module
from mycelia.providers.metrics.server import Answer, ProbeServer
from mycelia.runtime import Extension, Phase
from mycelia.testing import Fault, TcpProxy, eventually, run_services


def health_at(port: int) -> dict[str, Any]:
    return {"mycelia": {"health": {"port": port, "host": "127.0.0.1"}}}


async def ask(port: int, path: str = "/ready") -> Scrape:
    return await asyncio.to_thread(Scrape.of, port, path)


class Shop:
    name = "shop"

    @rpc
    async def add(self, a: int, b: int) -> int:
        return a + b

    @event_handler("shop", "sold")
    async def on_sold(self, payload: Any) -> None:
        await asyncio.Event().wait()


async def test_ready_process_says_so(free_port: int) -> None:
    async with run_services(Shop, config=health_at(free_port)):
        ready = await ask(free_port)
        live = await ask(free_port, "/live")

    assert (ready.status, ready.content_type) == (200, "application/json")
    assert ready.json == {
        "ready": True,
        "phase": "running",
        "link": "connected",
        "services": ["shop"],
        "not_ready": [],
    }
    assert (live.status, live.json) == (200, {"live": True, "not_live": []})


async def test_probes_do_not_need_the_metrics_library(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async with run_services(Shop, config=health_at(free_port)):
        ready = await ask(free_port)
        metrics = await ask(free_port, "/metrics")

    assert ready.status == 200
    assert metrics.status == 404


async def test_missing_library_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setattr("mycelia.extras.find_spec", lambda name: None)

    with pytest.raises(ConfigError) as caught:
        Runner({"AMQP_URI": "memory://x", "mycelia": {"metrics": {}}}, [Shop])

    assert (
        'mycelia.metrics needs prometheus_client, which is not installed: pip install "mycelia[metrics]"'
        in str(caught.value)
    )


async def test_not_ready_before_the_start_has_ended_and_while_it_stops(free_port: int) -> None:
    may_start, may_stop = asyncio.Event(), asyncio.Event()

    class Slow(Extension):
        async def start(self) -> None:
            await may_start.wait()

        async def stop(self) -> None:
            await may_stop.wait()

    class SlowProvider(DependencyProvider):
        slow = Slow()

    class Lazy:
        name = "lazy"
        slow = SlowProvider()

        @rpc
        async def method(self) -> None:
            pass

    runner = Runner({"AMQP_URI": "memory://lazy", **health_at(free_port)}, [Lazy])
    starting = asyncio.ensure_future(runner.start())
    await eventually(lambda: runner.host.parts[0].ports, timeout=5)  # type: ignore[attr-defined]
    before = await ask(free_port)
    live = await ask(free_port, "/live")
    may_start.set()
    await starting
    running = await ask(free_port)
    stopping = asyncio.ensure_future(runner.stop())
    await eventually(lambda: runner.phase is Phase.STOPPING)
    after = await ask(free_port)
    may_stop.set()
    await stopping

    assert (before.status, live.status, running.status, after.status) == (503, 200, 200, 503)
    assert before.json["not_ready"] == ["start: not finished; waiting for lazy"]
    assert after.json["not_ready"] == ["process: stopping"]
    with pytest.raises(urllib.error.URLError):
        await ask(free_port)


async def test_probe_before_the_start_asks_all_that_a_service_may_have(free_port: int) -> None:
    """What an extension counts is asked for before its `setup()`, and one that cannot tell costs the probe nothing."""

    class Silent(DependencyProvider):
        def statistics(self) -> None:
            raise AttributeError("not set up")

    class Caller:
        name = "caller"
        silent = Silent()
        other = RpcProxy("other")

        @rpc
        async def method(self) -> None:
            pass

    runner = Runner({"AMQP_URI": "memory://caller", **health_at(free_port)}, [Caller])
    (part,) = runner.host.parts
    await part.start(runner)
    before = await ask(free_port)
    await part.stop()

    assert before.status == 503
    assert runner.statistics().services["caller"].extensions == {}


async def test_not_ready_during_an_outage_of_the_broker(free_port: int, rabbit_uri: str) -> None:
    parts = urlsplit(rabbit_uri)
    async with (
        TcpProxy(parts.hostname or "", parts.port or 0) as proxy,
        run_services(
            Shop, config=health_at(free_port), broker=proxy.uri(rabbit_uri), timeout=15
        ) as bed,
    ):
        assert (await ask(free_port)).status == 200
        await proxy.fail(Fault.REFUSED)
        await eventually(lambda: bed.runner.host.link.state is LinkState.RECONNECTING, timeout=15)
        away = await ask(free_port)
        live = await ask(free_port, "/live")
        await proxy.heal()

        async def is_ready() -> bool:
            return (await ask(free_port)).status == 200

        await eventually(is_ready, timeout=30)

    assert away.status == 503
    assert away.json["not_ready"][0] == "link: reconnecting"
    assert "consumer of rpc-shop: not attached (service shop)" in away.json["not_ready"]
    assert live.status == 200


async def test_paused_consumer_is_ready_and_cancelled_one_is_not(free_port: int) -> None:
    async with run_services(Shop, config=health_at(free_port)) as bed:
        (handler,) = (e for e in bed.container(Shop).entrypoints if e.method_name == "on_sold")
        await handler._consumer.pause()
        paused = await ask(free_port)
        await handler._consumer.resume()
        await handler._consumer.cancel()
        cancelled = await ask(free_port)

    assert paused.status == 200
    assert cancelled.status == 503
    assert cancelled.json["not_ready"] == [
        "consumer of evt-shop-sold--shop.on_sold: not attached (service shop)"
    ]


async def test_port_in_use_is_one_clear_line(free_port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        runner = Runner({"AMQP_URI": "memory://x", **health_at(free_port)}, [Shop])
        with pytest.raises(ConfigError) as caught:
            await runner.start()

    assert str(caught.value) == (
        f"mycelia.health.port: port {free_port} of 127.0.0.1 is in use by another program. "
        "Free it, or set mycelia.health.port to another one."
    )


async def test_both_sections_at_one_port_are_one_server(free_port: int) -> None:
    config = {
        "mycelia": {
            name: {"port": free_port, "host": "127.0.0.1"} for name in ("health", "metrics")
        }
    }
    async with run_services(Shop, config=config):
        seen = [(await ask(free_port, path)).status for path in ("/live", "/ready", "/metrics")]

    assert seen == [200, 200, 200]


# --- the server -------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[ProbeServer]:
    async def small(headers: Mapping[str, str]) -> Answer:
        return Answer(200, "text/plain", headers.get("x-said", "nothing").encode())

    async def large(headers: Mapping[str, str]) -> Answer:
        return Answer(200, "text/plain", bytes(50_000_000))

    async def broken(headers: Mapping[str, str]) -> Answer:
        raise OSError("no disk")

    handlers = {"/small": small, "/large": large, "/broken": broken}
    server = ProbeServer("127.0.0.1", 0, handlers, key="the.key")
    await server.start()
    yield server
    await server.stop()


async def exchange(server: ProbeServer, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /small HTTP/1.1\r\nX-Said: hello\r\n\r\n", b"200"),
        (b"GET /small?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"POST /small HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
        (b"GET /small\r\n\r\n", b"400"),
        (b"\x16\x03\x01 TLS \xff\r\n\r\n", b"400"),
        (b"GET /small HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_whatever_is_asked_is_answered(
    server: ProbeServer, sent: bytes, status: bytes
) -> None:
    answer = await exchange(server, sent)

    assert answer.split(b" ")[1] == status
    if b"X-Said" in sent:
        assert answer.endswith(b"\r\n\r\nhello")


async def test_head_has_no_body(server: ProbeServer) -> None:
    answer = await exchange(server, b"HEAD /small HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(
        b"Content-Length: 7\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )


async def test_whoever_says_nothing_is_hung_up_on(
    server: ProbeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_S", 0.1)

    assert await exchange(server, b"GET /sm") in (b"", b"reset")


async def test_whoever_does_not_read_is_hung_up_on(
    server: ProbeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "ANSWER_S", 0.3)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(b"GET /large HTTP/1.1\r\n\r\n")

    await eventually(lambda: server._connections)
    await eventually(lambda: not server._connections)
    writer.close()


async def test_connections_are_bounded_and_then_served_again(server: ProbeServer) -> None:
    held = [
        await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(server_module.MAX_CONNECTIONS)
    ]
    await eventually(lambda: len(server._connections) == server_module.MAX_CONNECTIONS)
    refused = await exchange(server, b"GET /small HTTP/1.1\r\n\r\n")
    for _, writer in held:
        writer.close()
    await eventually(lambda: not server._connections)

    assert refused in (b"", b"reset")
    assert server.refused == 1
    assert (await exchange(server, b"GET /small HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_stop_hangs_up(server: ProbeServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await eventually(lambda: server._connections)
    await server.stop()

    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
