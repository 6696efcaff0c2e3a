"""`RpcProxy(retry=…)`: which errors, how often, and never beyond the call's time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import Call, Next, Outcome, Retry, RpcProxy, fixed, rpc
from mycelia.errors import ConfigError, Overloaded, RemoteError, RpcTimeout, UnknownService

AT_ONCE = fixed(0)


class Shaky:
    """Fails a number of times, then answers."""

    name = "shaky"
    left = 0
    ran = 0

    @rpc
    async def answer(self, how: str = "broken") -> int:
        Shaky.ran += 1
        if Shaky.left:
            Shaky.left -= 1
            if how == "overloaded":
                raise Overloaded("not now")
            raise LookupError(how)
        return Shaky.ran

    @rpc
    async def never(self) -> None:
        Shaky.ran += 1
        await asyncio.Event().wait()


class Proxies:
    careful = RpcProxy("shaky", retry=Retry(4, AT_ONCE))
    daring = RpcProxy("shaky", retry=Retry(4, AT_ONCE, on=RemoteError))
    patient = RpcProxy("shaky", timeout=0.5, retry=Retry(4, fixed("1h"), on=RemoteError))
    nobody = RpcProxy("nobody", retry=Retry(3, AT_ONCE))
    stubborn = RpcProxy("shaky", timeout=0.2, retry=Retry(9, AT_ONCE, on=RpcTimeout))


class OnLoop(Proxies):
    name = "front"

    @rpc
    async def ask(self, proxy: str, *args: Any) -> Any:
        return await getattr(self, proxy).answer(*args)

    @rpc
    async def ask_otherwise(self, proxy: str) -> Any:
        return await getattr(self, proxy).answer.options(timeout=5)()

    @rpc
    async def never(self) -> None:
        await self.stubborn.never()


class InThread(Proxies):
    name = "front"

    @rpc
    def ask(self, proxy: str, *args: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        return getattr(self, proxy).answer(*args)

    @rpc
    def ask_otherwise(self, proxy: str) -> Any:
        return getattr(self, proxy).answer.options(timeout=5)()

    @rpc
    def never(self) -> None:
        self.stubborn.never()


@pytest.fixture(params=[OnLoop, InThread], ids=["async def", "def"])
async def front(serve: Serve, request: pytest.FixtureRequest) -> None:
    Shaky.left = Shaky.ran = 0
    await serve(Shaky, request.param)


@pytest.mark.usefixtures("front")
class TestEachKindOfWorker:
    async def test_errors_that_were_named_are_tried_again(self, invoke: Invoke) -> None:
        Shaky.left = 3
        assert await invoke("front", "ask", "daring") == 4

    async def test_options_of_one_call_keep_the_retries(self, invoke: Invoke) -> None:
        Shaky.left = 3
        assert await invoke("front", "ask_otherwise", "daring") == 4

    async def test_after_the_last_attempt_the_error_is_the_last_one_s(self, invoke: Invoke) -> None:
        Shaky.left = 9
        with pytest.raises(RemoteError, match="LookupError broken"):
            await invoke("front", "ask", "daring")
        assert Shaky.ran == 4

    async def test_what_may_have_run_is_not_tried_again_unless_named(self, invoke: Invoke) -> None:
        Shaky.left = 1
        with pytest.raises(RemoteError):
            await invoke("front", "ask", "careful")
        assert Shaky.ran == 1

    async def test_what_has_not_run_is(self, invoke: Invoke) -> None:
        Shaky.left = 2
        assert await invoke("front", "ask", "careful", "overloaded") == 3

    async def test_service_that_is_not_there_is_asked_for_again(
        self, invoke: Invoke, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "mycelia.clients")
        with pytest.raises(RemoteError, match="nobody"):
            await invoke("front", "ask", "nobody")
        assert sum("call_tried_again" in str(record.msg) for record in caplog.records) == 2

    async def test_no_pause_is_begun_that_passes_the_deadline(self, invoke: Invoke) -> None:
        Shaky.left = 1
        began = time.monotonic()
        with pytest.raises(RemoteError, match="LookupError"):
            await invoke("front", "ask", "patient")
        assert Shaky.ran == 1
        assert time.monotonic() - began < 60  # not an hour

    async def test_all_attempts_share_the_time_of_one(self, invoke: Invoke) -> None:
        with pytest.raises(RemoteError, match="RpcTimeout"):
            await invoke("front", "never")
        assert Shaky.ran == 1


async def test_other_middleware_sees_each_attempt(serve: Serve, invoke: Invoke) -> None:
    Shaky.left, Shaky.ran = 2, 0
    seen: list[tuple[int, bool]] = []

    async def watch(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        if call.service == "shaky":
            seen.append((call.attempt, outcome.error is None))
        return outcome

    await serve(Shaky, OnLoop, outbound=(watch,))
    await invoke("front", "ask", "daring")

    assert seen == [(1, False), (2, False), (3, True)]


async def test_unknown_service_comes_up_meanwhile(serve: Serve, invoke: Invoke) -> None:
    class Late:
        name = "late"

        @rpc
        async def answer(self) -> str:
            return "here"

    asked = asyncio.Event()

    async def watch(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        if isinstance(outcome.error, UnknownService):
            asked.set()
        return outcome

    class Front:
        name = "front"
        late = RpcProxy("late", retry=Retry(1000, fixed("20ms")))

        @rpc
        async def ask(self) -> Any:
            return await self.late.answer()

    await serve(Front, outbound=(watch,))
    answer = asyncio.create_task(invoke("front", "ask"))  # type: ignore[arg-type]
    await asyncio.wait_for(asked.wait(), 10)
    await serve(Late)

    assert await answer == "here"


def test_something_else_than_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'RpcProxy\("shaky", retry=3\): expected Retry'):
        RpcProxy("shaky", retry=3)  # type: ignore[arg-type]
