"""Replies over a connection that is cut, and replies that the broker does not take: every caller gets its answer.

A request that its caller's connection takes along is not sent again: nobody can tell whether it has run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from urllib.parse import urlsplit

import pytest
from tests.progress import STALLED_S, until

from mycelia import Client, Runner, rpc
from mycelia.errors import RemoteError, RpcTimeout
from mycelia.testing import Fault, TcpProxy, eventually

LONGER_THAN_THE_TEST = 600.0


class Service:
    name = "service"
    runs: Counter[int] = Counter()  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, number: int) -> int:
        self.runs[number] += 1
        return number

    @rpc
    async def give_async(self, size: int) -> str:
        return "x" * size

    @rpc
    def give(self, size: int) -> str:
        return "x" * size


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_no_reply_is_lost_when_the_service_s_connections_are_cut(rabbit_uri: str) -> None:
    """Ten cuts under a steady load: each call is answered, however long ten cuts take on this machine."""
    Service.runs.clear()
    parts = urlsplit(rabbit_uri)
    async with TcpProxy(str(parts.hostname), int(parts.port or 0), timeout_s=0.3) as wire:
        async with (
            Runner({"AMQP_URI": wire.uri(rabbit_uri)}, [Service]) as runner,
            Client(rabbit_uri, timeout=LONGER_THAN_THE_TEST) as client,
        ):
            calls: list[asyncio.Future[int]] = []

            def answered() -> int:
                return sum(call.done() for call in calls)

            def told() -> object:
                return answered(), Service.runs.total()

            for cut in range(10):
                before = Service.runs.total()
                calls += [
                    asyncio.ensure_future(client.call("service", "echo", 100 * cut + n))
                    for n in range(100)
                ]
                await eventually(
                    lambda before=before: Service.runs.total() > before, STALLED_S, interval=0
                )
                await wire.fail(Fault.REFUSED)
                await eventually(lambda: not runner.host.link.writable, STALLED_S)
                await wire.heal()
            try:
                await until(lambda: answered() == len(calls), told, what="each call is answered")
            except AssertionError as exc:
                lost = {n: Service.runs[n] for n, call in enumerate(calls) if not call.done()}
                raise AssertionError(
                    f"calls without an answer, with how often each ran: {lost}"
                ) from exc
            answers = [call.result() for call in calls]

    assert answers == list(range(1000))


@pytest.mark.timeout(60)
async def test_request_lost_with_its_caller_s_connection_is_not_sent_again(
    rabbit_uri: str,
) -> None:
    Service.runs.clear()
    parts = urlsplit(rabbit_uri)
    async with TcpProxy(str(parts.hostname), int(parts.port or 0)) as wire:
        async with (
            Runner({"AMQP_URI": rabbit_uri}, [Service]),
            Client(wire.uri(rabbit_uri), timeout=30) as client,
        ):
            assert await client.call("service", "echo", 1) == 1
            await wire.fail(Fault.UPSTREAM_BLACKHOLE)
            lost = asyncio.ensure_future(client.call("service", "echo", 2, timeout=5))
            await eventually(lambda: client.link.statistics().published == 2, 30)
            await wire.heal()
            wire.drop()
            await eventually(lambda: client.link.statistics().reconnects == 2, 30)
            await client.link.ready(30)

            assert await client.call("service", "echo", 3) == 3
            with pytest.raises(RpcTimeout):
                await lost

    assert Service.runs == Counter([1, 3])


@pytest.mark.long_variants("give")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["give", "give_async"])
async def test_reply_over_the_broker_s_size_is_an_error_that_names_the_sizes(
    rabbit_uri: str, rabbit_version: tuple[int, ...], method: str
) -> None:
    most = 134217728 if rabbit_version < (4,) else 16777216
    size = 140 * 1024 * 1024
    async with (
        Runner({"AMQP_URI": rabbit_uri}, [Service]),
        Client(rabbit_uri, timeout=60) as client,
    ):
        for _ in range(2):  # found out the first time, known the second
            neighbours = [
                asyncio.ensure_future(client.call("service", "echo", n)) for n in range(100)
            ]
            with pytest.raises(RemoteError, match="MessageTooLarge") as caught:
                await client.call("service", method, size)

            assert await asyncio.gather(*neighbours) == list(range(100))
            assert f"takes {most} at most" in str(caught.value)
