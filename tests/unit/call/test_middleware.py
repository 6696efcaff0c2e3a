"""The chain: order, and what a middleware may do."""

from mycelia.call import Call, CallKind, Direction, Middleware, Next, Outcome, Target, compose


def a_call() -> Call:
    return Call(Target(Direction.INBOUND, CallKind.RPC, "maths", "add"), (1, 2))


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
