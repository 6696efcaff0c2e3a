"""What a worker leaves in a `threading.local` is not there for the next one."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading

import pytest

from mycelia.call import Call, CallKind, Direction, Outcome, Target
from mycelia.runtime import thread_locals
from mycelia.runtime.threads import ThreadPool

TARGET = Target(Direction.INBOUND, CallKind.RPC, "s", "m")


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "local", threading.local)  # put back at the end
    thread_locals.watch_locals()


async def ask(pool: ThreadPool, question: object) -> object:
    """Run `question()` in a thread of the pool."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def run(call: Call) -> Outcome:
        return Outcome(question())  # type: ignore[operator]

    pool.submit(
        run, Call(TARGET), lambda _, outcome: future.set_result(outcome), contextvars.copy_context()
    )
    return (await future).unwrap()


async def test_the_next_worker_of_a_thread_finds_an_empty_local() -> None:
    pool = ThreadPool(asyncio.get_running_loop(), 1, "test")
    local = threading.local()

    def user_of(name: str | None) -> object:
        if name is not None:
            local.user = name
        return (threading.get_ident(), getattr(local, "user", None))

    first = await ask(pool, lambda: user_of("Ada"))
    others = [await ask(pool, lambda: user_of(None)) for _ in range(6)]
    pool.close()

    thread = first[0]  # type: ignore[index]
    assert first == (thread, "Ada")
    assert others == [(thread, None)] * 6


async def test_a_subclass_is_set_up_anew_for_each_worker() -> None:
    pool = ThreadPool(asyncio.get_running_loop(), 1, "test")

    class Basket(threading.local):
        def __init__(self, currency: str) -> None:
            self.currency = currency
            self.items: list[int] = []

    basket = Basket("EUR")

    def fill() -> object:
        basket.items.append(1)
        return (basket.currency, list(basket.items))

    answers = [await ask(pool, fill) for _ in range(3)]
    pool.close()

    assert answers == [("EUR", [1])] * 3


async def test_other_threads_keep_theirs() -> None:
    pool = ThreadPool(asyncio.get_running_loop(), 1, "test")
    local = threading.local()
    local.mine = 1
    await ask(pool, lambda: None)
    pool.close()

    assert local.mine == 1


def test_locals_that_are_gone_are_not_remembered() -> None:
    gc.collect()  # what other tests left
    before = len(thread_locals._locals)
    for _ in range(100):
        threading.local()
    gc.collect()

    assert len(thread_locals._locals) == before
