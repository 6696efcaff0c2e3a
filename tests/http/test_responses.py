"""What a method returns, and what the client gets for it."""

from __future__ import annotations

import asyncio
import datetime
import decimal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, StreamingResponse
from tests.http.serving import connect, serve
from tests.tools import stable_id

from mycelia import Call, HttpCall, Next, Outcome, Requeue, RpcProxy, http, rpc
from mycelia.errors import BrokerUnavailable, Overloaded
from mycelia.testing import eventually


@dataclass
class Leg:
    origin: str
    delay: float


class Plane(msgspec.Struct):
    tail_number: str
    seats: int | None = None


class Point(NamedTuple):
    x: int
    y: int


JSON, TEXT, BYTES = "application/json", "text/plain; charset=utf-8", "application/octet-stream"

RETURNED: list[tuple[Any, int, str | None, bytes]] = [
    ({"a": [1, None]}, 200, JSON, b'{"a":[1,null]}'),
    ([], 200, JSON, b"[]"),
    (5, 200, JSON, b"5"),
    (True, 200, JSON, b"true"),
    (1.5, 200, JSON, b"1.5"),
    (None, 200, JSON, b"null"),
    ("grüß", 200, TEXT, "grüß".encode()),
    ("", 200, TEXT, b""),
    (b"\x00\xff", 200, BYTES, b"\x00\xff"),
    (Leg("JFK", 2.5), 200, JSON, b'{"origin":"JFK","delay":2.5}'),
    (Plane("N1"), 200, JSON, b'{"tail_number":"N1","seats":null}'),
    (Point(1, 2), 200, JSON, b"[1,2]"),
    (datetime.date(2013, 1, 1), 200, JSON, b'"2013-01-01"'),
    ([decimal.Decimal("1.50")], 200, JSON, b'["1.50"]'),
    ((404, {"error": "no"}), 404, JSON, b'{"error":"no"}'),
    ((201, {"Location": "/x"}, "made"), 201, TEXT, b"made"),
    ((200, {"Content-Type": "text/csv"}, "a,b"), 200, "text/csv", b"a,b"),
    ((200, [("X-A", "1"), ("X-A", "2")], None), 200, JSON, b"null"),
    ((204, None), 204, None, b""),
    ((304, {"ETag": '"1"'}, ""), 304, None, b""),
    (HTMLResponse("<p>"), 200, "text/html; charset=utf-8", b"<p>"),
    (iter(["a", "b"]), 200, BYTES, b"ab"),
]


def returning(value: Any) -> tuple[type, type]:
    """Services whose method returns `value`: as a task and in a thread."""

    class Async:
        name = "service"

        @http("GET", "/")
        async def method(self, request: Request) -> Any:
            return value

    class Thread:
        name = "service"

        @http("GET", "/")
        def method(self, request: Any) -> Any:
            return value

    return Async, Thread


@pytest.mark.parametrize(("value", "status", "content_type", "body"), RETURNED, ids=stable_id)
async def test_a_returned_value_becomes_a_response(
    value: Any, status: int, content_type: str | None, body: bytes
) -> None:
    async with serve(returning(value)[0]) as served:
        response = await served.client.get("/")

    assert (response.status_code, response.content) == (status, body)
    assert response.headers.get("content-type") == content_type
    assert response.headers["x-call-id"].startswith("service.method.")


