"""Server-sent events: their text, and streams over real connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from tests.http.serving import connect, serve

from mycelia import ServerSentEvent, ServerSentEvents, get_current_call, http
from mycelia.entrypoints.http.server_sent_events import encode_event
from mycelia.testing import eventually


def parse(stream: bytes) -> list[dict[str, str]]:
    """Events as a browser reads them (WHATWG HTML, 9.2.6)."""
    events, fields = [], dict[str, str]()
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n"):
        if not line:
            if "data" in fields:
                events.append(fields | {"data": fields["data"].removesuffix("\n")})
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = fields.get(name, "") + value + "\n" if name == "data" else value
    return events


# --- the text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"delay": 5}, b'data: {"delay":5}\n\n'),
        ("plain text", b"data: plain text\n\n"),
        ("two\nlines", b"data: two\ndata: lines\n\n"),
        (None, b"data: null\n\n"),
        ([1, 2], b"data: [1,2]\n\n"),
        ({"event": "late", "data": {"n": 1}}, b'event: late\ndata: {"n":1}\n\n'),
        ({"data": "x", "id": 7, "retry": 1.5}, b"id: 7\nretry: 1500\ndata: x\n\n"),
        ({"event": "no data"}, b'data: {"event":"no data"}\n\n'),
        ({"data": 1, "other": 2}, b'data: {"data":1,"other":2}\n\n'),
        (ServerSentEvent({"data": 1}, event="e"), b'event: e\ndata: {"data":1}\n\n'),
    ],
)
def test_an_item_becomes_an_event(item: Any, text: bytes) -> None:
    assert encode_event(item) == text


@given(st.text())
def test_any_text_arrives_as_it_was_but_for_its_line_ends(data: str) -> None:
    normal = data.replace("\r\n", "\n").replace("\r", "\n")

    assert parse(encode_event(data)) == [{"data": normal}]


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(json_values)
def test_any_json_arrives_as_one_event(value: Any) -> None:
    (event,) = parse(encode_event(ServerSentEvent({"value": value}, event="e", id="1")))

    assert json.loads(event["data"]) == {"value": value}
    assert (event["event"], event["id"]) == ("e", "1")


@pytest.mark.parametrize("forged", ["a\ndata: forged", "a\rb", "a\0"])
@pytest.mark.parametrize("field", ["event", "id"])
def test_a_field_cannot_forge_another(field: str, forged: str) -> None:
    with pytest.raises(ValueError, match="line breaks"):
        encode_event({"data": 1, field: forged})


def test_what_is_no_async_iterator_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="async iterator"):
        ServerSentEvents([1, 2])  # type: ignore[arg-type]


# --- streams ------------------------------------------------------------------------------------------


class Source:
    """A generator that tells of itself."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.open = 0
        self.closed = 0

    async def events(self) -> AsyncIterator[Any]:
        self.open += 1
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.open -= 1
            self.closed += 1


def streaming(source: Source, **options: Any) -> type:
    class Service:
        name = "service"

        @http("GET", "/events")
        async def events(self, request: Request) -> ServerSentEvents:
            return ServerSentEvents(source.events(), **options)

        @http("GET", "/def")
        def from_a_thread(self, request: Any) -> Any:
            return 201, {"X-Own": "1"}, ServerSentEvents(source.events(), **options)

    return Service


async def lines_of(response: httpx.Response, count: int) -> list[str]:
    lines: list[str] = []
    async for line in response.aiter_lines():
        if line:
            lines.append(line)
        if len(lines) == count:
            break
    return lines


async def test_events_arrive_as_they_happen() -> None:
    source = Source()
    async with serve(streaming(source)) as served:
        async with served.client.stream("GET", "/events") as response:
            headers = response.headers  # before the first event
            lines = response.aiter_lines()
            source.items.put_nowait({"n": 1})
            first = await anext(lines)
            source.items.put_nowait({"event": "end", "data": 2})
            source.items.put_nowait(None)
            rest = [line async for line in lines]

    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-call-id"].startswith("service.events.")
    assert first == 'data: {"n":1}'
    assert rest == ["", "event: end", "data: 2", ""]
    assert source.closed == 1


