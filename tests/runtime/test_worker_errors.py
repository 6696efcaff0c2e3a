"""No error of a method, of whatever class, takes the service down, leaks a slot or leaves the caller waiting."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import rpc
from mycelia.errors import RemoteError, UnserializableValueError


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
            await invoke("raiser", method, error, timeout=3)
        assert caught.value.exc_type == expected

    assert runner.containers[0].started
    assert await invoke("raiser", "alive")


async def test_task_that_cancels_itself_is_answered(serve: Serve, invoke: Invoke) -> None:
    await serve(Raiser)

    for _ in range(3):
        with pytest.raises(RemoteError, match="CancelledError"):
            await invoke("raiser", "cancels_itself", "", timeout=3)


async def test_any_error_through_middleware_is_answered_too(serve: Serve, invoke: Invoke) -> None:
    async def passes(call: Any, next: Any) -> Any:
        return await next(call)

    await serve(Raiser, inbound=(passes,))

    for error in ERRORS:
        for method in ("threaded", "on_loop"):
            with pytest.raises(RemoteError):
                await invoke("raiser", method, error, timeout=3)
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
        await invoke("results", method, what, timeout=3)
    assert await invoke("results", method, "date") is not None


async def test_result_of_a_middleware_that_cannot_travel_is_an_error_reply(
    serve: Serve, invoke: Invoke
) -> None:
    from mycelia import Outcome

    async def answers(call: Any, next: Any) -> Outcome:
        return Outcome(object())

    await serve(Results, inbound=(answers,))

    with pytest.raises(UnserializableValueError):
        await invoke("results", "on_loop", "date", timeout=3)
