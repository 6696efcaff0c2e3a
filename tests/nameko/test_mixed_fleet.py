"""One service, two instances: stock Nameko and Mycelia share its queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.nameko.processes import NamekoRun, StockClient, await_consumer, queue_state

from mycelia import event_handler, rpc
from mycelia.testing import ServiceBed, eventually, run_services

QUEUE = "evt-mycelium-shared--shared.on_shared"


class Shared:
    """The Mycelia half; the other is `stock_services.Shared`."""

    name = "shared"
    seen: list[Any]

    @rpc
    async def who(self, number: int) -> list[Any]:
        return ["mycelia", number]

    @event_handler("mycelium", "shared")
    def on_shared(self, payload: Any) -> None:
        Shared.seen.append(payload)

    @rpc
    def seen_shared(self) -> Any:
        return ["mycelia", Shared.seen]


@pytest.fixture(scope="module")
def stock_half(module_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamekoRun]:
    directory: Path = tmp_path_factory.mktemp("stock")
    run = NamekoRun(
        "tests.nameko.stock_services:Shared", config={"AMQP_URI": module_uri}, directory=directory
    )
    with run.start():
        run.await_queues("rpc-shared", QUEUE)
        yield run


@pytest.fixture
async def fleet(stock_half: NamekoRun, module_uri: str) -> AsyncIterator[ServiceBed]:
    Shared.seen = []
    # Stock instances can only consume the queue that stock Nameko declares.
    config = {"mycelia": {"event_queue_type": "classic"}}
    async with run_services(Shared, broker=module_uri, config=config) as bed:
        for queue in ("rpc-shared", QUEUE):
            await asyncio.to_thread(
                await_consumer, module_uri, queue, stock_half.check_alive, count=2
            )
        yield bed


async def test_both_instances_answer_calls(fleet: ServiceBed, stock_client: StockClient) -> None:
    ours = await asyncio.gather(*(fleet.client.call("shared", "who", n) for n in range(60)))
    stock = await asyncio.to_thread(stock_client.ask, "call_many", "shared", "who", list(range(60)))

    for answers in (ours, stock):
        assert [number for _, number in answers] == list(range(60))
        assert {instance for instance, _ in answers} == {"stock", "mycelia"}


async def test_each_event_is_handled_once_by_either(fleet: ServiceBed, module_uri: str) -> None:
    for number in range(40):
        await fleet.client.publish("mycelium", "shared", number)

    async def of_stock() -> list[int]:
        while True:
            instance, seen = await fleet.client.call("shared", "seen_shared")
            if instance == "stock":
                return list(seen)

    async def all_handled() -> bool:
        return sorted(Shared.seen + await of_stock()) == list(range(40))

    await eventually(all_handled)
    assert Shared.seen
    assert await of_stock()


async def test_instance_with_quorum_queues_adopts_the_classic_one_it_finds(
    stock_half: NamekoRun, module_uri: str
) -> None:
    """The default asks for a quorum queue. The start must not die of `PRECONDITION_FAILED` beside a stock instance."""
    Shared.seen = []
    async with run_services(Shared, broker=module_uri):
        state = await asyncio.to_thread(queue_state, module_uri, QUEUE)

    assert state == (0, 2)
