"""Clients that are slow, that break off, or that mean harm: many at once, over bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from starlette.requests import Request
from tests.http.serving import connect, serve

from mycelia import http
from mycelia.entrypoints.http import connection as connections
from mycelia.entrypoints.http.requests import BlockingRequest
from mycelia.entrypoints.http.server import HttpServer
from mycelia.errors import ConfigError
from mycelia.runtime import Settings
from mycelia.testing import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

IDLE = 1200


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def many(count: int, address: str) -> AsyncIterator[list[Streams]]:
    """Bare connections, all open at the same time."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(address)) for _ in range(count)]


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes; a reset, because we were still sending, counts as an end."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := await reader.read(4096):
            found += piece
    return found


async def rest_of(streams: list[Streams]) -> list[bytes]:
    """What each client reads until the server closes."""
    async with asyncio.timeout(20):
        return await asyncio.gather(*(read_to_end(reader) for reader, _ in streams))


def told_of_slow_clients(caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """How many heads and bodies did not come, from the line about them; a slow machine may need a second one."""
    lines = [r.msg for r in caplog.records if r.getMessage().startswith("slow_clients_closed")]
    assert 1 <= len(lines) <= 2
    return (
        sum(line.fields["without_head"] for line in lines),
        sum(line.fields["without_body"] for line in lines),
    )


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]


class Site:
    name = "site"
    asked: list[str]

    @http("POST", "/async", concurrency=2)
    async def on_the_loop(self, request: Request) -> bytes:
        Site.asked.append("async")
        return await request.body()

    @http("POST", "/def", concurrency=2)
    def in_a_thread(self, request: BlockingRequest) -> bytes:
        Site.asked.append("def")
        return request.body()

    @http("POST", "/json/async")
    async def json_on_the_loop(self, request: Request) -> str:
        await request.json()
        return "read"

    @http("POST", "/json/def")
    def json_in_a_thread(self, request: BlockingRequest) -> str:
        request.json()
        return "read"

    @http("POST", "/stream", stream_request=True)
    async def stream(self, request: Request) -> str:
        Site.asked.append("begun")
        size = len(await request.body())
        Site.asked.append(f"whole {size}")
        return "read"

    @http("POST", "/unread", stream_request=True)
    async def unread(self, request: Request) -> str:
        return "not read"

    @http("GET", "/smuggled")
    async def smuggled(self, request: Request) -> str:
        Site.asked.append("smuggled")
        return "smuggled"

    @http("GET", "/client")
    async def client(self, request: Request) -> Any:
        assert request.client is not None
        return [request.client.host, request.url.scheme]


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    Site.asked = []


# --- requests that can be read in two ways ------------------------------------------------------------------


