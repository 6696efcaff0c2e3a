"""A node of a cluster dies that leads a partition of a log: writers and readers go on, nothing is lost, nothing is read twice."""

from __future__ import annotations

from tests.cluster.conftest import Scene
from tests.logs.ledger import Ledger
from tests.logs.shapes import layout, writing
from tests.progress import until

from mycelia.amqp import LinkOptions, RabbitLink
from mycelia.testing import eventually


async def test_log_goes_on_when_the_node_dies_that_leads_a_partition(scene: Scene) -> None:
    ledger = Ledger(layout(3))
    stream = "flights.departed-0"
    options = LinkOptions(heartbeat=2, connect_timeout=2.0)
    writes, reads = RabbitLink(scene.uri(), options), RabbitLink(scene.uri(), options)
    await writes.open(timeout=30)
    await reads.open(timeout=30)

    async def some_more(what: str, more: int = 1000) -> None:
        goal = ledger.confirmed_count + more
        await until(
            lambda: ledger.confirmed_count > goal, lambda: ledger.confirmed_count, what=what
        )

    try:
        async with writing(writes, ledger.of, timeout=90) as writer, ledger.reading(reads):
            await scene.await_replicas(stream)
            async with ledger.appending(writer):
                await some_more("appends begin")
                leader = await scene.home_of(stream)
                await scene.kill(leader)
                await some_more("appends go on without the node")

                async def is_led_by_another() -> bool:
                    return await scene.home_of(stream) is not leader

                await eventually(is_led_by_another, 60)
                await scene.bring_back(leader)
                await some_more("appends go on with all nodes")
            await ledger.settle()
    finally:
        await writes.aclose()
        await reads.aclose()
