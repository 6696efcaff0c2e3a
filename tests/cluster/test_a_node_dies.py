"""A node of a cluster dies, with whatever it held: what services and their callers see of it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.cluster.conftest import Scene

from mycelia import Client, event_handler, rpc
from mycelia.amqp import RabbitLink
from mycelia.broker import PrivateNode
from mycelia.testing import eventually

STALL_S = 5.0
"""For the dead node to be noticed, a leader to be elected and the connection to be made anew."""


class Echo:
    name = "echo"

    @rpc
    async def say(self, value: Any) -> Any:
        return value


class Ledger:
    name = "ledger"
    got: set[int]

    @event_handler("source", "happened")
    async def happened(self, number: int) -> None:
        self.got.add(number)


QUEUE = "evt-source-happened--ledger.happened"


def _others(scene: Scene, dead: PrivateNode) -> list[PrivateNode]:
    return [node for node in scene.cluster.nodes if node is not dead]


# --- a classic queue is where its node is -----------------------------------------------------------


async def test_service_started_while_its_rpc_queue_is_away_waits_for_it(scene: Scene) -> None:
    holder, other, _ = scene.cluster.nodes
    first = await scene.serve(Echo, scene.uri(holder))
    await first.stop()
    assert await scene.home_of("rpc-echo") is holder
    await scene.kill(holder)

    starting = asyncio.create_task(scene.serve(Echo, scene.uri(other), 120))
    done, _ = await asyncio.wait([starting], timeout=3.0)
    assert not done, starting.exception()
    await scene.bring_back(holder)
    await starting

    async with Client(scene.uri(other), timeout=30) as client:
        assert await client.call("echo", "say", 1) == 1


# --- a quorum queue goes on ---------------------------------------------------------------------------


async def test_events_are_handled_on_when_the_consumer_s_node_dies(scene: Scene) -> None:
    Ledger.got = set()
    mine, other, _ = scene.cluster.nodes
    await scene.serve(Ledger, scene.uri(mine))
    await scene.await_replicas(QUEUE)
    async with Client(scene.uri(other, without=mine), timeout=60) as client:
        await client.publish("source", "happened", 0, mandatory=True)
        await eventually(lambda: Ledger.got == {0}, 20)

        await scene.kill(mine)
        for number in range(1, 50):
            await client.publish("source", "happened", number, mandatory=True)

        await eventually(lambda: Ledger.got == set(range(50)), 30)


async def test_calls_to_a_quorum_queue_go_on_when_its_leader_dies(scene: Scene) -> None:
    await scene.serve(Echo, scene.uri(), rpc_queue_type="quorum")
    await scene.await_replicas("rpc-echo")
    leader = await scene.home_of("rpc-echo")
    (caller_s, *_) = _others(scene, leader)
    async with Client(scene.uri(caller_s, without=leader), timeout=20) as client:
        assert await client.call("echo", "say", -1) == -1
        await scene.kill(leader)

        begun = time.monotonic()
        answers = await asyncio.gather(*(client.call("echo", "say", n) for n in range(50)))

    assert answers == list(range(50))
    assert time.monotonic() - begun < 2 * STALL_S


async def test_link_finds_the_next_node(scene: Scene) -> None:
    dead, *_ = scene.cluster.nodes
    await scene.kill(dead)

    link = RabbitLink(scene.uri(dead))
    begun = time.monotonic()
    await link.open(timeout=15)
    await link.aclose()

    assert time.monotonic() - begun < STALL_S
