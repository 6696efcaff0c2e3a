"""Moving a message with patience: the pauses between tries, on a clock that jumps to whatever is waited for."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest

from mycelia.amqp import Delivery, Message, Properties
from mycelia.entrypoints.dead_letters import GIVE_UP_PAUSES_S
from mycelia.entrypoints.moving import Mover
from mycelia.entrypoints.put_back import PAUSES_S, PutBack
from mycelia.errors import BrokerUnavailable, DeadlinePassed, PublishRejected, Unroutable
from mycelia.runtime import Host

BROKER_S_PATIENCE = 1800.0
"""Seconds for which RabbitMQ lets a delivery be unsettled, where nobody sets `consumer_timeout`."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: its clock jumps to whatever is due next."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]  # chosen at run time
            def select(self, timeout: float | None = None) -> Any:
                loop.now += timeout or 0.0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(steps: Callable[[JumpingLoop], Awaitable[None]]) -> None:
    loop = JumpingLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(steps(loop), 10_000))
    finally:
        loop.close()


class Settler:
    """Notes how its delivery was settled, and when."""

    is_lost = False

    def __init__(self, loop: JumpingLoop) -> None:
        self.loop = loop
        self.settled: list[tuple[str, float]] = []

    def ack(self, delivery_tag: int) -> None:
        self.settled.append(("ack", round(self.loop.now, 3)))

    def nack(self, delivery_tag: int, requeue: bool) -> None:
        self.settled.append(("requeue" if requeue else "reject", round(self.loop.now, 3)))

    def delivery(self) -> Delivery:
        properties = Properties("application/json")
        return Delivery(self, "c", 1, False, "x", "queue", properties, b"1")


class Target:
    """Takes a message, but not before so many tries have failed."""

    def __init__(self, loop: JumpingLoop, failures: int, error: Exception) -> None:
        self.loop = loop
        self.failures = failures
        self.error = error
        self.tries: list[float] = []
        self.told: list[float | None] = []

    async def publish(self) -> None:
        self.tries.append(round(self.loop.now, 3))
        if len(self.tries) <= self.failures:
            raise self.error

    def on_failure(self, error: Exception, retry_in_s: float | None) -> None:
        self.told.append(retry_in_s)
        raise OSError("no space left for this line")


def move(mover: Mover, delivery: Delivery, target: Target) -> None:
    mover.move(
        delivery,
        target.publish,
        name="test",
        pauses=GIVE_UP_PAUSES_S,
        on_failure=target.on_failure,
    )


LADDER = [0.0, *accumulate(GIVE_UP_PAUSES_S)]
"""When a dead letter is tried."""


def test_pauses_grow_and_end_long_before_the_broker_loses_patience() -> None:
    for pauses in (GIVE_UP_PAUSES_S, PAUSES_S):
        assert all(later >= 2 * earlier for earlier, later in pairwise(pauses))
        assert sum(pauses) < BROKER_S_PATIENCE / 10


@pytest.mark.parametrize(
    "error",
    [
        PublishRejected("full"),
        BrokerUnavailable("away"),
        Unroutable("x", "q"),
        KeyError(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_dead_letter_that_nobody_takes_is_tried_at_each_step_and_then_goes_back(
    error: Exception,
) -> None:
    async def steps(loop: JumpingLoop) -> None:
        mover, settler = Mover(), Settler(loop)
        target = Target(loop, 100, error)
        move(mover, settler.delivery(), target)
        await mover.finish(1000)

        assert target.tries == LADDER
        assert target.told == [*GIVE_UP_PAUSES_S, None]
        assert settler.settled == [("requeue", LADDER[-1])]
        assert len(mover) == 0

    run(steps)


@pytest.mark.parametrize("failures", range(1, len(LADDER)))
def test_dead_letter_that_is_taken_at_a_later_step_is_acknowledged_then(failures: int) -> None:
    async def steps(loop: JumpingLoop) -> None:
        mover, settler = Mover(), Settler(loop)
        target = Target(loop, failures, PublishRejected("full"))
        move(mover, settler.delivery(), target)
        await mover.finish(1000)

        assert target.tries == LADDER[: failures + 1]
        assert settler.settled == [("ack", LADDER[failures])]

    run(steps)


@pytest.mark.parametrize("at", [3.0, 7.0, 100.0])
def test_stop_does_not_wait_for_the_next_step(at: float) -> None:
    async def steps(loop: JumpingLoop) -> None:
        mover, settler = Mover(), Settler(loop)
        target = Target(loop, 100, PublishRejected("full"))
        move(mover, settler.delivery(), target)
        await asyncio.sleep(at)
        await mover.finish(1.0)

        assert settler.settled == [("requeue", at + 1.0)]
        await asyncio.sleep(1000)
        assert target.tries == [step for step in LADDER if step <= at + 1]

    run(steps)


def test_move_that_is_called_off_before_it_has_begun_gives_its_message_back() -> None:
    async def steps(loop: JumpingLoop) -> None:
        mover, settler = Mover(), Settler(loop)
        target = Target(loop, 0, KeyError(1))
        move(mover, settler.delivery(), target)
        mover.give_back()
        await asyncio.sleep(1)

        assert (target.tries, settler.settled) == ([], [("requeue", 0.0)])
        assert not len(mover)

    run(steps)


def test_each_of_many_has_its_own_steps() -> None:
    async def steps(loop: JumpingLoop) -> None:
        mover = Mover()
        settlers = [Settler(loop) for _ in range(200)]
        targets = [Target(loop, n % 7, PublishRejected("full")) for n in range(200)]
        for settler, target in zip(settlers, targets, strict=True):
            move(mover, settler.delivery(), target)
        await mover.finish(1000)

        for number, settler in enumerate(settlers):
            failures = number % 7
            taken = ("ack", LADDER[failures]) if failures < 6 else ("requeue", LADDER[-1])
            assert settler.settled == [taken]

    run(steps)


# --- another attempt --------------------------------------------------------------------------------


class FullLink:
    """Takes nothing."""

    def __init__(self) -> None:
        self.published: list[Message] = []

    async def publish(self, message: Message, timeout: float) -> None:
        self.published.append(message)
        raise PublishRejected("full")


class FullHost(Host):
    """Its link takes nothing."""

    def __init__(self, link: Any) -> None:
        super().__init__({"AMQP_URI": "memory://full"})
        self._link = link


@pytest.mark.parametrize(
    ("life_ms", "tries"), [(-1000, 0), (0, 0), (10_000_000, 1 + len(PAUSES_S))]
)
def test_message_whose_time_is_over_is_not_published_for_another_attempt(
    life_ms: int, tries: int
) -> None:
    """Where there is time left, it is tried at each step."""
    ends: list[Any] = []

    async def steps(loop: JumpingLoop) -> None:
        link, settler = FullLink(), Settler(loop)
        put_back = PutBack(FullHost(link), "queue", on_acknowledged=ends.append)
        put_back.later(
            settler.delivery(),
            "",
            "queue",
            0.0,
            attempt=2,
            expires_at_ms=int(time.time() * 1000) + life_ms,
            on_given_up=lambda: ends.append("given up"),
            on_expired=ends.append,
        )
        await asyncio.sleep(2 * sum(PAUSES_S))
        assert len(link.published) == tries
        assert settler.settled == []

    run(steps)
    (end,) = ends
    assert end == "given up" if tries else isinstance(end, DeadlinePassed)
