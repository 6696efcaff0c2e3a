"""A handler that takes longer than the broker waits for its acknowledgement: it runs once, and so do its neighbours."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.rabbit.test_ack_timeout import set_limits

from mycelia import event_handler, rpc
from mycelia.broker.node import PrivateNode
from mycelia.testing import eventually, run_services


class Service:
    name = "service"
    runs: Counter[Any] = Counter()  # noqa: RUF012  shared on purpose
    gate: asyncio.Event

    @event_handler("source", "happened")
    async def happened(self, number: int) -> None:
        self.runs[number] += 1
        if number == 0:
            await self.gate.wait()

    @rpc(concurrency=2)
    async def ask(self, number: int) -> int:
        self.runs[f"rpc {number}"] += 1
        await self.gate.wait()
        return number


@pytest.fixture
async def impatient(own_rabbit_node: PrivateNode) -> AsyncIterator[PrivateNode]:
    """A broker that gives a delivery one second."""
    node = own_rabbit_node
    await set_limits(node, timeout=1_000, tick=250)
    yield node
    await set_limits(node, timeout=1_800_000, tick=60_000)


@pytest.mark.timeout(120)
async def test_what_outlasts_the_broker_s_patience_runs_once(
    impatient: PrivateNode, rabbit_version: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    if rabbit_version >= (4, 3):
        pytest.skip("RabbitMQ 4.3 cancels the consumer instead, or sets no limit")
    Service.runs.clear()
    Service.gate = asyncio.Event()
    async with run_services(Service, broker=impatient.uri(), timeout=60) as bed:
        calls = [asyncio.ensure_future(bed.client.call("service", "ask", n)) for n in range(4)]
        await asyncio.gather(*(bed.client.publish("source", "happened", n) for n in range(20)))

        def timed_out(queue: str) -> int:
            start = f"delivery_ack_timeout queue={queue} "
            return sum(line.startswith(start) for line in caplog.messages)

        events = "evt-source-happened--service.happened"
        await eventually(lambda: timed_out(events) >= 2 and timed_out("rpc-service") >= 2, 60)
        Service.gate.set()

        assert await asyncio.gather(*calls) == list(range(4))

        def is_settled() -> bool:
            queues = {queue["name"]: queue for queue in impatient.api.queues("/")}
            return all(queues[name].get("messages") == 0 for name in (events, "rpc-service"))

        await eventually(lambda: asyncio.to_thread(is_settled), 30, interval=0.2)

    assert Service.runs == Counter([*range(20), *(f"rpc {n}" for n in range(4))])
    assert "Raise consumer_timeout" in caplog.text
