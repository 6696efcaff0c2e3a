"""A node of a cluster dies, with whatever it held: what services and their callers see of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from tests.cluster.conftest import Scene

from mycelia import Client, event_handler, rpc
from mycelia.amqp import RabbitLink
from mycelia.broker import PrivateNode
from mycelia.errors import MyceliaError, RpcTimeout
from mycelia.testing import eventually

STALL_S = 10.0
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


async def test_calls_wait_for_the_node_that_holds_the_classic_rpc_queue(scene: Scene) -> None:
    if scene.is_rabbitmq_4:
        pytest.skip("RabbitMQ 4 drops such requests in silence: see the next test")
    holder, other, _ = scene.cluster.nodes
    await scene.serve(Echo, scene.uri(holder))
    assert await scene.home_of("rpc-echo") is holder
    async with Client(scene.uri(other, without=holder), timeout=60) as client:
        assert await client.call("echo", "say", 1) == 1
        await scene.kill(holder)

        calls = [asyncio.create_task(client.call("echo", "say", number)) for number in range(20)]
        done, _ = await asyncio.wait(calls, timeout=1.0)
        assert not done, [task.exception() for task in done]
        await scene.bring_back(holder)

        assert await asyncio.gather(*calls) == list(range(20))


async def test_calls_that_rabbitmq_4_drops_end_at_their_deadline_and_later_ones_are_answered(
    scene: Scene,
) -> None:
    """RabbitMQ 4 goes on routing to a classic queue whose node is dead, and drops what it routes there: nothing returns,
    nothing is refused, so nobody can tell that the request has not arrived."""
    if not scene.is_rabbitmq_4:
        pytest.skip("RabbitMQ 3 returns such requests: see the test before")
    holder, other, _ = scene.cluster.nodes
    await scene.serve(Echo, scene.uri(holder))
    assert await scene.home_of("rpc-echo") is holder
    async with Client(scene.uri(other, without=holder), timeout=60) as client:
        assert await client.call("echo", "say", 1) == 1
        await scene.kill(holder)

        calls = [client.call("echo", "say", number, timeout=3) for number in range(20)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(one) for one in ended} == {RpcTimeout}
        assert 'Nor was there an answer about queue "rpc-echo"' in str(ended[0])
        await scene.bring_back(holder)

        assert await client.call("echo", "say", 2) == 2


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


async def test_confirmed_events_outlive_the_leader_of_their_queue(scene: Scene) -> None:
    """None is lost or refused to its publisher, and publishing goes on within seconds."""
    Ledger.got = set()
    runner = await scene.serve(Ledger, scene.uri(scene.cluster.nodes[0]))
    await scene.await_replicas(QUEUE)
    await runner.stop()  # the queue alone is looked at first
    leader = await scene.home_of(QUEUE)
    confirmed: dict[int, float] = {}
    failed: list[BaseException] = []
    at = iter(range(10**9))
    stopped = asyncio.Event()

    async with Client(scene.uri(leader), timeout=60) as client:

        async def publish() -> None:
            while not stopped.is_set():
                number = next(at)
                try:
                    await client.publish("source", "happened", number, mandatory=True)
                except MyceliaError as exc:
                    failed.append(exc)
                    return
                else:
                    confirmed[number] = time.monotonic()

        publishers = [asyncio.create_task(publish()) for _ in range(16)]
        await eventually(lambda: len(confirmed) > 200, 30)
        await scene.kill(leader)
        after = len(confirmed) + 200
        await eventually(lambda: failed or len(confirmed) > after, 40, what="publishing goes on")
        stopped.set()
        await asyncio.gather(*publishers)

    assert failed == []
    times = sorted(confirmed.values())
    stall = max(later - sooner for sooner, later in itertools.pairwise(times))
    assert stall < STALL_S
    await scene.serve(Ledger, scene.uri(_others(scene, leader)[0]))
    await eventually(lambda: confirmed.keys() <= Ledger.got, 30, what="all that was confirmed")


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


# --- a caller's replies ---------------------------------------------------------------------------------


async def test_caller_whose_own_node_dies_gets_answers_again(scene: Scene) -> None:
    """Its reply queue died with the node: it takes another, at once."""
    service_s, caller_s, _ = scene.cluster.nodes
    await scene.serve(Echo, scene.uri(service_s, without=caller_s), rpc_queue_type="quorum")
    await scene.await_replicas("rpc-echo")
    async with Client(scene.uri(caller_s), timeout=20) as client:
        assert await client.call("echo", "say", 1) == 1
        await scene.kill(caller_s)

        begun = time.monotonic()
        assert await client.call("echo", "say", 2) == 2
        answered_in = time.monotonic() - begun

    assert answered_in < 2 * STALL_S


async def test_link_finds_the_next_node(scene: Scene) -> None:
    dead, *_ = scene.cluster.nodes
    await scene.kill(dead)

    link = RabbitLink(scene.uri(dead))
    begun = time.monotonic()
    await link.open(timeout=15)
    await link.aclose()

    assert time.monotonic() - begun < STALL_S
