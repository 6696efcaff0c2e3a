"""What a broker does not take from a client is told to whoever sent it, at once, and to nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mycelia import Client, Runner, rpc
from mycelia.broker.node import PrivateNode
from mycelia.errors import MessageTooLarge

LIMIT = 65_536


class Echo:
    name = "echo"

    @rpc
    async def length(self, value: str) -> int:
        return len(value)


@pytest.fixture
async def client(own_rabbit_node: PrivateNode) -> AsyncIterator[Client]:
    """Of a service, on a broker that takes 64 KiB at most."""

    async def limit(size: int) -> None:
        expression = f"application:set_env(rabbit, max_message_size, {size})"
        expression += f", persistent_term:put(max_message_size, {size})."  # RabbitMQ 4 looks here
        await asyncio.to_thread(own_rabbit_node.ctl, "eval", expression)

    await limit(LIMIT)
    uri = own_rabbit_node.uri()
    async with Runner({"AMQP_URI": uri}, [Echo]), Client(uri, timeout=20) as client:
        yield client
    await limit(134_217_728)


async def test_request_over_the_broker_s_limit_fails_at_once_and_its_neighbours_are_answered(
    client: Client,
) -> None:
    started = time.monotonic()

    async def call(n: int) -> Any:
        return await client.call("echo", "length", "x" * (2 * LIMIT if n % 10 == 5 else n))

    results = await asyncio.gather(*(call(n) for n in range(100)), return_exceptions=True)

    assert time.monotonic() - started < 10
    for n, result in enumerate(results):
        if n % 10 != 5:
            assert result == n
            continue
        assert isinstance(result, MessageTooLarge)
        assert result.max_bytes == LIMIT
        assert result.size_bytes > 2 * LIMIT


async def test_first_events_at_once_to_a_new_exchange_all_arrive_at_the_broker(
    rabbit_uri: str,
) -> None:
    async with Client(rabbit_uri, timeout=30) as client:
        results = await asyncio.gather(
            *(client.publish("fresh", "begun", n) for n in range(2500)), return_exceptions=True
        )

    assert results == [None] * 2500