async def test_a_def_method_may_return_a_stream_with_status_and_headers() -> None:
    source = Source()
    source.items.put_nowait("x")
    source.items.put_nowait(None)
    headers = {"X-More": "2", "cache-control": "no-store"}
    async with serve(streaming(source, headers=headers)) as served:
        response = await served.client.get("/def")

    assert (response.status_code, response.text) == (201, "data: x\n\n")
    assert (response.headers["x-own"], response.headers["x-more"]) == ("1", "2")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers.get_list("cache-control") == ["no-store"]


async def test_silence_is_broken_by_heartbeats() -> None:
    source = Source()
    async with serve(streaming(source, heartbeat=0.02)) as served:
        async with served.client.stream("GET", "/events") as response:
            lines = await lines_of(response, 3)

    assert lines == [": keep-alive"] * 3


async def test_the_generator_is_closed_when_the_client_goes_away() -> None:
    source = Source()
    async with serve(streaming(source)) as served:
        async with served.client.stream("GET", "/events") as response:
            source.items.put_nowait("hello")
            await lines_of(response, 1)
            assert source.open == 1
        await eventually(lambda: source.closed == 1)


async def test_the_generator_is_closed_when_a_client_that_does_not_read_goes_away() -> None:
    """The stream then hangs in a write, with the generator in the middle of a `yield`."""
    sent, closed = 0, False

    class Flood:
        name = "flood"

        @http("GET", "/")
        async def flood(self, request: Request) -> ServerSentEvents:
            async def events() -> AsyncIterator[str]:
                nonlocal sent, closed
                try:
                    while True:
                        yield "x" * 100_000
                        sent += 1
                finally:
                    closed = True

            return ServerSentEvents(events(), heartbeat=0.01)

    async with serve(Flood) as served:
        async with connect(served.address) as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            before = -1
            while before != sent:  # until the buffers are full
                before = sent
                await asyncio.sleep(0.1)
            assert not closed
        await eventually(lambda: closed)

    assert 0 < sent < 1000


async def test_a_stop_ends_open_streams_in_good_order_and_at_once() -> None:
    source = Source()
    loop = asyncio.get_running_loop()
    async with serve(streaming(source)) as served:
        async with served.client.stream("GET", "/events") as response:
            source.items.put_nowait("hello")
            lines = response.aiter_lines()
            await anext(lines)
            begun = loop.time()
            stopping = asyncio.create_task(served.runner.stop(grace=20))
            rest = [line async for line in lines]  # ends without an error of the transport
            await stopping

    assert rest == [""]
    assert source.closed == 1
    assert loop.time() - begun < 5


async def test_an_error_of_the_generator_cuts_the_stream_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    async with serve(streaming(source)) as served:
        async with served.client.stream("GET", "/events") as response:
            source.items.put_nowait("fine")
            source.items.put_nowait(ValueError("broken"))
            lines = response.aiter_lines()
            received = [await anext(lines), await anext(lines)]
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(lines)
        after = await served.client.get("/nothing")  # the service lives on

    assert received == ["data: fine", ""]
    assert after.status_code == 404
    (record,) = [r for r in caplog.records if r.getMessage().startswith("response_failed")]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.parametrize("end", ["client", "stop"])
