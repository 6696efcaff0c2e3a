"""The chain: order, what a middleware may do, and what becomes of one that fails."""

import asyncio
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from mycelia.call import (
    Call,
    CallKind,
    Direction,
    Middleware,
    Next,
    Observer,
    Outcome,
    Target,
    Unless,
    compose,
)
from mycelia.errors import HandlerTimeout, RuntimeStateError


def a_call() -> Call:
    return Call(Target(Direction.INBOUND, CallKind.RPC, "maths", "add"), ((1, 2), {}))


async def endpoint(call: Call) -> Outcome:
    return Outcome(sum(call.args))


async def test_the_first_middleware_is_the_outermost() -> None:
    seen: list[str] = []

    def recording(name: str) -> Middleware:
        async def layer(call: Call, next: Next) -> Outcome:
            seen.append(f"{name} in")
            outcome = await next(call)
            seen.append(f"{name} out")
            return outcome

        return layer

    outcome = await compose([recording("a"), recording("b")], endpoint)(a_call())

    assert outcome.unwrap() == 3
    assert seen == ["a in", "b in", "b out", "a out"]


async def test_an_empty_chain_is_the_endpoint_itself() -> None:
    assert compose([], endpoint) is endpoint


async def test_a_middleware_may_answer_without_going_on() -> None:
    async def cached(call: Call, next: Next) -> Outcome:
        return Outcome("cached")

    outcome = await compose([cached], endpoint)(a_call())

    assert outcome.unwrap() == "cached"


async def test_a_middleware_may_go_on_several_times_and_change_the_call() -> None:
    async def again(call: Call, next: Next) -> Outcome:
        first = await next(call)
        call.args = (first.value, 10)
        return await next(call)

    outcome = await compose([again], endpoint)(a_call())

    assert outcome.unwrap() == 13


# --- a middleware that fails ------------------------------------------------------------------------


class Metrics:
    """An outer middleware, which must see an outcome whatever happens inside."""

    def __init__(self) -> None:
        self.seen: list[Outcome] = []

    async def __call__(self, call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        self.seen.append(outcome)
        return outcome


async def raises_before(call: Call, next: Next) -> Outcome:
    raise LookupError("before")


async def raises_after(call: Call, next: Next) -> Outcome:
    await next(call)
    raise LookupError("after")


async def exits(call: Call, next: Next) -> Outcome:
    raise SystemExit(3)


def raises_without_waiting(call: Call, next: Next) -> Any:
    raise LookupError("no coroutine")


def returns_no_awaitable(call: Call, next: Next) -> Any:
    return Outcome(1)


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        (raises_before, LookupError),
        (raises_after, LookupError),
        (exits, SystemExit),
        (raises_without_waiting, LookupError),
        (returns_no_awaitable, TypeError),
    ],
)
@pytest.mark.parametrize("between", [0, 3])
async def test_outer_middleware_sees_the_error_of_an_inner_one_as_an_outcome(
    failing: Any, error: type[BaseException], between: int
) -> None:
    layers = [Metrics() for _ in range(between + 1)]

    outcome = await compose([*layers, failing], endpoint)(a_call())

    assert isinstance(outcome.error, error)
    assert [layer.seen for layer in layers] == [[outcome]] * len(layers)


async def forgets_to_return(call: Call, next: Next) -> Any:
    await next(call)


async def returns_the_value(call: Call, next: Next) -> Any:
    return (await next(call)).value


@pytest.mark.parametrize("wrong", [forgets_to_return, returns_the_value])
async def test_what_is_no_outcome_is_an_error_that_names_the_middleware(wrong: Any) -> None:
    metrics = Metrics()

    outcome = await compose([metrics, wrong], endpoint)(a_call())

    assert metrics.seen == [outcome]
    assert isinstance(outcome.error, RuntimeStateError)
    assert wrong.__name__ in str(outcome.error)
    assert "maths.add" in str(outcome.error)


async def waits_for_ever(call: Call, next: Next) -> Outcome:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_cancellation_goes_through_all_of_them() -> None:
    metrics = Metrics()
    chain = compose([metrics, waits_for_ever], endpoint)
    task = asyncio.ensure_future(chain(a_call()))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert metrics.seen == []


async def test_cancellation_with_a_known_reason_is_that_error() -> None:
    """As a lane does it with a worker that takes too long."""
    metrics = Metrics()
    call = a_call()
    task = asyncio.ensure_future(compose([metrics, waits_for_ever], endpoint)(call))
    await asyncio.sleep(0)

    call.interruption = HandlerTimeout("maths.add", 1.0)
    task.cancel()
    outcome = await task

    assert outcome.error is call.interruption
    assert metrics.seen == [outcome]


@pytest.mark.parametrize("composed", [True, False])
async def test_what_passes_a_layer_is_not_around_it_and_sets_the_context_of_its_own(
    composed: bool,
) -> None:
    around: list[Call] = []
    variable: ContextVar[int] = ContextVar("variable", default=0)

    async def layer(call: Call, next: Next) -> Outcome:
        around.append(call)
        return await next(call)

    async def seen(call: Call) -> Outcome:
        return Outcome(variable.get())

    def passes(call: Call) -> bool:
        variable.set(1)
        return call.attempt == 1

    unless = Unless(passes, layer)
    first, second = a_call(), a_call()
    second.attempt = 2
    chain = compose([unless], seen) if composed else partial(unless, next=seen)

    async def go(call: Call) -> Outcome:
        return await chain(call)

    assert (await asyncio.create_task(go(first))).value == 1
    assert (await asyncio.create_task(go(second))).value == 1
    assert around == [second]
    assert variable.get() == 0


async def test_watch_among_other_middleware_is_told_of_cancellation_too() -> None:
    told: list[Outcome] = []
    watch = Observer(lambda call, outcome: told.append(outcome))
    outcome = await compose([watch], endpoint)(a_call())
    task = asyncio.ensure_future(compose([watch, waits_for_ever], endpoint)(a_call()))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert told[0] is outcome
    assert isinstance(told[1].error, asyncio.CancelledError)
