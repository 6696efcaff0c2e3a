"""Work that is shared by all who ask for it at the same time."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from mycelia.amqp.rabbit.shared_work import SharedWork
from mycelia.errors import TopologyError


class Work:
    """Counts how often it runs, and how many pieces run at once; ends when told."""

    def __init__(self) -> None:
        self.runs = 0
        self.running = 0
        self.most = 0
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.runs += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return self.runs


async def test_a_thousand_askers_share_one_piece() -> None:
    shared, work = SharedWork("test", 4), Work()
    asking = [asyncio.ensure_future(shared.run("same", work)) for _ in range(1000)]
    await asyncio.sleep(0)

    work.go_on.set()

    assert await asyncio.gather(*asking) == [1] * 1000
    assert len(shared) == 0


async def test_different_pieces_take_turns() -> None:
    shared, work = SharedWork("test", 4), Work()

    async def in_turn() -> int:
        async with shared.turn:
            return await work()

    asking = [asyncio.ensure_future(shared.run(number, in_turn)) for number in range(50)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert work.running == 4

    work.go_on.set()
    await asyncio.gather(*asking)

    assert (work.runs, work.most) == (50, 4)


async def test_error_is_told_to_everybody_and_the_next_asker_tries_anew() -> None:
    shared, work = SharedWork("test", 4), Work()
    work.error = TopologyError("no")
    work.go_on.set()

    results = await asyncio.gather(
        *(shared.run("same", work) for _ in range(5)), return_exceptions=True
    )
    assert results == [work.error] * 5
    work.error = None

    assert await shared.run("same", work) == 2


async def test_asker_who_gives_up_leaves_the_work_to_the_others() -> None:
    shared, work = SharedWork("test", 4), Work()
    hasty = asyncio.ensure_future(shared.run("same", work))
    patient = asyncio.ensure_future(shared.run("same", work))
    await asyncio.sleep(0)

    hasty.cancel()
    await asyncio.wait([hasty])
    work.go_on.set()

    assert await patient == 1
    assert hasty.cancelled()


async def test_work_that_nobody_waits_for_is_cancelled() -> None:
    shared, work = SharedWork("test", 1), Work()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await shared.run("same", work)
    for _ in range(3):
        await asyncio.sleep(0)

    assert work.running == 0
    work.go_on.set()
    assert await shared.run("same", work) == 2


@pytest.mark.parametrize("turns", range(4))
async def test_error_is_nobody_s_when_all_have_gone(turns: int) -> None:
    """A service that does not start gives up what it declares: the broker's last words are no error without an owner."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    shared, work = SharedWork("test", 4), Work()
    work.error = TopologyError("no")
    asking = asyncio.ensure_future(shared.run("same", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    work.go_on.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    for _ in range(3):
        await asyncio.sleep(0)
    assert asking.cancelled() or asking.exception() is work.error
    del asking, work  # the error holds the task
    gc.collect()

    assert unheard == []
