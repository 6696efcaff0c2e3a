"""`context`: context data and baggage, read and set in workers of both kinds, and what comes of hostile ones."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    BlockingClient,
    Call,
    Client,
    EventDispatcher,
    Next,
    Outcome,
    RpcProxy,
    context,
    event_handler,
    get_current_call,
    rpc,
    timer,
)
from mycelia.amqp import Link, Message, Properties
from mycelia.errors import RemoteError, RuntimeStateError, UnserializableValueError
from mycelia.testing import eventually

OWN = ("call_id_stack", "deadline_ms")


def seen() -> dict[str, Any]:
    return {key: value for key, value in context.items() if key not in OWN}


class Back:
    name = "back"

    @rpc
    def threaded(self) -> dict[str, Any]:
        return seen()

    @rpc
    async def on_loop(self) -> dict[str, Any]:
        return seen()


class Front:
    name = "front"
    back = RpcProxy("back")
    emit = EventDispatcher()

    @rpc
    def threaded(self, method: str) -> Any:
        context["language"] = "de"
        context.baggage["tenant"] = "a b,c"
        return self.back[method]()

    @rpc
    async def on_loop(self, method: str) -> Any:
        context["language"] = "de"
        context.baggage["tenant"] = "a b,c"
        return await self.back[method]()


@pytest.mark.parametrize("back", ["threaded", "on_loop"])
@pytest.mark.parametrize("front", ["threaded", "on_loop"])
async def test_what_a_worker_sets_goes_along_with_its_calls(
    serve: Serve, invoke: Invoke, front: str, back: str
) -> None:
    await serve(Front, Back)

    assert await invoke("front", front, back) == {"language": "de", "baggage": "tenant=a%20b%2Cc"}


async def test_context_is_a_mapping_of_the_call_at_hand(serve: Serve, invoke: Invoke) -> None:
    class Mapping:
        name = "mapping"

        @rpc
        async def use(self) -> list[Any]:
            call = get_current_call()
            assert call is not None
            context["a"] = 1
            context.update(b=2, c=3)
            del context["b"]
            assert call.context["a"] == 1
            assert "auth_token" not in context
            context["auth_token"] = "secret"
            assert "secret" not in repr(context)
            context.baggage["x"] = "1"
            context.baggage.update({"y": "2"})
            assert context["baggage"] == "x=1,y=2"
            del context.baggage["x"]
            assert (dict(context.baggage), len(context.baggage)) == ({"y": "2"}, 1)
            context.baggage.clear()
            assert "baggage" not in context
            with pytest.raises(KeyError):
                context["nothing"]
            return sorted(seen())

    await serve(Mapping)

    assert await invoke("mapping", "use") == ["a", "auth_token", "c"]


def test_outside_a_worker_there_is_nothing_and_setting_says_so() -> None:
    assert dict(context) == {}
    assert dict(context.baggage) == {}
    assert context.get("user_id") is None
    for use in (
        lambda: context.__setitem__("user_id", 1),
        lambda: context.baggage.__setitem__("a", "1"),
        lambda: context.reply,
    ):
        with pytest.raises(RuntimeStateError, match="no call is being handled here"):
            use()
    with pytest.raises(KeyError):
        del context["user_id"]


async def test_tasks_and_threads_with_a_copied_context_know_the_call(
    serve: Serve, invoke: Invoke
) -> None:
    found: dict[str, Any] = {}

    class Spawner:
        name = "spawner"

        @rpc
        async def spawn(self) -> None:
            context["n"] = 7
            task = asyncio.create_task(self.look("task"))
            await asyncio.to_thread(self.look_now, "to_thread")
            thread = threading.Thread(target=copy_context().run, args=(self.look_now, "thread"))
            thread.start()
            thread.join()
            bare = threading.Thread(target=self.look_now, args=("bare",))
            bare.start()
            bare.join()
            await task

        def look_now(self, where: str) -> None:
            found[where] = context.get("n")

        async def look(self, where: str) -> None:
            self.look_now(where)

    await serve(Spawner)
    await invoke("spawner", "spawn")

    assert found == {"task": 7, "to_thread": 7, "thread": 7, "bare": None}


async def test_a_timers_tick_has_no_context_of_anybodys(serve: Serve) -> None:
    found: list[dict[str, Any]] = []

    class Ticking:
        name = "ticking"

        @timer(0.01)
        def tick(self) -> None:
            found.append(dict(context))
            context["left"] = "over"

    await serve(Ticking)
    await eventually(lambda: len(found) > 2)

    assert not any(found)


# --- hostile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [5, None, b"x"])
@pytest.mark.parametrize("through_call", [True, False])
async def test_a_key_that_is_no_text_is_told_where_it_is_used(
    serve: Serve, invoke: Invoke, key: Any, through_call: bool
) -> None:
    class Wrong:
        name = "wrong"
        back = RpcProxy("back")

        @rpc
        async def use(self) -> None:
            call = get_current_call()
            assert call is not None
            data: Any = call.context if through_call else context
            data[key] = 1
            await self.back.on_loop()

    await serve(Wrong, Back)

    with pytest.raises(UnserializableValueError, match="keys are text"):
        await invoke("wrong", "use")


async def test_a_value_that_no_header_carries_is_told(serve: Serve, invoke: Invoke) -> None:
    class Wrong:
        name = "wrong"
        back = RpcProxy("back")

        @rpc
        async def use(self) -> None:
            context["thing"] = object()
            await self.back.on_loop()

    await serve(Wrong, Back)

    with pytest.raises(RemoteError, match=r"nameko\.thing.*AMQP has no field type for object"):
        await invoke("wrong", "use")


async def test_more_baggage_than_there_may_be_is_refused_and_changes_nothing(
    serve: Serve, invoke: Invoke
) -> None:
    class Much:
        name = "much"

        @rpc
        async def use(self) -> dict[str, Any]:
            context.baggage["small"] = "1"
            with pytest.raises(UnserializableValueError, match="8192"):
                context.baggage["large"] = "x" * 1_000_000
            return seen()

    await serve(Much)

    assert await invoke("much", "use") == {"baggage": "small=1"}


async def test_bad_baggage_and_too_many_headers_of_others_go_no_further_and_are_logged(
    serve: Serve, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[dict[str, Any]] = []

    class Relay:
        name = "relay"
        emit = EventDispatcher()

        @event_handler("outside", "came")
        async def came(self, payload: Any) -> None:
            await self.emit("passed", payload)

    class Last:
        name = "last"

        @event_handler("relay", "passed")
        async def passed(self, payload: Any) -> None:
            found.append(seen())

    await serve(Relay, Last)
    headers = {f"k{n}": "x" for n in range(3000)} | {
        "baggage": "a=" + "x" * 50_000,
        "nameko.user_id": "ada\r\nlevel=critical",
    }
    properties = Properties("application/json", "utf-8", headers)
    await link.publish(Message("outside.events", "came", b"1", properties), timeout=5)
    await eventually(lambda: bool(found))

    (context_there,) = found
    assert (
        context_there["user_id"] == "ada\r\nlevel=critical"
    )  # data; what writes it must take care
    assert "baggage" not in context_there
    assert len(context_there) < 500
    lines = [r.getMessage() for r in caplog.records if "context_left_out" in r.getMessage()]
    assert lines
    assert lines[0].startswith("context_left_out call=relay.came left_out=")
    assert "baggage (50002 characters)" in lines[0]
    assert "of 3002 headers" in lines[0]


# --- from programs, and for one call ---------------------------------------------------------------


class Reader:
    name = "reader"
    got: list[Any]

    @rpc
    async def read(self) -> dict[str, Any]:
        return seen()

    @event_handler("program", "told")
    async def told(self, payload: Any) -> None:
        self.got.append((payload, seen()))


def passing(seen_there: list[Any]) -> Any:
    async def passing(call: Call, next: Next) -> Outcome:
        seen_there.append(dict(call.context))
        return await next(call)

    return passing


@pytest.mark.parametrize("has_middleware", [False, True])
async def test_a_client_gives_context_to_all_and_to_one(
    serve: Serve, uri: str, has_middleware: bool
) -> None:
    Reader.got = []
    await serve(Reader)
    there: list[Any] = []
    middleware = [passing(there)] if has_middleware else []

    async with Client(uri, context={"user_id": 7, "n": 1}, middleware=middleware) as client:
        assert await client.call("reader", "read") == {"user_id": 7, "n": 1}
        reader = await client.service("reader", context={"n": 2})
        assert await reader.read() == {"user_id": 7, "n": 2}
        assert await reader.read.options(context={"n": 3})() == {"user_id": 7, "n": 3}
        assert await reader.read.options(headers={"nameko.n": 4})() == {"user_id": 7, "n": 4}
        await client.publish("program", "told", 1)
        await client.publish("program", "told", 2, context={"language": "de"})
        await eventually(lambda: len(Reader.got) == 2)

    assert sorted(Reader.got) == [
        (1, {"user_id": 7, "n": 1}),
        (2, {"user_id": 7, "n": 1, "language": "de"}),
    ]
    if has_middleware:
        assert [data.get("n") for data in there] == [1, 2, 3, 4, 1, 1]


async def test_middleware_has_the_last_word_on_given_context(serve: Serve, uri: str) -> None:
    async def other(call: Call, next: Next) -> Outcome:
        call.context["n"] = 9
        del call.context["user_id"]
        return await next(call)

    Reader.got = []
    await serve(Reader)
    async with Client(uri, context={"user_id": 7, "n": 1}, middleware=[other]) as client:
        assert await client.call("reader", "read") == {"n": 9}
        await client.publish("program", "told", 1, context={"n": 2})
        await eventually(lambda: Reader.got == [(1, {"n": 9})])


async def test_in_a_service_what_is_given_goes_before_what_is_inherited(
    serve: Serve, uri: str
) -> None:
    class Relay:
        name = "relay"
        reader = RpcProxy("reader", context={"language": "fr"})

        @rpc
        def read(self) -> Any:
            return self.reader.read()

    Reader.got = []
    await serve(Relay, Reader)
    with BlockingClient(uri, context={"language": "de", "user_id": 7}) as client:
        assert await asyncio.to_thread(client.call, "relay", "read") == {
            "language": "fr",
            "user_id": 7,
        }


def test_a_key_that_is_no_text_is_told_when_the_client_is_made() -> None:
    wrong: Any = {5: 1}
    with pytest.raises(UnserializableValueError, match="key 5 is of type int"):
        Client("memory://wrong", context=wrong)
