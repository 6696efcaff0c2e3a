"""Start and stop of the server, and what must not happen to anybody's requests meanwhile."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from tests.http.serving import CONFIG, address_of, connect, is_refused, serve

from mycelia import DependencyProvider, Runner, http, rpc
from mycelia.entrypoints.http import server
from mycelia.entrypoints.http.server import parse_address
from mycelia.errors import ConfigError
from mycelia.testing import eventually


class One:
    name = "one"

    @http("GET", "/one")
    async def one(self, request: Request) -> str:
        return "one"


class Two:
    name = "two"

    @http("GET", "/two")
    def two(self, request: Any) -> str:
        return "two"


# --- the address ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:8000", ("0.0.0.0", 8000)),
        ("localhost:0", ("localhost", 0)),
        (":80", ("0.0.0.0", 80)),
        ("8000", ("0.0.0.0", 8000)),
        ("[::1]:8000", ("::1", 8000)),
    ],
)
def test_addresses_are_read_as_nameko_reads_them(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:x", "host:99999", "::1:80"])
def test_an_address_that_cannot_be_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r'"WEB_SERVER_ADDRESS": expected "host:port"'):
        parse_address(text)


async def test_services_of_one_process_share_one_server() -> None:
    async with serve(One, Two) as served:
        one, two = await served.client.get("/one"), await served.client.get("/two")
        addresses = {
            entrypoint.address
            for container in served.runner.containers
            for entrypoint in container.entrypoints
        }

    assert (one.text, two.text) == ("one", "two")
    assert addresses == {served.address}


async def test_a_port_in_use_stops_the_start_and_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        runner = Runner({**CONFIG, "WEB_SERVER_ADDRESS": address}, [One])

        with pytest.raises(ConfigError, match=rf"cannot listen on {address} .*choose another port"):
            await runner.start()


async def test_an_unknown_host_stops_the_start() -> None:
    runner = Runner({**CONFIG, "WEB_SERVER_ADDRESS": "no.such.host.invalid:80"}, [One])

    with pytest.raises(ConfigError, match=r"no such host 'no\.such\.host\.invalid'"):
        await runner.start()


async def test_the_address_is_free_again_after_a_stop_and_after_a_failed_start() -> None:
    class Broken(DependencyProvider):
        def start(self) -> None:
            raise ConfigError("broken on purpose")

    class Failing(Two):
        name = "failing"
        broken = Broken()

    async with serve(One) as served:
        await served.client.get("/one")
    config = {**CONFIG, "WEB_SERVER_ADDRESS": served.address}
    with pytest.raises(ConfigError, match="broken on purpose"):
        await Runner(config, [One, Failing]).start()
    async with Runner(config, [One]) as again, httpx.AsyncClient() as client:
        response = await client.get(f"http://{address_of(again)}/one")

    assert address_of(again) == served.address
    assert response.text == "one"


async def test_the_server_keeps_its_hands_off_the_process() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    async with serve(One):
        during = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    assert during == before


# --- stopping ---------------------------------------------------------------------------------------------


async def test_a_running_request_is_finished_while_new_connections_are_refused() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    class Slow:
        name = "slow"

        @http("GET", "/")
        async def slow(self, request: Request) -> str:
            begun.set()
            await release.wait()
            return "finished"

    async with serve(Slow) as served:
        request = asyncio.create_task(served.client.get("/"))
        await begun.wait()
        stopping = asyncio.create_task(served.runner.stop())
        await eventually(lambda: is_refused(served.address))
        assert not stopping.done()
        release.set()
        response = await request
        await stopping

    assert (response.status_code, response.text) == (200, "finished")


async def test_a_big_response_leaves_whole_during_a_stop() -> None:
    body = b"x" * 3_000_000

    class Big:
        name = "big"

        @http("GET", "/")
        async def big(self, request: Request) -> bytes:
            return body

    async with serve(Big) as served:
        async with served.client.stream("GET", "/") as response:
            chunks = response.aiter_raw()
            received = [await anext(chunks)]
            stopping = asyncio.create_task(served.runner.stop())
            await eventually(lambda: is_refused(served.address))
            received += [chunk async for chunk in chunks]
            await stopping

    assert b"".join(received) == body


async def test_requests_that_outlast_the_grace_period_are_told_to_come_again() -> None:
    begun = 0

    class Stuck:
        name = "stuck"

        @http("GET", "/", concurrency=1)
        async def stuck(self, request: Request) -> str:
            nonlocal begun
            begun += 1
            await asyncio.Event().wait()
            return "never"

    async with serve(Stuck) as served:
        running = asyncio.create_task(served.client.get("/"))
        await eventually(lambda: begun == 1)
        waiting = asyncio.create_task(served.client.get("/"))
        lane = served.runner.containers[0].lanes[0]
        await eventually(lambda: lane.waiting == 1)
        await served.runner.stop(grace=0.05)
        responses = [await running, await waiting]

    assert [r.status_code for r in responses] == [503, 503]
    assert [r.headers["retry-after"] for r in responses] == ["1", "1"]
    assert begun == 1


async def test_an_idle_connection_does_not_hold_up_a_stop() -> None:
    async with serve(One) as served:
        async with connect(served.address) as (reader, writer):
            writer.write(b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\none")
            async with asyncio.timeout(10):
                await served.runner.stop()
                assert await reader.read() == b""


async def test_a_client_that_never_reads_does_not_hold_up_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "DRAIN_TIMEOUT", 0.2)

    class Big:
        name = "big"

        @http("GET", "/")
        async def big(self, request: Request) -> Any:
            async def endless() -> Any:
                while True:
                    yield b"x" * 100_000

            return endless()

    async with serve(Big) as served:
        async with connect(served.address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"200 OK")
            async with asyncio.timeout(5):
                await served.runner.stop(grace=0.1)


async def test_one_service_may_stop_while_another_goes_on() -> None:
    async with serve(One, Two) as served:
        await served.runner.containers[0].stop()
        stopped, runs = await served.client.get("/one"), await served.client.get("/two")

    assert stopped.status_code == 404
    assert runs.text == "two"


# --- robustness -----------------------------------------------------------------------------------------


async def test_bytes_that_are_no_http_are_answered_and_harm_nobody() -> None:
    async with serve(One) as served:
        async with connect(served.address) as (reader, writer):
            writer.write(b"\x16\x03\x01 not http\r\n\r\n")
            answer = await reader.read()
        after = await served.client.get("/one")

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert after.text == "one"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serve(One, Two) as served:
        async with connect(served.address) as (reader, writer):
            writer.write(
                b"GET /one HTTP/1.1\r\nHost: x\r\n\r\nGET /two HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            answer = await reader.read()

    assert answer.index(b"\r\n\r\none") < answer.index(b"\r\n\r\ntwo")


async def test_each_request_is_logged_where_that_is_wanted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with serve(One, http_access_log=True) as served:
        response = await served.client.get("/one?secret=1")
        await served.client.get("/nothing")

    lines = [r.getMessage() for r in caplog.records if r.name == "mycelia.access_log"]
    assert lines[0].startswith(
        "call_ended kind=http call=one.one outcome=ok verb=GET path=/one status=200 "
    )
    assert f" call_id={response.headers['x-call-id']} client=127.0.0.1 out_bytes=3" in lines[0]
    assert "outcome=refused verb=GET path=/nothing status=404" in lines[1]
    assert not any("secret" in line for line in lines)


async def test_an_http_service_may_have_other_entrypoints() -> None:
    class Both:
        name = "both"

        @rpc
        @http("GET", "/sum/{a:int}/{b:int}")
        async def add(self, request: Any, a: int, b: int) -> int:
            return a + b

    async with serve(Both) as served:
        response = await served.client.get("/sum/2/3")

    assert response.json() == 5


def test_importing_mycelia_brings_no_web_server_along() -> None:
    code = (
        "import sys, mycelia; "
        "print([m for m in ('starlette', 'uvicorn', 'anyio', 'structlog') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout.strip() == "[]"
