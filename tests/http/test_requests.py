"""What a method is given: parameters, body, context."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import Request
from tests.http.serving import connect, serve

from mycelia import RpcProxy, get_current_call, http, rpc
from mycelia.entrypoints.http.requests import BlockingRequest
from mycelia.errors import ConfigError

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Paths:
    name = "paths"

    @http("GET", "/text/{value}")
    async def text(self, request: Request, value: str) -> Any:
        return {"text": value}

    @http("GET", "/number/{value:int}")
    async def number(self, request: Request, value: int) -> Any:
        return {"number": value}

    @http("GET", "/werkzeug/<int:number>/<name>")
    async def werkzeug(self, request: Request, number: int, name: str) -> Any:
        return [number, name]

    @http("GET", "/files/{rest:path}")
    def files(self, request: BlockingRequest, rest: str) -> Any:
        return {"rest": rest}

    @http("GET", "/files/{name}")
    def file(self, request: BlockingRequest, name: str) -> Any:
        return {"name": name}

    @http("GET", "/files/index")
    def index(self, request: BlockingRequest) -> Any:
        return "index"

    @http("get, post", "/both")
    async def both(self, request: Request) -> Any:
        return request.method

    @http("DELETE", "/both")
    async def delete(self, request: Request) -> Any:
        return (204, None)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/text/a%20b", {"text": "a b"}),
        ("/number/42", {"number": 42}),
        ("/werkzeug/7/x", [7, "x"]),
        ("/files/a/b/c", {"rest": "a/b/c"}),
        ("/files/one", {"name": "one"}),
    ],
)
async def test_path_parameters_arrive_typed_and_the_particular_path_wins(
    path: str, answer: Any
) -> None:
    async with serve(Paths) as served:
        response = await served.client.get(path)

    assert (response.status_code, response.json()) == (200, answer)


async def test_a_number_too_long_to_be_one_is_not_found(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(Paths) as served:
        response = await served.client.get("/number/" + "9" * 5000)

    assert response.status_code == 404
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_fixed_text_wins_over_parameters_and_several_methods_share_a_path() -> None:
    async with serve(Paths) as served:
        client = served.client
        index = await client.get("/files/index")
        got, posted = await client.get("/both"), await client.post("/both")
        deleted = await client.delete("/both")
        options = await client.options("/both")
        head = await client.head("/both")

    assert index.text == "index"
    assert (got.text, posted.text) == ("GET", "POST")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (options.status_code, options.headers["allow"]) == (
        204,
        "DELETE, GET, HEAD, OPTIONS, POST",
    )
    # The method runs as for GET; only the body is left out.
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "4", b"")


async def test_what_a_path_answers_is_told_of_all_methods_that_match_it() -> None:
    class Service:
        name = "service"

        @http("GET", "/planes/{tail}")
        async def one(self, request: Request, tail: str) -> str:
            return tail

        @http("POST", "/planes/import")
        async def take(self, request: Request) -> str:
            return "taken"

    async with serve(Service) as served:
        got, taken = (
            await served.client.get("/planes/import"),
            await served.client.post("/planes/import"),
        )
        refused = await served.client.delete("/planes/import")
        options = await served.client.options("/planes/import")

    assert (got.text, taken.text) == ("import", "taken")
    assert (refused.status_code, options.status_code) == (405, 204)
    assert refused.headers["allow"] == options.headers["allow"] == "GET, HEAD, OPTIONS, POST"


# --- the body --------------------------------------------------------------------------------------------


class Bodies:
    name = "bodies"
    calls = 0

    @http("POST", "/async/echo")
    async def async_echo(self, request: Request) -> bytes:
        Bodies.calls += 1
        return await request.body()

    @http("POST", "/def/echo")
    def def_echo(self, request: BlockingRequest) -> bytes:
        Bodies.calls += 1
        return request.body()

    @http("POST", "/async/json")
    async def async_json(self, request: Request) -> Any:
        return [await request.json(), await request.json()]

    @http("POST", "/def/json")
    def def_json(self, request: BlockingRequest) -> Any:
        return [request.json(), request.json()]

    @http("POST", "/async/count")
    async def count(self, request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @http("POST", "/def/request")
    def described(self, request: BlockingRequest) -> Any:
        return {
            "method": request.method,
            "path": request.url.path,
            "query": request.query_params["q"],
            "header": request.headers["X-Own"],
            "text": request.text(),
            "thread": threading.current_thread() is not threading.main_thread(),
        }


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_a_big_body_comes_and_goes_whole(kind: str) -> None:
    body = bytes(range(256)) * 20_000  # 5 MB, far more than any buffer on the way

    async with serve(Bodies) as served:
        response = await served.client.post(f"/{kind}/echo", content=body)

    assert response.content == body


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_json_is_read(kind: str) -> None:
    async with serve(Bodies) as served:
        response = await served.client.post(f"/{kind}/json", json={"a": [1, "ü", None]})

    assert response.json() == [{"a": [1, "ü", None]}] * 2


@pytest.mark.parametrize("kind", ["async", "def"])
@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b"\xff", b'"\xff"', b"NaN", b"[1] 2"])
async def test_a_body_that_is_no_json_is_the_clients_fault(kind: str, body: bytes) -> None:
    async with serve(Bodies) as served:
        response = await served.client.post(f"/{kind}/json", content=body)

    assert response.status_code == 400
    assert response.json()["detail"].startswith("The body is not JSON: ")


async def test_a_def_method_gets_all_of_the_request_without_await() -> None:
    async with serve(Bodies) as served:
        response = await served.client.post(
            "/def/request?q=1", content="grüß", headers={"X-Own": "yes"}
        )

    assert response.json() == {
        "method": "POST",
        "path": "/def/request",
        "query": "1",
        "header": "yes",
        "text": "grüß",
        "thread": True,
    }


@pytest.mark.parametrize("kind", ["async", "def"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_refused(kind: str, chunked: bool) -> None:
    async def chunks() -> Any:
        for _ in range(11):
            yield b"x" * 100

    content = chunks() if chunked else b"x" * 1100
    async with serve(Bodies, http_max_body_bytes=1000) as served:
        refused = await served.client.post(f"/{kind}/echo", content=content)
        fits = await served.client.post(f"/{kind}/echo", content=b"x" * 1000)

    assert refused.status_code == 413
    assert refused.json()["detail"] == "The body is larger than 1000 bytes."
    assert fits.status_code == 200


@pytest.mark.parametrize("content", [b"", b"whole"])
async def test_asking_whether_the_client_is_there_does_not_cost_the_body(content: bytes) -> None:
    class Careful:
        name = "careful"

        @http("POST", "/")
        async def careful(self, request: Request) -> Any:
            gone = await request.is_disconnected()
            return [gone, (await request.body()).decode(), await request.is_disconnected()]

    async with serve(Careful) as served:
        response = await served.client.post("/", content=content)

    assert response.json() == [False, content.decode(), False]


async def test_an_async_method_may_read_the_body_as_it_comes() -> None:
    first = asyncio.Event()
    received: list[bytes] = []

    class Upload:
        name = "upload"

        @http("POST", "/", stream_request=True)
        async def upload(self, request: Request) -> int:
            async for chunk in request.stream():
                received.append(chunk)
                first.set()
            return len(b"".join(received))

    async def chunks() -> Any:
        yield b"first"
        await first.wait()  # the method has begun before the body's end
        yield b"second"

    async with serve(Upload) as served:
        response = await served.client.post("/", content=chunks())

    assert response.json() == len("firstsecond")


@pytest.mark.parametrize("kind", ["async", "def"])
async def test_a_client_that_goes_away_in_the_middle_of_its_body_harms_nobody(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    Bodies.calls = 0
    async with serve(Bodies) as served:
        async with connect(served.address) as (_, writer):
            writer.write(
                f"POST /{kind}/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode()
            )
            await writer.drain()
        after = await served.client.post(f"/{kind}/echo", content=b"whole")

    assert after.content == b"whole"
    assert Bodies.calls == 1
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


# --- context --------------------------------------------------------------------------------------------


class Traced:
    name = "traced"
    inner: Any = RpcProxy("inner", timeout=5)

    @http("GET", "/")
    async def ask(self, request: Request) -> Any:
        call = get_current_call()
        assert call is not None
        return {"call_id": call.call_id, "inner": await self.inner.context()}


class Inner:
    name = "inner"

    @rpc
    async def context(self) -> Any:
        call = get_current_call()
        assert call is not None
        return {"stack": call.call_id_stack, **call.context}


async def test_the_trace_and_the_call_id_go_on_into_nested_calls() -> None:
    async with serve(Inner, Traced) as served:
        response = await served.client.get(
            "/",
            headers={"traceparent": TRACEPARENT, "tracestate": "v=1", "nameko.user_id": "mallory"},
        )

    answer = response.json()
    assert response.headers["x-call-id"] == answer["call_id"]
    assert answer["call_id"].startswith("traced.ask.")
    assert answer["inner"]["stack"][0] == answer["call_id"]
    assert answer["inner"]["traceparent"] == TRACEPARENT
    assert answer["inner"]["tracestate"] == "v=1"
    assert "user_id" not in answer["inner"]  # context data is not for strangers to set


@pytest.mark.parametrize("traceparent", ["", "00-xyz", TRACEPARENT.upper(), "0" * 5000])
async def test_a_traceparent_of_another_form_is_ignored(traceparent: str) -> None:
    async with serve(Inner, Traced) as served:
        response = await served.client.get("/", headers={"traceparent": traceparent})

    assert response.status_code == 200
    assert "traceparent" not in response.json()["inner"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (["tenant=acme,plan=gold"], "tenant=acme,plan=gold"),
        (["tenant=acme", "plan=gold"], "tenant=acme,plan=gold"),
        (["a=" + "x" * 9000], None),
        (["a=" + "x" * 5000, "b=" + "x" * 5000], "a=" + "x" * 5000),
        (["a=é"], None),
        ([], None),
    ],
    ids=["one", "two lines", "too long", "too long together", "no ascii", "none"],
)
async def test_baggage_goes_on_into_nested_calls_where_it_is_some(
    sent: list[str], expected: str | None
) -> None:
    async with serve(Inner, Traced) as served:
        headers = [(b"baggage", value.encode()) for value in sent]
        response = await served.client.get("/", headers=headers)

    assert response.status_code == 200
    assert response.json()["inner"].get("baggage") == expected


async def test_ten_requests_run_at_once_in_tasks_and_in_threads() -> None:
    meeting = asyncio.Barrier(10)
    thread_meeting = threading.Barrier(10)

    class Busy:
        name = "busy"

        @http("GET", "/async")
        async def on_the_loop(self, request: Request) -> int:
            return await meeting.wait()

        @http("GET", "/def")
        def in_threads(self, request: BlockingRequest) -> int:
            return thread_meeting.wait(10)

    async with serve(Busy) as served:
        for path in ("/async", "/def"):
            responses = await asyncio.gather(*(served.client.get(path) for _ in range(10)))

            assert sorted(r.json() for r in responses) == list(range(10))


# --- declarations that cannot be ------------------------------------------------------------------------


async def refused(service: type) -> str:
    with pytest.raises(ConfigError) as caught:
        async with serve(service):
            pass
    return str(caught.value)


async def test_two_methods_on_one_path_are_refused() -> None:
    class Twice:
        name = "twice"

        @http("GET,POST", "/a/{x}")
        async def one(self, request: Request, x: str) -> None: ...

        @http("POST", "/a/<y>")
        async def two(self, request: Request, y: str) -> None: ...

    assert 'both answer POST "/a/{' in await refused(Twice)


async def test_a_method_that_cannot_take_its_parameters_is_refused_at_start() -> None:
    class Wrong:
        name = "wrong"

        @http("GET", "/a/{x}")
        async def method(self, request: Request) -> None: ...

    said = await refused(Wrong)

    assert "wrong.method cannot answer" in said
    assert "method(self, request, x)" in said


async def test_a_def_method_cannot_stream_its_request() -> None:
    class Blocking:
        name = "blocking"

        @http("POST", "/a", stream_request=True)
        def method(self, request: BlockingRequest) -> None: ...

    said = await refused(Blocking)

    assert "blocking.method" in said
    assert "needs an `async def` method" in said


async def test_an_unknown_converter_is_refused_at_start() -> None:
    class Unknown:
        name = "unknown"

        @http("GET", "/a/{x:colour}")
        async def method(self, request: Request, x: str) -> None: ...

    assert "colour" in await refused(Unknown)