HIDDEN = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        f"Content-Length: {5 + len(HIDDEN)}\r\nTransfer-Encoding: chunked",
        f"Transfer-Encoding: chunked\r\nContent-Length: {5 + len(HIDDEN)}",
        f"tRANSFER-eNCODING: Chunked\r\ncontent-LENGTH: {5 + len(HIDDEN)}",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked\r\nContent-Length: 5",
    ],
)
async def test_request_framed_in_two_ways_is_refused_and_nothing_behind_it_read(
    headers: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = f"POST /async HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n0\r\n\r\n{HIDDEN}".encode()

    async with serve(Site) as served, many(50, served.address) as streams:
        for _, writer in streams:
            writer.write(request)
        answers = await rest_of(streams)

    assert {answer.partition(b"\r\n")[0] for answer in answers} <= {
        b"HTTP/1.1 400 Bad Request",
        b"HTTP/1.1 501 Not Implemented",
    }
    assert all(answer.count(b"HTTP/1.1") == 1 for answer in answers)
    assert all(b"connection: close" in answer.lower() for answer in answers)
    assert Site.asked == []
    assert errors_of(caplog) == []


async def test_either_framing_alone_is_served() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async with serve(Site) as served:
        counted = await served.client.post("/async", content=b"ab")
        chunked = await served.client.post("/async", content=pieces())

    assert (counted.content, chunked.content) == (b"ab", b"ab")


# --- heads that do not come ----------------------------------------------------------------------------------


async def test_idle_connections_are_closed_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(Site, http_header_timeout=1.0) as served:
        async with many(IDLE, served.address) as streams:
            answers = await rest_of(streams)
            meanwhile = await served.client.get("/client")

    assert answers == [b""] * IDLE
    assert meanwhile.status_code == 200
    assert told_of_slow_clients(caplog) == (IDLE, 0)


@pytest.mark.parametrize("first_request", [b"", b"GET /client HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_trickling_does_not_prolong_the_time_for_a_head(first_request: bytes) -> None:
    async def trickle(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(first_request)
        if first_request:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HTTP/1.1\r\n")
        reading = asyncio.ensure_future(read_to_end(reader))
        number = 0
        while not reading.done():
            number += 1
            writer.write(f"X-{number}: y\r\n".encode())
            await asyncio.wait((reading,), timeout=0.05)
        return reading.result()

    async with serve(Site, http_header_timeout=0.5) as served:
        async with many(100, served.address) as clients, asyncio.timeout(10):
            answers = await asyncio.gather(*map(trickle, clients))
        good = await served.client.get("/client")

    # All were closed. A reset, for what they still sent, may have overtaken the answer to a few.
    assert sum(b"HTTP/1.1 408 Request Timeout\r\n" in answer for answer in answers) > 50
    assert good.status_code == 200


async def test_head_in_pieces_is_served_in_time() -> None:
    async with serve(Site) as served, connect(served.address) as (reader, writer):
        for piece in (b"GET /cli", b"ent HTTP/1.1\r\nHo", b"st: x\r\n", b"\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK")


async def test_running_request_is_not_hurried_by_the_time_for_heads() -> None:
    release = asyncio.Event()

    class Slow:
        name = "slow"

        @http("GET", "/")
        async def slow(self, request: Request) -> str:
            await release.wait()
            return "done"

    async with serve(Slow, http_header_timeout=0.1) as served:
        asking = asyncio.create_task(served.client.get("/"))
        async with connect(served.address) as (reader, _):
            await reader.read()  # as long as a connection has that sends nothing
        release.set()
        response = await asking

    assert response.text == "done"


# --- bodies that do not come ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_slow_bodies_take_no_workers_and_end(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST /{kind} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf".encode()

    async with serve(Site, http_body_timeout=2.0) as served:
        async with many(300, served.address) as streams:
            for _, writer in streams:
                writer.write(head)
                await writer.drain()
            good = [await served.client.post(f"/{kind}", content=b"x") for _ in range(5)]
            asked = list(Site.asked)
            answers = await rest_of(streams)

    assert [r.content for r in good] == [b"x"] * 5
    assert asked == [kind] * 5  # of two workers
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
    assert told_of_slow_clients(caplog) == (0, 300)
    assert Site.asked == asked


async def test_large_bodies_that_stop_fill_no_memory_and_keep_no_small_ones_out() -> None:
    size = 200_000
    head = f"POST /async HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()

    async with serve(Site, http_max_body_bytes=size) as served:
        bodies = HttpServer.of(served.runner.host).bodies
        async with many(100, served.address) as streams:
            for _, writer in streams:
                writer.write(head + b"x" * (size - 1))
            await eventually(lambda: bodies.held > bodies.max_bytes * 0.9)
            refused = await served.client.post("/async", content=b"x" * size)
            small = await served.client.post("/async", content=b"x" * 1000)
            peak = bodies.held
        await eventually(lambda: bodies.held == 0)
        after = await served.client.post("/async", content=b"x" * size)

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (small.status_code, after.status_code) == (200, 200)
    assert peak < bodies.max_bytes + 100 * 2 * 65536


async def test_body_that_trickles_is_given_up_too() -> None:
    async def trickle(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(b"POST /def HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        reading = asyncio.ensure_future(read_to_end(reader))
        while not reading.done():
            writer.write(b"x")
            await asyncio.wait((reading,), timeout=0.05)
        return reading.result()

    async with serve(Site, http_body_timeout=0.5) as served:
        async with many(100, served.address) as clients, asyncio.timeout(10):
            answers = await asyncio.gather(*map(trickle, clients))

    # As above.
    assert sum(answer.startswith(b"HTTP/1.1 408") for answer in answers) > 50
    assert Site.asked == []


async def test_body_that_goes_on_may_take_longer_than_the_time_for_a_pause() -> None:
    async with serve(Site, http_body_timeout=1.0) as served:
        async with connect(served.address) as (reader, writer):
            writer.write(b"POST /def HTTP/1.1\r\nHost: x\r\nContent-Length: 10240\r\n\r\n")
            for _ in range(10):  # twice as long
                writer.write(b"x" * 1024)
                await asyncio.sleep(0.2)
            head = await reader.readuntil(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("path", ["/unread", "/stream"])
async def test_body_without_end_is_cut_off_after_its_response(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LINGER", 0.3)
    piece = b"400\r\n" + b"x" * 1024 + b"\r\n"

    async with serve(Site, http_max_body_bytes=2000) as served, asyncio.timeout(10):
        async with connect(served.address) as (reader, writer):
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head.encode())
            reading = asyncio.ensure_future(read_to_end(reader))
            while not reading.done():
                writer.write(piece)
                await asyncio.wait((reading,), timeout=0.02)

    assert reading.result().startswith(b"HTTP/1.1 413" if path == "/stream" else b"HTTP/1.1 200")


# --- bodies that break off ------------------------------------------------------------------------------


def broken_bodies(path: str) -> Iterator[bytes]:
    """The beginnings of a counted and of a chunked request, broken off at places in the body."""
    whole = b"0123456789" * 40
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    counted = head + b"Content-Length: 400\r\n\r\n" + whole
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n190\r\n" + whole + b"\r\n0\r\n\r\n"
    for request in (counted, chunked):
        begin = request.index(b"\r\n\r\n") + 4
        yield from (request[:end] for end in range(begin, len(request), 23))


@pytest.mark.parametrize("path", ["/async", "/def"])
async def test_body_that_breaks_off_runs_nothing(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Site) as served:
        async with AsyncExitStack() as stack:
            for beginning in broken_bodies(path):
                _, writer = await stack.enter_async_context(connect(served.address))
                writer.write(beginning)
                await writer.drain()
            # All are open, and are cut in one go.
        whole = await served.client.post(path, content=b"whole")

    assert whole.content == b"whole"
    assert Site.asked == [path[1:]]
    assert errors_of(caplog) == []


async def test_streamed_body_that_is_announced_as_too_large_runs_nothing() -> None:
    async with serve(Site, http_max_body_bytes=10) as served:
        response = await served.client.post("/stream", content=b"x" * 11)

    assert response.status_code == 413
    assert Site.asked == []


async def test_streamed_body_that_breaks_off_is_an_error_where_it_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(Site) as served:
        async with connect(served.address) as (_, writer):
            writer.write(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            await eventually(lambda: Site.asked == ["begun"])
        after = await served.client.post("/stream", content=b"123456789")

    assert after.status_code == 200
    assert Site.asked == ["begun", "begun", "whole 9"]
    assert errors_of(caplog) == []


# --- JSON that is too deep ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "def"])
@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000]
)
async def test_deep_json_is_the_clients_fault(
    kind: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Site) as served:
        response = await served.client.post(f"/json/{kind}", content=body)

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"] == "The body's JSON is nested too deeply."
    assert errors_of(caplog) == []


# --- proxies ------------------------------------------------------------------------------------------------


FORWARDED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("proxies", "seen"),
    [
        (None, ["127.0.0.1", "http"]),
        ([], ["127.0.0.1", "http"]),
        (["10.0.0.0/8"], ["127.0.0.1", "http"]),
        (["127.0.0.1"], ["203.0.113.7", "https"]),
        (["10.0.0.0/8", "127.0.0.0/8"], ["203.0.113.7", "https"]),
        (["*"], ["203.0.113.7", "https"]),
    ],
)
async def test_forwarded_headers_are_believed_from_named_proxies_only(
    proxies: list[str] | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own, which is not ours

    async with serve(Site, http_trusted_proxies=proxies) as served:
        response = await served.client.get("/client", headers=FORWARDED)

    assert response.json() == seen


@pytest.mark.parametrize("proxy", ["proxy.local", "10.0.0.1/8", "", "1.2.3"])
def test_proxy_that_would_match_nothing_is_refused_at_the_start(proxy: str) -> None:
    with pytest.raises(ConfigError, match="http_trusted_proxies: expected an address, a network"):
        Settings.from_config({"mycelia": {"http_trusted_proxies": [proxy]}})