async def test_clean_up_that_waits_is_waited_for(end: str) -> None:
    """As in `finally: await subscription.aclose()`: it is interrupted once, not at each `await`."""
    begun, cleaned = asyncio.Event(), asyncio.Event()

    class Service:
        name = "service"

        @http("GET", "/events")
        async def events(self, request: Request) -> ServerSentEvents:
            return ServerSentEvents(self.generate())

        @http("GET", "/lines")
        async def lines(self, request: Request) -> Any:
            return self.generate()

        async def generate(self) -> AsyncIterator[Any]:
            try:
                yield "first"
                await asyncio.Event().wait()
            finally:
                begun.set()
                await asyncio.sleep(0.01)
                await asyncio.sleep(0.01)
                cleaned.set()

    for path in ("/events", "/lines")[: 1 if end == "stop" else 2]:
        begun.clear()
        cleaned.clear()
        async with serve(Service) as served:
            async with served.client.stream("GET", path) as response:
                await anext(response.aiter_raw())
                if end == "stop":
                    await served.runner.stop()
            await eventually(begun.is_set)
            await eventually(cleaned.is_set)


async def test_a_browser_that_comes_again_says_what_it_has_seen() -> None:
    class Service:
        name = "service"

        @http("GET", "/")
        async def events(self, request: Request) -> ServerSentEvents:
            async def after(seen: int) -> AsyncIterator[Any]:
                yield ServerSentEvent("next", id=seen + 1)

            return ServerSentEvents(after(int(request.headers.get("last-event-id", 0))))

    async with serve(Service) as served:
        first = parse((await served.client.get("/")).content)
        again = parse((await served.client.get("/", headers={"Last-Event-ID": "1"})).content)

    assert (first[0]["id"], again[0]["id"]) == ("1", "2")


@pytest.mark.parametrize("path", ["/events", "/lines"])
async def test_head_of_a_stream_answers_and_closes_the_iterator(path: str) -> None:
    closed = asyncio.Event()

    class Opened:
        """Open from the start, unlike a generator."""

        def __aiter__(self) -> AsyncIterator[Any]:
            raise AssertionError("asked for its items")

        async def aclose(self) -> None:
            closed.set()

    class Service:
        name = "service"

        @http("GET", "/events")
        async def events(self, request: Request) -> ServerSentEvents:
            return ServerSentEvents(Opened())

        @http("GET", "/lines")
        async def lines(self, request: Request) -> Any:
            return Opened()

    async with serve(Service) as served:
        response = await served.client.head(path)

    assert (response.status_code, response.content) == (200, b"")
    assert closed.is_set()


async def test_a_generator_keeps_its_context_from_event_to_event() -> None:
    """It is one task's from its first item to its closing, and part of the call that made it."""

    class Service:
        name = "service"

        @http("GET", "/")
        async def events(self, request: Request) -> ServerSentEvents:
            async def generate() -> AsyncIterator[Any]:
                async with asyncio.timeout(
                    10
                ):  # belongs to one task, and says so if it is left by another
                    for _ in range(2):
                        call = get_current_call()
                        assert call is not None
                        yield call.call_id

            return ServerSentEvents(generate())

    async with serve(Service) as served:
        response = await served.client.get("/")

    call_id = response.headers["x-call-id"]
    assert [event["data"] for event in parse(response.content)] == [call_id, call_id]


async def test_many_viewers_share_a_service() -> None:
    sources = [Source() for _ in range(20)]
    unused = iter(sources)

    class Service:
        name = "service"

        @http("GET", "/", concurrency=2)
        async def events(self, request: Request) -> ServerSentEvents:
            return ServerSentEvents(next(unused).events())

    async def view(client: httpx.AsyncClient) -> str:
        async with client.stream("GET", "/") as response:
            (line,) = await lines_of(response, 1)
            return line

    async with serve(Service) as served:
        views = [asyncio.create_task(view(served.client)) for _ in sources]
        # A stream holds no worker: twenty are open with a concurrency of two.
        await eventually(lambda: sum(source.open for source in sources) == 20)
        for source in sources:
            source.items.put_nowait("hello")
        assert await asyncio.gather(*views) == ["data: hello"] * 20
        await eventually(lambda: sum(source.closed for source in sources) == 20)
