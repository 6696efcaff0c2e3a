"""The node that holds a classic queue is down: what needs the queue waits for it, says so, and ends with nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.link.inbox import Inbox

from mycelia import Runner, rpc
from mycelia.amqp import ConsumeOptions, Message, Properties, Queue, RabbitLink
from mycelia.broker.cluster import PrivateCluster
from mycelia.errors import BrokerUnavailable, MyceliaError
from mycelia.testing import eventually

AWAY = r'queue "q".*(down or inaccessible|stopped by supervisor)'
SOON_S = 5
"""More than it takes to notice that a queue does not answer: RabbitMQ 4 does not say so when its node was killed."""


class Fresh:
    name = "fresh"

    @rpc
    async def echo(self, value: int) -> int:
        return value


@pytest.fixture(params=["stopped", "killed"])
async def link(
    request: pytest.FixtureRequest, rabbit_cluster: PrivateCluster
) -> AsyncIterator[RabbitLink]:
    """On the first node, while the third holds the queue "q" (and `rpc-fresh`) and has been stopped or killed."""
    up, down = rabbit_cluster.nodes[0], rabbit_cluster.nodes[2]
    holder = RabbitLink(down.uri())
    await holder.open(timeout=30)
    for name in ("q", "rpc-fresh"):
        await holder.delete_queue(name)
        await holder.declare(
            Queue(name, arguments={} if "rpc" in name else {"x-queue-type": "classic"})
        )
    await holder.publish(Message("", "q", b"kept", Properties(delivery_mode=2)))
    await holder.aclose()
    await asyncio.to_thread(down.stop if request.param == "stopped" else down.kill)
    await asyncio.to_thread(rabbit_cluster.await_members)
    link = RabbitLink(up.uri())
    await link.open(timeout=30)
    yield link
    await link.aclose()


async def start_again(cluster: PrivateCluster) -> None:
    await asyncio.to_thread(cluster.start, leash=True)


@pytest.mark.timeout(240)
async def test_everything_waits_for_the_queues_node_and_says_so(
    link: RabbitLink, rabbit_cluster: PrivateCluster, caplog: pytest.LogCaptureFixture
) -> None:
    declared = Queue("q", arguments={"x-queue-type": "classic"})
    inbox = Inbox(acks=True)

    # with a bound, the error names the queue and what is the matter
    with pytest.raises(BrokerUnavailable, match=AWAY):
        await link.declare(declared, timeout=SOON_S)
    with pytest.raises(BrokerUnavailable, match=AWAY):
        await link.consume("q", inbox, ConsumeOptions(), timeout=SOON_S)
    # a fresh service does not end over it
    runner = Runner({"AMQP_URI": rabbit_cluster.nodes[0].uri(), "mycelia": {"grace": 1}}, [Fresh])
    starting = asyncio.ensure_future(runner.start(120))
    waiting = [
        starting,
        asyncio.ensure_future(link.declare(declared)),
        asyncio.ensure_future(link.consume("q", inbox)),
    ]
    _, pending = await asyncio.wait(waiting, timeout=SOON_S)
    assert len(pending) == len(waiting)
    assert any(one.startswith("declare_waiting") for one in caplog.messages)
    assert any(one.startswith("consumer_waiting queue=q") for one in caplog.messages)
    assert len(caplog.messages) < 30

    await start_again(rabbit_cluster)

    try:
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
        await inbox.wait_for(b"kept", 20)
    finally:
        await runner.stop()


@pytest.mark.timeout(240)
async def test_running_consumer_is_back_with_the_node(
    rabbit_cluster: PrivateCluster, caplog: pytest.LogCaptureFixture
) -> None:
    up, down = rabbit_cluster.nodes[0], rabbit_cluster.nodes[2]
    holder = RabbitLink(down.uri())
    await holder.open(timeout=30)
    await holder.declare(Queue("running"))
    await holder.aclose()
    link = RabbitLink(up.uri())
    await link.open(timeout=30)
    inbox = Inbox(acks=True)
    await link.declare(Queue("running"))
    await link.consume("running", inbox)
    await link.publish(Message("", "running", b"before", Properties(delivery_mode=2)))
    await inbox.wait_for(b"before")

    await asyncio.to_thread(down.stop)
    await eventually(
        lambda: any(one.startswith("consumer_lost queue=running") for one in caplog.messages), 20
    )
    await start_again(rabbit_cluster)

    async def arrives() -> bool:
        try:
            await link.publish(Message("", "running", b"after", Properties()), timeout=5)
        except MyceliaError:
            return False
        return b"after" in inbox.bodies

    await eventually(arrives, 60, interval=0.2)
    assert sum(one.startswith("redeclare_failed") for one in caplog.messages) <= 2
    await link.aclose()
