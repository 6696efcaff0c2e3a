"""Context data that travels back: with results and errors, one hop, in both kinds of worker, to code and middleware."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Call, Client, Next, Outcome, RpcProxy, context, event_handler, rpc
from mycelia.amqp import Binding, ConsumeOptions, Delivery, Link, Message, Properties, Queue
from mycelia.errors import RemoteError
from mycelia.testing import eventually
from mycelia.wire import MAX_REPLY_CONTEXT_ITEMS


class Back:
    name = "back"

    @rpc
    def threaded(self, n: int = 1) -> int:
        context.reply.update(cache="hit", n=n)
        return n

    @rpc
    async def on_loop(self, n: int = 1) -> int:
        context.reply.update(cache="hit", n=n)
        return n

    @rpc
    async def silent(self) -> int:
        return 1

    @rpc
    async def failing(self) -> None:
        context.reply["cache"] = "broken"
        raise ValueError("no")

    @rpc
    async def given(self, items: dict[str, Any]) -> str:
        context.reply.update(items)
        return "answered"

    @rpc
    async def unsound(self) -> str:
        context.reply.update({"good": 1, "bad": object(), 5: "x"})  # type: ignore[dict-item]
        return "answered"


class Front:
    name = "front"
    back = RpcProxy("back")

    @rpc
    def threaded(self, method: str) -> list[Any]:
        reply = self.back[method].call_async()
        try:
            value = reply.result()
        except RemoteError as exc:
            value = exc.value
        return [value, reply.context]

    @rpc
    async def on_loop(self, method: str) -> list[Any]:
        reply = self.back[method].call_async()
        try:
            value = await reply.result()
        except RemoteError as exc:
            value = exc.value
        return [value, reply.context]

    @rpc
    async def passes_on(self) -> None:
        context.reply["own"] = 1
        await self.back.on_loop()


FRONTS = ["threaded", "on_loop"]


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("threaded", [1, {"cache": "hit", "n": 1}]),
        ("on_loop", [1, {"cache": "hit", "n": 1}]),
        ("silent", [1, {}]),
        ("failing", ["no", {"cache": "broken"}]),
    ],
)
async def test_what_a_method_sets_comes_back_with_its_result_or_its_error(
    serve: Serve, invoke: Invoke, front: str, method: str, expected: Any
) -> None:
    await serve(Front, Back)

    assert await invoke("front", front, method) == expected


async def test_a_thousand_calls_at_once_get_each_their_own(serve: Serve, client: Client) -> None:
    await serve(Back)
    back = await client.service("back")
    replies = [back["on_loop" if n % 2 else "threaded"].call_async(n) for n in range(1000)]
    await asyncio.gather(*(reply.result() for reply in replies))

    assert [reply.context["n"] for reply in replies] == list(range(1000))


async def test_it_is_one_hop_only(serve: Serve, client: Client) -> None:
    await serve(Front, Back)
    reply = (await client.service("front")).passes_on.call_async()
    await reply.result()

    assert reply.context == {"own": 1}


async def test_an_error_has_it_where_nobody_looked_for_a_reply(
    serve: Serve, client: Client
) -> None:
    await serve(Back)
    with pytest.raises(RemoteError) as raised:
        await client.call("back", "failing")

    assert raised.value.reply_context == {"cache": "broken"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("front", FRONTS)
async def test_middleware_on_both_sides_sees_it_and_may_add(
    serve: Serve, invoke: Invoke, front: str
) -> None:
    seen: list[Any] = []

    async def inbound(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        if call.service == "back":
            call.reply_context = {**(call.reply_context or {}), "added": True}
        return outcome

    async def outbound(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        seen.append(dict(call.reply_context or {}))
        return outcome

    await serve(Front, Back, inbound=(inbound,), outbound=(outbound,))

    expected = {"cache": "hit", "n": 1, "added": True}
    assert await invoke("front", front, "on_loop") == [1, expected]
    assert seen == [expected]


async def test_the_last_request_of_a_middleware_that_repeats_counts(
    serve: Serve, invoke: Invoke
) -> None:
    calls = 0

    class Changing:
        name = "back"

        @rpc
        async def once(self) -> None:
            nonlocal calls
            calls += 1
            context.reply["first" if calls == 1 else "second"] = True

    async def twice(call: Call, next: Next) -> Outcome:
        await next(call)
        return await next(call)

    await serve(Front, Changing, outbound=(twice,))

    assert await invoke("front", "on_loop", "once") == [None, {"second": True}]


async def test_it_does_not_become_context_of_what_follows_and_of_events_goes_nowhere(
    serve: Serve, link: Link, invoke: Invoke
) -> None:
    done: list[dict[str, Any]] = []

    class Handler:
        name = "handler"
        back = RpcProxy("back")

        @event_handler("outside", "came")
        async def came(self, payload: Any) -> None:
            context.reply["x"] = 1
            await self.back.on_loop()
            done.append(dict(context))

    await serve(Handler, Back)
    properties = Properties("application/json", "utf-8", {"nameko.language": "de"})
    await link.publish(Message("outside.events", "came", b"1", properties), timeout=5)
    await eventually(lambda: done == [{"language": "de"}])


async def test_unused_it_is_not_on_the_wire(serve: Serve, link: Link) -> None:
    """Neither header nor table: the reply of a method that sets nothing is what it always was."""
    await serve(Back)
    replies: list[Delivery] = []
    parts = Queue("answers"), Binding("answers", "nameko-rpc", "here")
    await link.declare(*parts)
    await link.consume("answers", replies.extend, ConsumeOptions())
    body = b'{"args": [], "kwargs": {}}'
    for method in ("silent", "on_loop"):
        properties = Properties("application/json", "utf-8", reply_to="here", correlation_id=method)
        await link.publish(Message("nameko-rpc", f"back.{method}", body, properties), timeout=5)
    await eventually(lambda: len(replies) == 2)

    headers = {reply.properties.correlation_id: reply.properties.headers for reply in replies}
    assert headers == {
        "silent": None,
        "on_loop": {"x-mycelia-back.cache": "hit", "x-mycelia-back.n": 1},
    }


# --- too much, and what nothing carries ------------------------------------------------------------


async def test_what_cannot_travel_costs_the_caller_not_its_answer(
    serve: Serve, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await serve(Back)
    reply = (await client.service("back")).unsound.call_async()

    assert await reply.result() == "answered"
    assert reply.context == {"good": 1}
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("reply_context")]
    assert line.startswith("reply_context_left_out call=back.unsound call_id=back.unsound.")
    assert "bad (no header carries it), 5 (no text)" in line


@pytest.mark.parametrize(
    ("items", "kept", "said"),
    [
        ({"large": "x" * 1_000_000, "small": 1}, 1, r"large \(10000\d\d bytes\)"),
        ({f"k{n}": n for n in range(10_000)}, MAX_REPLY_CONTEXT_ITEMS, "9900 of 10000 items"),
        ({"a": "x" * 9000, "b": "x" * 9000}, 1, r"b \(90\d\d bytes\)"),
    ],
    ids=["a megabyte", "ten thousand", "together"],
)
async def test_too_much_of_it_is_bounded_and_told(
    serve: Serve,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    items: dict[str, Any],
    kept: int,
    said: str,
) -> None:
    await serve(Back)
    reply = (await client.service("back")).given.call_async(items)

    assert await reply.result() == "answered"
    assert len(reply.context) == kept
    assert "reply_context_left_out" in caplog.text
    assert re.search(said, caplog.text)
