"""Middleware around workers and around calls that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.runtime.conftest import Invoke, Serve
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import (
    Ack,
    Call,
    CallKind,
    Client,
    DeadLetter,
    Middleware,
    Next,
    Outcome,
    Redeliver,
    Reply,
    Requeue,
    RpcProxy,
    event_handler,
    rpc,
    timer,
)
from mycelia.amqp import Link
from mycelia.call import Settlement
from mycelia.errors import RemoteError
from mycelia.testing import eventually


class Flaky(Exception):
    """Raised by the first attempts."""


class Echo:
    name = "echo"
    tries = 0

    @rpc
    def threaded(self, value: Any) -> Any:
        return value

    @rpc
    async def on_loop(self, value: Any) -> Any:
        return value

    @rpc
    def flaky_threaded(self, fails: int) -> int:
        return self.fail(fails)

    @rpc
    async def flaky_on_loop(self, fails: int) -> int:
        return self.fail(fails)

    @classmethod
    def fail(cls, fails: int) -> int:
        cls.tries += 1
        if cls.tries <= fails:
            raise Flaky(f"try {cls.tries}")
        return cls.tries


class Front:
    name = "front"
    echo = RpcProxy("echo")

    @rpc
    def threaded(self, method: str, value: Any) -> Any:
        return self.echo[method](value)

    @rpc
    def later_threaded(self, method: str, value: Any) -> Any:
        return self.echo[method].call_async(value).result()

    @rpc
    async def on_loop(self, method: str, value: Any) -> Any:
        return await self.echo[method](value)

    @rpc
    async def later_on_loop(self, method: str, value: Any) -> Any:
        return await self.echo[method].call_async(value).result()


@pytest.fixture(autouse=True)
def _no_tries() -> None:
    Echo.tries = 0


KINDS = ["threaded", "on_loop"]


def noting(log: list[str], name: str) -> Middleware:
    async def note(call: Call, next: Next) -> Outcome:
        log.append(f"{name} before {call.target}")
        outcome = await next(call)
        log.append(f"{name} after {outcome.value}")
        return outcome

    return note


async def retrying(call: Call, next: Next) -> Outcome:
    outcome = await next(call)
    for _ in range(2):
        if outcome.error is None:
            break
        outcome = await next(call)
    return outcome


async def raising(call: Call, next: Next) -> Outcome:
    raise Flaky("in the middle")


async def answering(call: Call, next: Next) -> Outcome:
    return Outcome("short-circuited")


async def doubling(call: Call, next: Next) -> Outcome:
    call.args = [call.args[0] * 2]
    return await next(call)


@pytest.mark.parametrize("kind", KINDS)
async def test_first_inbound_middleware_is_the_outermost(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    log: list[str] = []
    await serve(Echo, inbound=(noting(log, "outer"), noting(log, "inner")))

    await invoke("echo", kind, 1)

    target = f"echo.{kind}"
    before = [f"outer before {target}", f"inner before {target}"]
    assert log == [*before, "inner after 1", "outer after 1"]


@pytest.mark.parametrize("kind", KINDS)
async def test_inbound_middleware_may_answer_in_the_method_s_place(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    await serve(Echo, inbound=(answering,))

    assert await invoke("echo", kind, 1) == "short-circuited"


@pytest.mark.parametrize("kind", KINDS)
async def test_inbound_middleware_may_change_the_call(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    await serve(Echo, inbound=(doubling,))

    assert await invoke("echo", kind, 21) == 42


@pytest.mark.parametrize("kind", KINDS)
async def test_raising_inbound_middleware_is_the_call_s_error(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    runner = await serve(Echo, inbound=(raising,), config={"max_workers": 1})

    for _ in range(3):
        with pytest.raises(RemoteError, match="Flaky in the middle"):
            await invoke("echo", kind, 1, timeout=15)
    assert runner.containers[0].started


async def forgetting(call: Call, next: Next) -> Any:
    await next(call)


async def exiting(call: Call, next: Next) -> Outcome:
    raise SystemExit(3)


class Failing:
    name = "failing"

    @event_handler("source", "threaded")
    def threaded(self, payload: int) -> None: ...

    @event_handler("source", "on_loop")
    async def on_loop(self, payload: int) -> None: ...


WRONG = [(raising, "Flaky"), (forgetting, "RuntimeStateError"), (exiting, "SystemExit")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("wrong", "error"), WRONG)
async def test_outer_middleware_sees_an_outcome_whatever_an_inner_one_does(
    serve: Serve, client: Client, link: Link, kind: str, wrong: Middleware, error: str
) -> None:
    """Far more calls than slots: whatever leaks one ends this. Requests, refused ones, and events."""
    seen: list[str] = []

    async def metrics(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        seen.append(type(outcome.error).__name__)
        return outcome

    await serve(Echo, Failing, inbound=(metrics, wrong), config={"max_workers": 2})

    methods = [kind, "unknown"] * 5
    asked = (client.call("echo", method, 1, timeout=5) for method in methods)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    await asyncio.gather(*(client.publish("source", kind, n) for n in range(10)))
    dead = await read_dead_letters(link, f"evt-source-{kind}--failing.{kind}", 10)

    assert [getattr(answer, "exc_type", answer) for answer in answers] == [error] * 10
    assert {(one.properties.headers or {})["x-mycelia-error-type"] for one in dead} == {error}
    assert seen == [error] * 20


@pytest.mark.parametrize("kind", [*KINDS, "later_threaded", "later_on_loop"])
@pytest.mark.parametrize(("wrong", "error"), WRONG)
async def test_outer_outbound_middleware_sees_an_outcome_whatever_an_inner_one_does(
    serve: Serve, invoke: Invoke, kind: str, wrong: Middleware, error: str
) -> None:
    seen: list[str] = []

    async def metrics(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        seen.append(type(outcome.error).__name__)
        return outcome

    await serve(Front, Echo, outbound=(metrics, wrong))

    with pytest.raises(RemoteError, match=error):
        await invoke("front", kind, "on_loop", 1)
    assert seen == [error]


@pytest.mark.parametrize("kind", KINDS)
async def test_inbound_middleware_may_go_on_several_times(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    await serve(Echo, inbound=(retrying,))

    assert await invoke("echo", f"flaky_{kind}", 2) == 3
    Echo.tries = 0
    with pytest.raises(RemoteError, match="Flaky try 3"):
        await invoke("echo", f"flaky_{kind}", 9)


@pytest.mark.parametrize("kind", KINDS)
async def test_outbound_middleware_sees_the_call_and_its_result(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    log: list[str] = []
    await serve(Front, Echo, outbound=(noting(log, "outer"), noting(log, "inner")))

    assert await invoke("front", kind, "on_loop", 1) == 1

    before = ["outer before echo.on_loop", "inner before echo.on_loop"]
    assert log == [*before, "inner after 1", "outer after 1"]


@pytest.mark.parametrize("kind", KINDS)
async def test_outbound_middleware_may_answer_change_raise_and_retry(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    chosen: list[Middleware] = [answering]

    async def switch(call: Call, next: Next) -> Outcome:
        return await chosen[0](call, next)

    await serve(Front, Echo, outbound=(switch,))

    assert await invoke("front", kind, "on_loop", 1) == "short-circuited"
    chosen[:] = [doubling]
    assert await invoke("front", kind, "on_loop", 4) == 8
    chosen[:] = [raising]
    with pytest.raises(RemoteError, match="Flaky in the middle"):
        await invoke("front", kind, "on_loop", 1)
    chosen[:] = [retrying]
    assert await invoke("front", kind, "flaky_on_loop", 2) == 3


@pytest.mark.parametrize("kind", KINDS)
async def test_outbound_middleware_s_context_travels(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    from mycelia import get_current_call

    class Tells:
        name = "echo"

        @rpc
        async def on_loop(self, value: Any) -> Any:
            call = get_current_call()
            assert call is not None
            return call.context.get("tenant")

    async def tags(call: Call, next: Next) -> Outcome:
        call.context["tenant"] = "blue"
        return await next(call)

    await serve(Front, Tells, outbound=(tags,))

    assert await invoke("front", kind, "on_loop", 1) == "blue"


@pytest.mark.parametrize("settlement", [Ack(), Requeue(), DeadLetter()])
async def test_inbound_middleware_may_decide_what_becomes_of_an_event(
    serve: Serve, client: Client, link: Link, settlement: Ack | Requeue | DeadLetter
) -> None:
    handled: list[tuple[str, int]] = []
    asked = 0

    class Handler:
        name = "handler"

        @event_handler("source", "happened", concurrency=1)
        async def happened(self, payload: str) -> None:
            handled.append((payload, asked))

    async def decides(call: Call, next: Next) -> Outcome:
        nonlocal asked
        assert call.kind is CallKind.EVENT
        asked += 1
        if asked == 1:
            return Outcome(error=Flaky("not now"), settlement=settlement)
        return await next(call)

    await serve(Handler, inbound=(decides,))
    queue = "evt-source-happened--handler.happened"
    await client.publish("source", "happened", "first")
    await eventually(lambda: asked >= 1)
    await client.publish("source", "happened", "second")
    await eventually(lambda: any(payload == "second" for payload, _ in handled))

    if settlement == Requeue():
        await eventually(lambda: sorted(p for p, _ in handled) == ["first", "second"])
    else:
        assert [payload for payload, _ in handled] == ["second"]
    if settlement == DeadLetter():
        (letter,) = await read_dead_letters(link, queue, 1)
        assert letter.body == b'"first"'
        headers = letter.properties.headers or {}
        assert headers["x-mycelia-reason"] == "rejected"
        assert headers["x-mycelia-error"] == "not now"


# --- what a middleware does to an outcome is what is sent ------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_masked_result_is_what_the_caller_gets(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    async def mask(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        return outcome.replace(value={**outcome.value, "password": "***"})

    await serve(Echo, inbound=(mask,))

    assert await invoke("echo", kind, {"password": "hunter2", "user": "ada"}) == {
        "password": "***",
        "user": "ada",
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_middleware_that_renames_the_target_and_fails_still_has_a_reply(
    serve: Serve, invoke: Invoke, kind: str
) -> None:
    async def renames(call: Call, next: Next) -> Outcome:
        call.target = msgspec.structs.replace(call.target, method="elsewhere")
        raise Flaky("after renaming")

    await serve(Echo, inbound=(renames,))

    for _ in range(300):  # more often than there are slots
        with pytest.raises(RemoteError, match="Flaky after renaming"):
            await invoke("echo", kind, 1)


@pytest.mark.parametrize("settlement", [Ack(), DeadLetter()])
async def test_settlement_that_an_rpc_cannot_have_is_an_error_reply(
    serve: Serve, invoke: Invoke, settlement: Settlement
) -> None:
    async def decides(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=settlement)

    await serve(Echo, inbound=(decides,))

    with pytest.raises(RemoteError, match=r"RuntimeStateError .* asked for"):
        await invoke("echo", "on_loop", 1)


async def test_settlement_that_an_event_cannot_have_is_a_dead_letter(
    serve: Serve, client: Client, link: Link
) -> None:
    class Handler:
        name = "handler"

        @event_handler("source", "happened")
        async def happened(self, payload: str) -> None: ...

    async def decides(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=Reply())

    await serve(Handler, inbound=(decides,))
    await client.publish("source", "happened", 1)

    (letter,) = await read_dead_letters(link, "evt-source-happened--handler.happened", 1)
    assert (letter.properties.headers or {})["x-mycelia-error-type"] == "RuntimeStateError"


async def test_settlement_that_a_timer_cannot_have_is_a_log_line_and_the_timer_goes_on(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Ticking:
        name = "ticking"
        ticks = 0

        @timer(0.01)
        async def tick(self) -> None:
            type(self).ticks += 1

    async def decides(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=DeadLetter())

    await serve(Ticking, inbound=(decides,))

    await eventually(lambda: Ticking.ticks >= 3)
    assert "RuntimeStateError" in caplog.text


# --- no settlement makes a hot loop -----------------------------------------------------------------


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("settlement", [Requeue(), Redeliver(0.0)])
async def test_message_that_is_always_tried_again_ends_as_a_dead_letter(
    serve: Serve, client: Client, link: Link, settlement: Settlement, queue_type: str
) -> None:
    runs: list[int] = []

    class Handler:
        name = "handler"

        @event_handler("source", "happened", queue_type=queue_type)
        async def happened(self, payload: int) -> None:
            runs.append(payload)

    async def again(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=settlement)

    await serve(Handler, inbound=(again,), config={"mycelia": {"requeue_attempts": 4}})
    await client.publish("source", "happened", 1)

    (letter,) = await read_dead_letters(link, "evt-source-happened--handler.happened", 1)
    assert len(runs) == 4
    assert (letter.properties.headers or {})["x-mycelia-reason"] == "too_many_attempts"


@pytest.mark.parametrize("settlement", [Requeue(), Redeliver(0.0)])
async def test_request_that_is_always_tried_again_is_answered_at_the_limit(
    serve: Serve, invoke: Invoke, settlement: Settlement
) -> None:
    runs: list[int] = []

    async def again(call: Call, next: Next) -> Outcome:
        runs.append(call.attempt)
        return (await next(call)).replace(settlement=settlement)

    await serve(Echo, inbound=(again,), config={"mycelia": {"requeue_attempts": 4}})

    with pytest.raises(RemoteError, match="TooManyDeliveries"):
        await invoke("echo", "on_loop", 1)
    assert runs == [1, 2, 3, 4]


async def test_request_is_not_tried_again_beyond_its_deadline(serve: Serve, invoke: Invoke) -> None:
    async def again(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=Redeliver(60.0))

    await serve(Echo, inbound=(again,))

    with pytest.raises(RemoteError, match="DeadlinePassed"):
        await invoke("echo", "on_loop", 1, timeout=15)


async def test_requests_that_are_tried_again_are_answered_in_the_end(
    serve: Serve, invoke: Invoke
) -> None:
    async def again(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        return outcome if call.attempt > 1 else outcome.replace(settlement=Redeliver(0.0))

    await serve(Echo, inbound=(again,))

    answers = await asyncio.gather(*(invoke("echo", "on_loop", n) for n in range(200)))
    assert answers == list(range(200))
