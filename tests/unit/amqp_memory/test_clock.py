"""The clock that tests drive."""

from __future__ import annotations

import asyncio

from mycelia.amqp.memory.clock import LoopClock, ManualClock


def test_time_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock(wall=1000.0)

    assert (clock.monotonic(), clock.wall()) == (0.0, 1000.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall()) == (2.5, 1002.5)


def test_timers_fire_in_order_each_at_its_own_time() -> None:
    clock = ManualClock()
    fired: list[tuple[str, float]] = []
    clock.call_at(3.0, lambda: fired.append(("late", clock.monotonic())))
    clock.call_at(1.0, lambda: fired.append(("early", clock.monotonic())))

    clock.advance(5.0)

    assert fired == [("early", 1.0), ("late", 3.0)]
    assert clock.monotonic() == 5.0


def test_timer_set_by_a_timer_fires_within_the_same_advance() -> None:
    clock = ManualClock()
    fired: list[float] = []

    def again() -> None:
        fired.append(clock.monotonic())
        if len(fired) < 3:
            clock.call_at(clock.monotonic() + 1.0, again)

    clock.call_at(1.0, again)
    clock.advance(2.5)
    assert fired == [1.0, 2.0]

    clock.advance(1.0)
    assert fired == [1.0, 2.0, 3.0]


def test_cancelled_timer_does_not_fire() -> None:
    clock = ManualClock()
    fired: list[str] = []
    clock.call_at(1.0, lambda: fired.append("cancelled")).cancel()
    clock.call_at(1.0, lambda: fired.append("kept"))

    clock.advance(1.0)

    assert fired == ["kept"]


async def test_timer_of_the_real_clock_never_fires_early() -> None:
    clock = LoopClock()
    late_by: list[float] = []
    done = asyncio.Event()
    for number in range(50):
        due = clock.monotonic() + number * 0.000_37

        def fire(due: float = due) -> None:
            late_by.append(clock.monotonic() - due)
            if len(late_by) == 50:
                done.set()

        clock.call_at(due, fire)

    await asyncio.wait_for(done.wait(), 5)

    assert min(late_by) >= 0.0
