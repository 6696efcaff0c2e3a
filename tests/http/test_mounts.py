"""Existing ASGI applications beside `@http` methods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import httpx
import pytest
import websockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from tests.http.serving import CONFIG, connect, is_refused, serve

from mycelia import RpcProxy, Runner, get_current_call, http, mount, rpc
from mycelia.entrypoints import HttpMount
from mycelia.entrypoints.http import routes
from mycelia.errors import ConfigError
from mycelia.testing import eventually


class Admin:
    """A Starlette application, and what has happened to it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.release = asyncio.Event()
        self.app = Starlette(
            routes=[
                Route("/", self.index),
                Route("/body", self.body, methods=["POST"]),
                Route("/where", self.where, name="where"),
                Route("/slow", self.slow),
                Route("/broken", self.broken),
                WebSocketRoute("/echo", self.echo),
            ],
            lifespan=self.lifespan,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        self.seen.append("startup")
        yield {"pool": "a pool"}
        self.seen.append("shutdown")

    async def index(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"admin of {request.state.pool}")

    async def body(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def where(self, request: Request) -> JSONResponse:
        url = str(request.url_for("where"))
        return JSONResponse([url, request.scope["root_path"], get_current_call() is None])

    async def slow(self, request: Request) -> PlainTextResponse:
        self.seen.append("slow")
        await self.release.wait()
        self.seen.append("done")
        return PlainTextResponse("done")

    async def broken(self, request: Request) -> PlainTextResponse:
        raise ValueError("broken on purpose")

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()


def service_with(path: str, app: Any, **options: Any) -> type:
    class Shop:
        name = "shop"
        admin = mount(path, app, **options)

        @http("GET", "/")
        async def page(self, request: Request) -> str:
            return "page"

        @http("GET", "/admin/health")
        async def health(self, request: Request) -> str:
            return "well"

        @http("GET", "/admin/here")
        async def here(self, request: Request) -> bool:
            return self.admin is app

        @http("GET", "/{rest:path}")
        async def rest(self, request: Request, rest: str) -> str:
            return f"rest {rest}"

    return Shop


async def test_an_application_answers_below_its_path_and_methods_everywhere_else() -> None:
    admin = Admin()
    async with serve(service_with("/admin", admin.app)) as served:
        get = served.client.get
        texts = [
            (await get(path)).text
            for path in (
                "/",
                "/admin/",
                "/admin/health",
                "/admin/here",
                "/elsewhere",
                "/administer",
            )
        ]
        missing = await get("/admin/nothing")
        during = list(admin.seen)

    assert texts == ["page", "admin of a pool", "well", "true", "rest elsewhere", "rest administer"]
    assert (missing.status_code, missing.text) == (404, "Not Found")  # its own, not ours
    assert during == ["startup"]
    assert admin.seen == ["startup", "shutdown"]


async def test_the_path_itself_leads_to_what_is_below_it() -> None:
    async with serve(service_with("/admin", Admin().app)) as served:
        response = await served.client.get("/admin?page=2")

    assert (response.status_code, response.headers["location"]) == (307, "admin/?page=2")


async def test_an_application_finds_its_own_way() -> None:
    """Its links are its own, and it is no part of any call."""
    async with serve(service_with("/admin", Admin().app)) as served:
        where = await served.client.get("/admin/where")

    assert where.json() == [f"http://{served.address}/admin/where", "/admin", True]


async def test_fastapi_is_served_with_its_documents() -> None:
    api = fastapi.FastAPI()

    @api.get("/items/{number}")
    async def item(number: int) -> dict[str, int]:
        return {"number": number}

    @api.post("/items")
    async def add(item: dict[str, Any]) -> int:
        return len(item)

    async with serve(service_with("/api", api), http_max_body_bytes=100) as served:
        found = await served.client.get("/api/items/7")
        refused = await served.client.get("/api/items/x")
        too_large = await served.client.post("/api/items", json={"text": "x" * 100})
        documents = await served.client.get("/api/docs")
        schema = await served.client.get("/api/openapi.json")

    assert found.json() == {"number": 7}
    assert (refused.status_code, too_large.status_code) == (422, 413)
    assert "/api/openapi.json" in documents.text
    assert schema.json()["servers"] == [{"url": "/api"}]


async def test_an_application_at_the_root_takes_what_no_method_answers() -> None:
    class Shop:
        name = "shop"
        app = mount("/", Admin().app)

        @http("GET", "/page")
        async def page(self, request: Request) -> str:
            return "page"

    async with serve(Shop) as served:
        texts = [(await served.client.get(path)).text for path in ("/", "/page", "/nothing")]

    assert texts == ["admin of a pool", "page", "Not Found"]


async def test_websockets_of_an_application_are_served() -> None:
    async with serve(service_with("/admin", Admin().app)) as served:
        async with websockets.connect(f"ws://{served.address}/admin/echo", proxy=None) as socket:
            await socket.send("hello")
            answer = await socket.recv()
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"ws://{served.address}/elsewhere", proxy=None)

    assert answer == "hello"


async def test_a_service_may_have_nothing_but_an_application() -> None:
    admin = Admin()

    class Only:
        name = "only"
        app = mount("/", admin.app)

    async with Runner(CONFIG, [Only]) as runner, httpx.AsyncClient(trust_env=False) as client:
        (found,) = (e for e in runner.containers[0].extensions if isinstance(e, HttpMount))
        response = await client.get(f"http://{found.address}/")

    assert response.text == "admin of a pool"
    assert admin.seen == ["startup", "shutdown"]


async def test_an_application_without_lifespan_is_served() -> None:
    async def plain(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await PlainTextResponse("plain")(scope, receive, send)

    async with serve(service_with("/admin", plain)) as served:
        response = await served.client.get("/admin/")

    assert response.text == "plain"


async def test_an_application_that_does_not_start_stops_the_start() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    with pytest.raises(ConnectionError, match="no database"):
        async with serve(service_with("/admin", Starlette(lifespan=lifespan))):
            pass


async def test_an_application_that_says_that_it_does_not_start_stops_the_start() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(ConfigError, match=r'mount\("/admin"\) of shop: .*no database'):
        async with serve(service_with("/admin", app)):
            pass


async def test_an_application_that_fails_when_it_ends_holds_up_no_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise ConnectionError("no database")

    async with serve(service_with("/admin", Starlette(lifespan=lifespan))) as served:
        assert (await served.client.get("/")).text == "page"

    assert is_refused(served.address)
    lines = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert [line.split()[0] for line in lines] == ["lifespan_failed", "extension_hook_failed"]


async def test_an_application_that_never_gets_ready_does_not_hold_up_the_end_of_the_start() -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    class Stuck:
        name = "stuck"
        app = mount("/app", stuck)

        @http("GET", "/{x:colour}")
        async def page(self, request: Request, x: str) -> None: ...

    async with asyncio.timeout(5):
        with pytest.raises(ConfigError, match="colour"):
            async with serve(Stuck):
                pass


@pytest.mark.parametrize("says", [False, True])
async def test_an_application_that_is_not_ready_in_time_stops_the_start(says: bool) -> None:
    ended = asyncio.Event()

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        try:
            if says:
                await send({"type": "lifespan.startup.failed", "message": "no database"})
            await asyncio.Event().wait()
        finally:
            ended.set()

    why = "no database" if says else "it is not ready after 50ms"
    async with asyncio.timeout(5):
        with pytest.raises(ConfigError, match=rf'mount\("/app"\) of shop: .*start: {why}'):
            async with serve(service_with("/app", stuck, start_timeout="50ms")):
                pass
        await ended.wait()


def test_a_start_timeout_that_is_no_time_is_named() -> None:
    with pytest.raises(ConfigError, match=r"start_timeout: 'soon' is no duration"):
        service_with("/app", Starlette(), start_timeout="soon")


async def test_what_another_extension_breaks_shuts_the_application_down() -> None:
    admin = Admin()

    class Broken:
        name = "broken"
        app = mount("/", admin.app)

        @http("GET", "/{x:colour}")
        async def page(self, request: Request, x: str) -> None: ...

    with pytest.raises(ConfigError, match="colour"):
        async with serve(Broken):
            pass
    assert admin.seen in ([], ["startup", "shutdown"])


# --- stopping -------------------------------------------------------------------------------------------


async def test_running_requests_of_an_application_are_finished_before_it_shuts_down() -> None:
    admin = Admin()
    async with serve(service_with("/admin", admin.app)) as served:
        request = asyncio.create_task(served.client.get("/admin/slow"))
        await eventually(lambda: "slow" in admin.seen)
        stopping = asyncio.create_task(served.runner.stop())
        await eventually(lambda: is_refused(served.address))
        admin.release.set()
        response = await request
        await stopping

    assert response.text == "done"
    assert admin.seen == ["startup", "slow", "done", "shutdown"]


async def test_requests_of_an_application_that_do_not_end_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes, "GRACE", 0.1)
    admin = Admin()
    async with serve(service_with("/admin", admin.app)) as served:
        request = asyncio.create_task(served.client.get("/admin/slow"))
        await eventually(lambda: "slow" in admin.seen)
        await served.runner.stop()
        response = await request

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert admin.seen == ["startup", "slow", "shutdown"]


@pytest.mark.parametrize("alone", [True, False])
async def test_open_websockets_are_closed_at_a_stop_with_the_reason(
    alone: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(routes, "GRACE", 0.1)

    class Other:
        name = "other"

        @http("GET", "/other")
        async def page(self, request: Request) -> str:
            return "page"

    shop = service_with("/admin", Admin().app)
    async with serve(*((shop,) if alone else (shop, Other))) as served:
        address = f"ws://{served.address}/admin/echo"
        async with websockets.connect(address, proxy=None) as socket:
            await served.runner.containers[0].stop()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await socket.recv()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_a_service_that_stops_takes_its_application_along_and_no_other() -> None:
    one, two = Admin(), Admin()

    class Two:
        name = "two"
        app = mount("/two", two.app)

        @http("GET", "/two.html")
        async def page(self, request: Request) -> str:
            return "page"

    async with serve(service_with("/admin", one.app), Two) as served:
        await served.runner.containers[0].stop()
        gone, there = await served.client.get("/admin/"), await served.client.get("/two/")
        seen = list(two.seen)

    assert (gone.status_code, there.text) == (404, "admin of a pool")
    assert one.seen == ["startup", "shutdown"]
    assert seen == ["startup"]


# --- hostile clients --------------------------------------------------------------------------------------


async def test_the_bounds_of_bodies_hold_for_applications() -> None:
    async with serve(
        service_with("/admin", Admin().app),
        http_max_body_bytes=1000,
        http_body_timeout=0.3,
    ) as served:
        fits = await served.client.post("/admin/body", content=b"x" * 1000)
        refused = await served.client.post("/admin/body", content=b"x" * 1001)
        async with connect(served.address) as (reader, writer):
            writer.write(b"POST /admin/body HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
            slow = await reader.read()

    assert (fits.text, refused.status_code) == ("1000", 413)
    assert slow.startswith(b"HTTP/1.1 408 ")


async def test_an_application_may_take_larger_bodies() -> None:
    service = service_with("/admin", Admin().app, max_body_bytes=5000)
    async with serve(service, http_max_body_bytes=1000) as served:
        fits = await served.client.post("/admin/body", content=b"x" * 5000)
        refused = await served.client.post("/admin/body", content=b"x" * 5001)

    assert (fits.text, refused.status_code) == ("5000", 413)


async def test_a_request_framed_twice_reaches_no_application() -> None:
    async with serve(service_with("/admin", Admin().app)) as served:
        async with connect(served.address) as (reader, writer):
            head = b"POST /admin/body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
            answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_a_plain_application_that_fails_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def plain(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].endswith("body"):
            await receive()  # too large: raises
        raise ValueError("broken on purpose")

    async with serve(service_with("/admin", plain), http_max_body_bytes=10) as served:
        too_large = await served.client.post("/admin/body", content=b"x" * 11)
        broken = await served.client.get("/admin/")
        after = await served.client.get("/")

    assert (too_large.status_code, broken.status_code, after.text) == (413, 500, "page")
    assert broken.headers["content-type"] == "application/problem+json"
    lines = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert [line.split()[0] for line in lines] == ["response_failed"]


async def test_an_application_answers_its_own_errors(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(service_with("/admin", Admin().app)) as served:
        broken = await served.client.get("/admin/broken")

    assert (broken.status_code, broken.text) == (500, "Internal Server Error")
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line == "response_failed verb=GET path=/admin/broken call_id=''"


# --- beside the service -----------------------------------------------------------------------------------


async def test_methods_may_use_what_the_application_holds() -> None:
    app = Starlette()
    app.state.greeting = "hello"

    class Front:
        name = "front"
        site = mount("/", app)

        @rpc
        async def greet(self) -> str:
            greeting: str = self.site.state.greeting
            return greeting

    class Asks:
        name = "asks"
        front: Any = RpcProxy("front", timeout=5)

        @http("GET", "/greeting")
        async def ask(self, request: Request) -> str:
            greeting: str = await self.front.greet()
            return greeting

    async with serve(Front, Asks) as served:
        assert (await served.client.get("/greeting")).text == "hello"


async def test_streams_of_an_application_come_piece_by_piece() -> None:
    more = asyncio.Event()

    async def numbers(request: Request) -> StreamingResponse:
        async def generate() -> AsyncIterator[str]:
            yield json.dumps(1)
            await more.wait()
            yield json.dumps(2)

        return StreamingResponse(generate())

    app = Starlette(routes=[Route("/", numbers)])
    async with serve(service_with("/admin", app)) as served:
        async with served.client.stream("GET", "/admin/") as response:
            pieces = response.aiter_text()
            first = await anext(pieces)
            more.set()
            rest = [piece async for piece in pieces]

    assert (first, rest) == ("1", ["2"])


# --- declarations that cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "app", "said"),
    [
        ("admin", PlainTextResponse("x"), 'begins with "/"'),
        ("/admin/{x}", PlainTextResponse("x"), "fixed text"),
        ("/admin", "shop.admin:app", "an ASGI application"),
    ],
)
def test_a_mount_that_cannot_be_is_refused_where_it_is_written(
    path: str, app: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        mount(path, app)


async def test_two_applications_on_one_path_are_refused() -> None:
    class Twice:
        name = "twice"
        one = mount("/a", Admin().app)
        two = mount("/a/", Admin().app)

        @http("GET", "/")
        async def page(self, request: Request) -> None: ...

    with pytest.raises(ConfigError, match=r'twice.* both answer .*"/a"'):
        async with serve(Twice):
            pass
