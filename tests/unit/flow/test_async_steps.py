"""Steps that await give what steps that do not would, in the same order, and never more of them at a time than is asked for."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia import Retry, fixed
from mycelia.errors import ConfigError, FlowFunctionError
from mycelia.flow import Engine, FlowPlan, count, source, tumbling
from mycelia.flow.async_steps import OnLoop, StepsCancelled
from mycelia.testing import FlowDriver


async def slowly(value: int) -> int:
    await asyncio.sleep(Random(value).random() * 0.002)
    return value * 10


def driven(stream: Any, values: list[int], **options: Any) -> list[Any]:
    driver = FlowDriver({"out": stream}, **options)
    driver.append("in", values, times=list(range(len(values))), batch=7)
    driver.end()
    return driver.given("out")


@settings(max_examples=20)
@given(values=st.lists(st.integers(0, 9), max_size=30), concurrency=st.sampled_from([1, 3, 100]))
def test_results_are_in_the_order_of_the_records(values: list[int], concurrency: int) -> None:
    stream = source("in", int).map_async(slowly, concurrency=concurrency)

    assert driven(stream, values) == [value * 10 for value in values]


def test_results_keep_their_keys_and_times_and_go_on_through_crashes() -> None:
    async def spread(value: int) -> list[int]:
        return [await slowly(value)] * (value % 3)

    def flow(step: str) -> Any:
        keyed = source("in", int).key_by(lambda value: value % 4)
        spread_out = (
            keyed.flat_map_async(spread)
            if step == "async"
            else keyed.flat_map(lambda value: [value * 10] * (value % 3))
        )
        return spread_out.window(tumbling(0.01)).aggregate(count())

    values = list(range(60))
    awaited = driven(flow("async"), values, seed=3, crash_rate=0.1)

    assert awaited == driven(flow("plain"), values, seed=3)


def test_no_more_run_at_a_time_than_asked_for() -> None:
    running = most = 0

    async def counted(value: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return value

    stream = source("in", int).map_async(counted, concurrency=3)
    engine = Engine(FlowPlan({"out": stream.port}), {"in": [0]})
    engine.feed("in", 0, list(range(50)), [0] * 50)

    assert most == 3


async def failing(value: int) -> int:
    await asyncio.sleep(0)
    if value % 2:
        raise ZeroDivisionError(f"not {value}")
    return value


def test_failing_record_is_named_by_its_position() -> None:
    stream = source("in", int).filter(lambda value: value > 0).map_async(failing).named("odd")
    engine = Engine(FlowPlan({"out": stream.port}), {"in": [0]})
    with pytest.raises(FlowFunctionError, match="not 3") as caught:
        engine.feed("in", 0, [0, 2, 3, 5], [0] * 4)

    assert (caught.value.operator, caught.value.position) == ("odd", 2)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_all_that_fail_of_a_turn_are_told_at_once() -> None:
    stream = source("in", int).map_async(failing)
    engine = Engine(FlowPlan({"out": stream.port}), {"in": [0]}, collects=True)
    with pytest.raises(FlowFunctionError) as caught:
        engine.feed("in", 0, list(range(400)), [0] * 400)

    positions = [one.position for one in (caught.value, *caught.value.also)]
    assert positions == list(range(1, 400, 2))


def test_retries_and_time_limits_are_those_that_were_asked_for() -> None:
    calls: list[int] = []

    async def third_time(value: int) -> int:
        calls.append(value)
        if calls.count(value) < 3:
            await asyncio.sleep(10)
        return value

    retry = Retry(attempts=3, backoff=fixed("1ms"))
    stream = source("in", int).map_async(third_time, timeout="10ms", retry=retry)
    assert driven(stream, [1, 2]) == [1, 2]
    assert calls.count(1) == calls.count(2) == 3

    calls.clear()
    engine = Engine(
        FlowPlan({"out": source("in", int).map_async(third_time, timeout="1ms").port}), {"in": [0]}
    )
    with pytest.raises(FlowFunctionError, match="TimeoutError"):
        engine.feed("in", 0, [1], [0])


def test_function_that_is_cancelled_by_itself_has_failed() -> None:
    async def cancelled(value: int) -> int:
        raise asyncio.CancelledError

    engine = Engine(FlowPlan({"out": source("in", int).map_async(cancelled).port}), {"in": [0]})
    with pytest.raises(FlowFunctionError, match="cancelled by itself"):
        engine.feed("in", 0, [1], [0])


async def test_what_runs_on_a_loop_can_be_called_off() -> None:
    run = OnLoop(asyncio.get_running_loop())
    began, ended = asyncio.Event(), asyncio.Event()

    async def forever(value: int) -> int:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return value

    stream = source("in", int).map_async(forever, timeout=None)
    engine = Engine(FlowPlan({"out": stream.port}), {"in": [0]}, run=run)
    feeding = asyncio.create_task(asyncio.to_thread(engine.feed, "in", 0, [1, 2], [0, 0]))
    await asyncio.wait_for(began.wait(), 5)
    run.cancel()

    with pytest.raises(StepsCancelled):
        await asyncio.wait_for(feeding, 5)
    await asyncio.wait_for(ended.wait(), 5)
    with pytest.raises(StepsCancelled):
        await asyncio.to_thread(run, forever(1))


def test_options_that_cannot_be_are_refused() -> None:
    stream = source("in", int)
    wrong: Any = "function"
    with pytest.raises(ConfigError, match="expected an `async def` function"):
        stream.map_async(wrong)
    with pytest.raises(ConfigError, match="concurrency=0"):
        stream.map_async(slowly, concurrency=0)
    with pytest.raises(ConfigError, match="no duration"):
        stream.flat_map_async(failing, timeout="soon")  # type: ignore[arg-type]
