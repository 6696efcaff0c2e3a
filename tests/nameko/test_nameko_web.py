"""WSGI and Nameko's websocket hub on ASGI; `nameko/wsgi.py`, `nameko/web_socket.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest

from mycelia.entrypoints.http.routes import SiteRoute
from mycelia.entrypoints.http.server import HttpServer
from mycelia.nameko.hub import Channels
from mycelia.nameko.web_socket import MAX_WAITING, TRY_AGAIN_LATER
from mycelia.nameko.web_socket import serve_websocket as serve
from mycelia.nameko.wsgi import WsgiBridge
from mycelia.testing import eventually

StartResponse = Callable[..., Any]


async def _ask(app: Any, verb: str = "GET", path: str = "/", **options: Any) -> httpx.Response:
    bridge = WsgiBridge(app, max_body_bytes=10, body_timeout=30)
    transport = httpx.ASGITransport(app=bridge)
    async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
        return await client.request(verb, path, **options)


def _environ_of(wanted: str) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("X-A", "1"), ("X-A", "2")])
        value = environ.get(wanted, "(none)")
        return [str(value).encode("latin-1")]

    return app


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REQUEST_METHOD", "GET"),
        ("PATH_INFO", "/ü"),
        ("QUERY_STRING", "a=1&b=%20"),
        ("HTTP_X_TWICE", "one, two"),
        ("CONTENT_LENGTH", "0"),
        ("wsgi.url_scheme", "http"),
    ],
)
async def test_environment_tells_of_the_request(name: str, value: str) -> None:
    headers = [("x-twice", "one"), ("x-twice", "two")]

    response = await _ask(_environ_of(name), path="/ü?a=1&b=%20", headers=headers)

    assert response.content.decode() == value
    assert response.headers.get_list("x-a") == ["1", "2"]


async def test_body_is_read_whole_and_has_a_bound() -> None:
    def echo(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read(), environ["CONTENT_LENGTH"].encode()]

    fits = await _ask(echo, "POST", content=b"0123456789")
    too_large = await _ask(echo, "POST", content=b"0123456789X")

    assert fits.content == b"012345678910"
    assert too_large.status_code == 413


class _Mounted:
    """A bridge as the only site of a server."""

    service = "mounted"

    def __init__(self, bridge: WsgiBridge) -> None:
        self.bridge = bridge
        self.stopping = asyncio.Event()

    def answers(self, scope: Any) -> bool:
        return True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.bridge(scope, receive, send)


@pytest.mark.parametrize("timeout", [30.0, 0.3])
async def test_application_is_not_called_for_a_body_that_breaks_off_or_stops(
    timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[bytes] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        called.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"taken"]

    server = HttpServer("127.0.0.1:0")
    site = _Mounted(WsgiBridge(app, max_body_bytes=10**6, body_timeout=timeout))
    server.add(SiteRoute(site))
    await server.join("mounted")
    await server.start()
    head = b"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    try:
        clients = [await asyncio.open_connection(server.host, server.port) for _ in range(100)]
        for number, (_, writer) in enumerate(clients):
            writer.write(head + b"x" * (number * 40))
            await writer.drain()
        if timeout < 1:
            async with asyncio.timeout(10):
                answers = [await reader.read() for reader, _ in clients]
            assert {answer.partition(b"\r\n")[0] for answer in answers} == {
                b"HTTP/1.1 408 Request Timeout"
            }
        for _, writer in clients:
            writer.transport.abort()
        async with httpx.AsyncClient(
            base_url=f"http://{server.address}", trust_env=False
        ) as client:
            whole = await client.put("/upload", content=b"whole")
    finally:
        server.retire(site.service)
        await server.leave("mounted")

    assert whole.content == b"taken"
    assert called == [b"whole"]
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_pieces_are_sent_and_the_iterator_closed() -> None:
    closed: list[bool] = []

    def pieces(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"a"
            yield b""
            yield b"b"
        finally:
            closed.append(True)

    response = await _ask(pieces)

    assert (response.content, closed) == (b"ab", [True])


async def test_application_may_change_its_answer_until_it_has_begun() -> None:
    def changes(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            raise ValueError("no")
        except ValueError as exc:
            start_response("500 Oh", [], (type(exc), exc, exc.__traceback__))
        return [b"x"]

    assert (await _ask(changes)).status_code == 500


async def test_error_of_the_application_is_the_servers_to_report() -> None:
    def fails(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await _ask(fails)


# --- websocket -------------------------------------------------------------------------------------


def test_members_may_leave_while_a_broadcast_goes_through_them() -> None:
    channels = Channels()
    members = channels.setdefault("delays", set())
    members.update({"a", "b", "c"})

    for member in channels.get("delays", ()):
        members.discard(member)

    assert not members


class _NamekoServer:
    """What Nameko's `WebSocketServer` offers, as far as a socket needs it."""

    def __init__(self) -> None:
        self.wsgi_server = self
        self.sockets: dict[str, Any] = {}
        self.removed: list[str] = []

    def context_data_from_headers(self, request: Any) -> dict[str, Any]:
        return {"language": request.headers.get("Accept-Language")}

    def add_websocket(self, socket: Any, context: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self.sockets["1"] = socket
        return "1", context

    def serialize_event(self, event: str, data: Any) -> str:
        return f"{event} {data}"

    def handle_websocket_request(self, socket_id: str, context: Any, frame: Any) -> str:
        return f"{frame} {context['language']}"

    def remove_socket(self, socket_id: str) -> None:
        self.removed.append(socket_id)


SCOPE = {"type": "websocket", "path": "/ws", "headers": [(b"accept-language", b"is")]}


async def test_frames_are_answered_in_order_until_the_client_goes() -> None:
    server = _NamekoServer()
    frames: list[dict[str, Any]] = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "one"},
        {"type": "websocket.receive", "bytes": b"two"},
        {"type": "websocket.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return frames.pop(0)

    async def send(message: Any) -> None:
        sent.append(message.get("text", message["type"]))

    await asyncio.wait_for(serve(server, dict(SCOPE), receive, send), 5)

    assert sent == ["websocket.accept", "connected {'socket_id': '1'}", "one is", "b'two' is"]
    assert server.removed == ["1"]


async def test_client_that_reads_too_slowly_is_disconnected() -> None:
    """A hub must not fill the memory with what nobody takes."""
    server = _NamekoServer()
    reads, sent = asyncio.Event(), []

    async def receive() -> Any:
        if not server.sockets:
            return {"type": "websocket.connect"}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "websocket.send":
            await reads.wait()

    serving = asyncio.create_task(serve(server, dict(SCOPE), receive, send))
    await eventually(lambda: len(sent) == 2, what="accepted, and the first frame on its way")
    for number in range(MAX_WAITING + 1):
        server.sockets["1"].send_nowait(str(number))
    reads.set()
    await asyncio.wait_for(serving, 5)

    assert sent[-1] == {"type": "websocket.close", "code": TRY_AGAIN_LATER}
    assert len(sent) < 10
    assert server.removed == ["1"]
