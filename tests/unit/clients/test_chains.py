"""Outbound chains: compiled once, bounded, `None` where nobody has middleware."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from mycelia.call import Call, CallKind, Direction, Middleware, Next, Outcome, Target
from mycelia.clients.chains import MAX_CHAINS, OutboundChains


async def endpoint(call: Call) -> Outcome:
    return Outcome(call.target.name)


async def marked(call: Call, next: Next) -> Outcome:
    return Outcome(f"marked {(await next(call)).value}")


class Sources:
    """What stands around each target, and for which targets it was asked."""

    def __init__(self) -> None:
        self.asked: list[Target] = []

    def __call__(self, target: Target) -> tuple[Middleware, ...]:
        self.asked.append(target)
        return () if target.service == "plain" else (marked,)


def outbound(service: str, method: str) -> Target:
    return Target(Direction.OUTBOUND, CallKind.RPC, service, method)


async def test_chain_ends_at_the_endpoint_and_an_empty_one_is_none() -> None:
    chains = OutboundChains(CallKind.RPC, Sources(), endpoint)

    chain = chains.of("back", "add")

    assert chains.of("plain", "add") is None
    assert chain is not None
    assert (await chain(Call(outbound("back", "add")))).value == "marked back.add"


def test_sources_are_asked_once_for_each_target_also_by_many_threads() -> None:
    sources = Sources()
    chains = OutboundChains(CallKind.RPC, sources, endpoint)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: chains.of("back", f"m{n % 5}"), range(500)))

    assert len(set(found)) == 5
    assert sorted(sources.asked, key=str) == [outbound("back", f"m{n}") for n in range(5)]


def test_names_without_number_share_one_chain_beyond_the_bound() -> None:
    sources = Sources()
    chains = OutboundChains(CallKind.RPC, sources, endpoint)

    for n in range(3 * MAX_CHAINS):
        assert chains.of("back", f"m{n}") is not None

    assert len(chains) == MAX_CHAINS + 1
    assert len(sources.asked) == MAX_CHAINS + 1
    assert sources.asked[-1] == outbound("*", "*")