async def test_headers_of_a_returned_tuple_are_sent() -> None:
    value = (200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Length", "2")], "ok")
    async with serve(returning(value)[1]) as served:
        response = await served.client.get("/")

    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.text == "ok"


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {"a": object()},
        (1, 2),
        (99, "x"),
        (True, "x"),
        (200,),
        (200, {}, "x", "y"),
        (200, HTMLResponse("x")),
        (204, "has a body"),
        (200, {"X-A": "a\r\nX-B: b"}, "x"),
    ],
    ids=stable_id,
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_what_is_no_response_is_the_services_error(
    value: Any, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(returning(value)[0 if is_async else 1]) as served:
        response = await served.client.get("/")

    assert response.status_code == 500
    [line] = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith(
        f"worker_failed call=service.method call_id={response.headers['x-call-id']} attempt=1 error="
    )


async def test_starlettes_own_responses_are_sent_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("a,b\n" * 50_000)
    done: list[str] = []

    class Service:
        name = "service"

        @http("GET", "/file")
        def file(self, request: Any) -> FileResponse:
            return FileResponse(file)

        @http("GET", "/moved")
        async def moved(self, request: Request) -> RedirectResponse:
            return RedirectResponse("/file")

        @http("GET", "/stream")
        async def stream(self, request: Request) -> StreamingResponse:
            task = BackgroundTask(done.append, "after")
            return StreamingResponse(
                (str(n) for n in range(3)), media_type="text/x", background=task
            )

    async with serve(Service) as served:
        client = served.client
        got = await client.get("/file")
        part = await client.get("/file", headers={"Range": "bytes=0-2"})
        moved = await client.get("/moved")
        streamed = await client.get("/stream")
        head = await client.head("/stream")
        await eventually(lambda: done == ["after"])

    assert (got.content, got.headers["content-type"]) == (
        file.read_bytes(),
        "text/csv; charset=utf-8",
    )
    assert (part.status_code, part.text) == (206, "a,b")
    assert (moved.status_code, moved.headers["location"]) == (307, "/file")
    assert (streamed.text, streamed.headers["content-type"]) == ("012", "text/x; charset=utf-8")
    assert (head.status_code, head.content) == (200, b"")


async def test_an_async_iterator_is_streamed_piece_by_piece() -> None:
    class Service:
        name = "service"

        @http("GET", "/")
        async def lines(self, request: Request) -> Any:
            async def generate() -> Any:
                yield "text\n"
                yield b"bytes\n"

            return 200, {"Content-Type": "text/plain"}, generate()

    async with serve(Service) as served:
        response = await served.client.get("/")

    assert response.text == "text\nbytes\n"
    assert response.headers["content-type"] == "text/plain"
    assert response.headers["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("flood", [False, True])
async def test_a_streams_iterator_is_closed_when_its_client_goes_away(flood: bool) -> None:
    """Whether it waits for its next item or for a client that does not read."""
    begun, closed = asyncio.Event(), asyncio.Event()

    class Service:
        name = "service"

        @http("GET", "/")
        async def lines(self, request: Request) -> Any:
            async def generate() -> Any:
                try:
                    yield b"x"
                    begun.set()
                    while flood:
                        yield b"x" * 100_000
                    await asyncio.Event().wait()
                finally:
                    closed.set()

            return generate()

    async with serve(Service) as served:
        async with connect(served.address) as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await begun.wait()
            assert not closed.is_set()
        await eventually(closed.is_set)


async def test_a_middleware_may_answer_in_the_methods_place() -> None:
    async def refuse(call: Call, next: Next) -> Outcome:
        assert isinstance(call, HttpCall)
        if call.request.headers.get("authorization") is None:
            return Outcome((401, {"WWW-Authenticate": "Bearer"}, {"error": "who are you?"}))
        return await next(call)

    async with serve(returning("secret")[0], inbound=(refuse,)) as served:
        refused = await served.client.get("/")
        let_in = await served.client.get("/", headers={"Authorization": "Bearer x"})

    assert (refused.status_code, refused.json()) == (401, {"error": "who are you?"})
    assert refused.headers["www-authenticate"] == "Bearer"
    assert let_in.text == "secret"


@pytest.mark.parametrize("kind", [0, 1], ids=["async", "thread"])
async def test_what_a_middleware_masks_is_not_sent(kind: int) -> None:
    async def mask(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(value="***")

    async with serve(returning("password")[kind], inbound=(mask,)) as served:
        response = await served.client.get("/")

    assert (response.status_code, response.text) == (200, "***")


async def test_settlement_that_a_request_cannot_have_is_an_error() -> None:
    async def decides(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=Requeue())

    async with serve(returning("x")[0], inbound=(decides,)) as served:
        response = await served.client.get("/")

    assert response.status_code == 500


# --- errors ---------------------------------------------------------------------------------------------


def raising(error: Callable[[], BaseException], **options: Any) -> tuple[type, type]:
    class Async:
        name = "service"

        @http("GET", "/", **options)
        async def method(self, request: Request) -> Any:
            raise error()

    class Thread:
        name = "service"

        @http("GET", "/", **options)
        def method(self, request: Any) -> Any:
            raise error()

    return Async, Thread


RAISED: list[tuple[Callable[[], BaseException], int, str, str | None]] = [
    (lambda: ValueError("secret"), 500, "inside the service", "ERROR"),
    (lambda: SystemExit("secret"), 500, "inside the service", "ERROR"),
    (lambda: KeyError("what is wrong"), 400, "what is wrong", "WARNING"),
    (lambda: HTTPException(418, "no coffee", {"X-Pot": "1"}), 418, "no coffee", None),
    (lambda: HTTPException(502, "upstream"), 502, "upstream", "ERROR"),
    (lambda: Overloaded("secret"), 503, "try again later", "ERROR"),
    (lambda: BrokerUnavailable("amqp://secret"), 503, "try again later", "ERROR"),
]


@pytest.mark.parametrize(("error", "status", "detail", "level"), RAISED)
@pytest.mark.parametrize("is_async", [True, False])
async def test_an_error_becomes_a_problem_document(
    error: Callable[[], BaseException],
    status: int,
    detail: str,
    level: str | None,
    is_async: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    services = raising(error, expected_exceptions=(KeyError,))
    async with serve(services[0 if is_async else 1]) as served:
        response = await served.client.get("/")
        again = await served.client.get("/")  # the service lives on

    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == problem["status"] == again.status_code == status
    assert problem["title"]
    assert detail in problem["detail"]
    assert problem["call_id"] == response.headers["x-call-id"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    logged = [r for r in caplog.records if r.getMessage().startswith("worker_")]
    assert [r.levelname for r in logged] == ([level] * 2 if level else [])
    assert ("retry-after" in response.headers) == (status == 503)


async def test_calls_that_fail_say_whose_turn_it_is() -> None:
    class Slow:
        name = "slow"

        @rpc
        async def never(self) -> None:
            await eventually(lambda: False, timeout=60)

    class Front:
        name = "front"
        slow: Any = RpcProxy("slow", timeout=0.1)
        absent: Any = RpcProxy("absent", timeout=5)

        @http("GET", "/slow")
        async def ask_slow(self, request: Request) -> Any:
            return await self.slow.never()

        @http("GET", "/absent")
        def ask_absent(self, request: Any) -> Any:
            return self.absent.anything()

    async with serve(Slow, Front) as served:
        slow, absent = await served.client.get("/slow"), await served.client.get("/absent")
        await served.runner.stop(grace=0)

    assert (slow.status_code, slow.json()["title"]) == (504, "Gateway Timeout")
    assert (absent.status_code, absent.json()["title"]) == (503, "Service Unavailable")


async def test_paths_and_methods_without_an_answer_are_told_apart() -> None:
    async with serve(returning("x")[0]) as served:
        nothing = await served.client.get("/nothing")
        options_of_nothing = await served.client.options("/nothing")
        wrong_method = await served.client.post("/")

    assert (nothing.status_code, nothing.json()["instance"]) == (404, "/nothing")
    assert options_of_nothing.status_code == 404
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    for response in (nothing, wrong_method):
        assert response.headers["content-type"] == "application/problem+json"


async def test_requests_beyond_the_queues_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mycelia.entrypoints.http import endpoint

    monkeypatch.setattr(endpoint, "MAX_WAITING", 1)
    release, begun = asyncio.Event(), asyncio.Event()

    class Narrow:
        name = "narrow"

        @http("GET", "/", concurrency=1)
        async def method(self, request: Request) -> str:
            begun.set()
            await release.wait()
            return "done"

    async with serve(Narrow) as served:
        first = asyncio.create_task(served.client.get("/"))
        await begun.wait()
        second = asyncio.create_task(served.client.get("/"))
        lane = served.runner.containers[0].lanes[0]
        await eventually(lambda: lane.waiting == 1)
        third = await served.client.get("/")
        release.set()
        answered = [(await first).text, (await second).text]

    assert (third.status_code, third.headers["retry-after"]) == (503, "1")
    assert answered == ["done", "done"]
