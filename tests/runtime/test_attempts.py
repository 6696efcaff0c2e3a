"""`async for attempt in self.retry`: a service's own work, tried again."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Retry, RetryLater, fixed, rpc
from mycelia.errors import ConfigError, RemoteError, RuntimeStateError

AT_ONCE = Retry(attempts=3, backoff=fixed(0), on=ConnectionError)


class Shaky:
    """Fails `left` times."""

    def __init__(self, left: int, error: BaseException | None = None) -> None:
        self.left = left
        self.ran = 0
        self.error = error or ConnectionError("away")

    def answer(self, value: str = "here") -> str:
        self.ran += 1
        if self.ran <= self.left:
            raise self.error
        return value

    async def answer_later(self, value: str = "here") -> str:
        return self.answer(value)


async def awaited(policy: Retry, shaky: Shaky) -> tuple[str, list[int]]:
    numbers = []
    async for attempt in policy:
        with attempt:
            numbers.append(attempt.number)
            return await shaky.answer_later(), numbers
    raise AssertionError


def blocking(policy: Retry, shaky: Shaky) -> tuple[str, list[int]]:
    numbers = []
    for attempt in policy:
        with attempt:
            numbers.append(attempt.number)
            return shaky.answer(), numbers
    raise AssertionError


async def run(kind: str, policy: Retry, shaky: Shaky) -> tuple[str, list[int]]:
    if kind == "async":
        return await awaited(policy, shaky)
    return await asyncio.to_thread(blocking, policy, shaky)


@pytest.mark.parametrize("kind", ["async", "thread"])
class TestBothKinds:
    async def test_it_goes_on_until_it_succeeds(self, kind: str) -> None:
        assert await run(kind, AT_ONCE, Shaky(2)) == ("here", [1, 2, 3])

    async def test_the_last_error_is_raised(self, kind: str) -> None:
        shaky = Shaky(9)
        with pytest.raises(ConnectionError, match="away"):
            await run(kind, AT_ONCE, shaky)
        assert shaky.ran == 3

    @pytest.mark.parametrize(
        "error",
        [ValueError("ours"), RetryLater("1h"), asyncio.CancelledError(), KeyboardInterrupt()],
    )
    async def test_other_errors_leave_at_once(self, kind: str, error: BaseException) -> None:
        shaky = Shaky(1, error)
        if kind == "thread":  # what a thread raises beside exceptions is its caller's trouble
            with pytest.raises(type(error)):
                await asyncio.to_thread(_raised_by, error, shaky)
        else:
            with pytest.raises(type(error)):
                await awaited(AT_ONCE, shaky)
        assert shaky.ran == 1

    async def test_the_short_form(self, kind: str) -> None:
        shaky = Shaky(2)
        if kind == "async":
            assert await AT_ONCE.call(shaky.answer_later, value="short") == "short"
        else:
            assert await asyncio.to_thread(AT_ONCE.call, shaky.answer, value="short") == "short"
        assert shaky.ran == 3


def _raised_by(error: BaseException, shaky: Shaky) -> None:
    with pytest.raises(type(error)):
        blocking(AT_ONCE, shaky)
    raise error if isinstance(error, Exception) else type(error)


class Services:
    """Both kinds in a service, with a deadline of the caller's."""

    name = "retrying"
    retry = Retry(attempts=3, backoff=fixed("1h"))

    @rpc
    async def on_loop(self) -> Any:
        async for attempt in self.retry:
            with attempt:
                raise LookupError("not here")

    @rpc
    def in_thread(self) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        for attempt in self.retry:
            with attempt:
                raise LookupError("not here")


@pytest.mark.parametrize("method", ["on_loop", "in_thread"])
async def test_no_pause_outlasts_the_caller(serve: Serve, invoke: Invoke, method: str) -> None:
    await serve(Services)
    began = time.monotonic()
    with pytest.raises(RemoteError, match="LookupError not here"):
        await invoke("retrying", method)
    assert time.monotonic() - began < 60  # not an hour


async def test_blocking_attempts_on_the_event_loop_are_refused() -> None:
    with pytest.raises(RuntimeStateError, match="async for"):
        blocking(AT_ONCE, Shaky(0))


async def test_forgotten_with_is_told() -> None:
    attempts = aiter(AT_ONCE)
    await anext(attempts)
    with pytest.raises(RuntimeStateError, match="with attempt"):
        await anext(attempts)


async def test_cancelled_while_it_waits() -> None:
    shaky = Shaky(9)
    task = asyncio.create_task(awaited(Retry(attempts=3, backoff=fixed("1h")), shaky))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shaky.ran == 1


def test_class_attribute_is_checked_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="attempts"):
        Retry(attempts=0)
