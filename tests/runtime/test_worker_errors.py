"""No error of a method, of whatever class, takes the service down, leaks a slot or leaves the caller waiting."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Binding, Queue, rpc
from mycelia.amqp import ConsumeOptions, Delivery, Link, Message, Properties
from mycelia.errors import RemoteError, UnserializableValueError
from mycelia.testing import eventually


class NotAnException(BaseException):
    """Derived from BaseException on purpose, as eventlet.Timeout is."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Chatty(Exception):
    """Its arguments cannot travel."""


ERRORS: dict[str, BaseException] = {
    "ValueError": ValueError("v"),
    "SystemExit": SystemExit(1),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(),
    "TimeoutError": TimeoutError("t"),
    "NotAnException": NotAnException("n"),
    "StopIteration": StopIteration(1),
    "Unprintable": Unprintable(),
    "Chatty": Chatty(object(), {1, 2}, b"x", Chatty()),
}


class Raiser:
    name = "raiser"

    @rpc(concurrency=1)
    def threaded(self, error: str) -> None:
        raise ERRORS[error]

    @rpc(concurrency=1)
    async def on_loop(self, error: str) -> None:
        raise ERRORS[error]

    @rpc(concurrency=1)
    async def cancels_itself(self, error: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    @rpc
    async def alive(self) -> bool:
        return True


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("method", ["threaded", "on_loop"])
async def test_any_error_is_answered_and_leaks_no_slot(
    serve: Serve, invoke: Invoke, method: str, error: str
) -> None:
    runner = await serve(Raiser)

    for _ in range(3):  # more often than there are slots
        # A coroutine turns StopIteration into RuntimeError (PEP 479).
        expected = "RuntimeError" if (method, error) == ("on_loop", "StopIteration") else error
        with pytest.raises(RemoteError) as caught:
            await invoke("raiser", method, error, timeout=15)
        assert caught.value.exc_type == expected

    assert runner.containers[0].started
    assert await invoke("raiser", "alive")


async def test_task_that_cancels_itself_is_answered(serve: Serve, invoke: Invoke) -> None:
    await serve(Raiser)

    for _ in range(3):
        with pytest.raises(RemoteError, match="CancelledError"):
            await invoke("raiser", "cancels_itself", "", timeout=15)


async def test_any_error_through_middleware_is_answered_too(serve: Serve, invoke: Invoke) -> None:
    async def passes(call: Any, next: Any) -> Any:
        return await next(call)

    await serve(Raiser, inbound=(passes,))

    for error in ERRORS:
        for method in ("threaded", "on_loop"):
            with pytest.raises(RemoteError):
                await invoke("raiser", method, error, timeout=15)
    assert await invoke("raiser", "alive")


class Results:
    name = "results"

    @rpc
    def threaded(self, what: str) -> Any:
        return self.make(what)

    @rpc
    async def on_loop(self, what: str) -> Any:
        return self.make(what)

    @staticmethod
    def make(what: str) -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return {
            "object": object(),
            "recursive": loop,
            "coroutine": lambda: None,
            "date": datetime.date(2013, 1, 1),
        }[what]


@pytest.mark.parametrize("method", ["threaded", "on_loop"])
@pytest.mark.parametrize("what", ["object", "recursive", "coroutine"])
async def test_result_that_cannot_travel_is_an_error_reply(
    serve: Serve, invoke: Invoke, method: str, what: str
) -> None:
    await serve(Results)

    with pytest.raises(UnserializableValueError):
        await invoke("results", method, what, timeout=15)
    assert await invoke("results", method, "date") is not None


async def test_result_of_a_middleware_that_cannot_travel_is_an_error_reply(
    serve: Serve, invoke: Invoke
) -> None:
    from mycelia import Outcome

    async def answers(call: Any, next: Any) -> Outcome:
        return Outcome(object())

    await serve(Results, inbound=(answers,))

    with pytest.raises(UnserializableValueError):
        await invoke("results", "on_loop", "date", timeout=15)


@pytest.mark.parametrize(
    ("setting", "deadline_ms", "is_told"),
    [
        pytest.param({}, 10**13, True, id="a Mycelia caller"),
        pytest.param({}, None, False, id="a stock caller, which sends no deadline"),
        pytest.param({"error_tracebacks": False}, 10**13, False, id="switched off"),
    ],
)
async def test_traceback_is_told_to_mycelia_callers_unless_switched_off(
    serve: Serve, link: Link, setting: dict[str, Any], deadline_ms: int | None, is_told: bool
) -> None:
    await serve(Raiser, config={"mycelia": setting})
    replies: list[Delivery] = []
    await link.declare(Queue("answers"), Binding("answers", "nameko-rpc", "answers"))
    await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))
    headers = {} if deadline_ms is None else {"nameko.deadline_ms": deadline_ms}
    properties = Properties("application/json", "utf-8", headers, reply_to="answers")
    body = b'{"args": ["ValueError"], "kwargs": {}}'

    await link.publish(Message("nameko-rpc", "raiser.on_loop", body, properties))
    await eventually(lambda: replies)

    error = json.loads(replies[0].body)["error"]
    assert error["exc_type"] == "ValueError"
    assert ("raise ERRORS[error]" in error.get("traceback", "")) == is_told
    assert ("traceback" in error) == is_told
