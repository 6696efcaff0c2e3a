"""The cache in which concurrent misses share one call."""

from __future__ import annotations

import asyncio

import pytest
from services.flights.single_flight import SingleFlightCache


class Source:
    """A slow source that counts its calls and answers when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def load(self) -> str | None:
        self.calls += 1
        self.asked.set()
        return await asyncio.shield(self.answer)


async def test_concurrent_misses_of_one_key_share_one_call() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    source = Source()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cache.get("N1", source.load)) for _ in range(20)]
        await source.asked.wait()
        source.answer.set_result("plane")

    assert {task.result() for task in tasks} == {"plane"}
    assert source.calls == 1
    assert (cache.statistics.loads, cache.statistics.shared, cache.statistics.hits) == (1, 19, 0)


async def test_different_keys_are_called_at_once() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    first, second = Source(), Source()
    async with asyncio.TaskGroup() as group:
        group.create_task(cache.get("N1", first.load))
        group.create_task(cache.get("N2", second.load))
        await first.asked.wait()
        await asyncio.wait_for(second.asked.wait(), 5)
        first.answer.set_result("one")
        second.answer.set_result("two")

    assert len(cache) == 2


async def test_known_key_is_not_called_again_even_if_its_value_is_none() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    source = Source()
    source.answer.set_result(None)
    await cache.get("N1", source.load)

    assert await cache.get("N1", source.load) is None
    assert (source.calls, cache.statistics.hits) == (1, 1)


async def test_failed_call_fails_all_who_shared_it_and_is_not_kept() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    source = Source()
    tasks = [asyncio.create_task(cache.get("N1", source.load)) for _ in range(3)]
    await source.asked.wait()
    source.answer.set_exception(ConnectionError("registry is away"))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [str(outcome) for outcome in outcomes] == ["registry is away"] * 3
    assert source.calls == 1
    again = Source()
    again.answer.set_result("plane")
    assert await cache.get("N1", again.load) == "plane"


async def test_failed_call_without_sharers_leaves_no_unseen_error() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    source = Source()
    source.answer.set_exception(ConnectionError("away"))

    with pytest.raises(ConnectionError):
        await cache.get("N1", source.load)


async def test_cancelled_caller_hands_the_call_to_a_waiter() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    abandoned, source = Source(), Source()
    caller = asyncio.create_task(cache.get("N1", abandoned.load))
    await abandoned.asked.wait()
    waiters = [asyncio.create_task(cache.get("N1", source.load)) for _ in range(3)]
    await asyncio.sleep(0)
    caller.cancel()
    await source.asked.wait()
    source.answer.set_result("plane")

    assert await asyncio.gather(*waiters) == ["plane"] * 3
    assert source.calls == 1
    assert caller.cancelled()


async def test_cancelled_waiter_does_not_disturb_the_call() -> None:
    cache: SingleFlightCache[str | None] = SingleFlightCache()
    source = Source()
    caller = asyncio.create_task(cache.get("N1", source.load))
    await source.asked.wait()
    waiter = asyncio.create_task(cache.get("N1", source.load))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait([waiter])
    source.answer.set_result("plane")

    assert await caller == "plane"
    assert waiter.cancelled()


async def test_what_was_used_longest_ago_makes_room() -> None:
    cache: SingleFlightCache[str] = SingleFlightCache(max_entries=2)
    calls: list[str] = []

    async def ask(key: str) -> str:
        async def load() -> str:
            calls.append(key)
            return key

        return await cache.get(key, load)

    for key in ("a", "b", "a", "c", "a", "b"):
        await ask(key)

    assert calls == ["a", "b", "c", "b"]
    assert (len(cache), cache.statistics.evicted) == (2, 2)
