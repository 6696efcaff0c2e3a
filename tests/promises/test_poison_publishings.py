"""Publishings over which the broker closes the channel, without a word which: those beside them go on in a moment."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mycelia import Client, event_handler, rpc
from mycelia.amqp import Message, Properties
from mycelia.errors import PublishRejected
from mycelia.testing import eventually, run_services

POISON: dict[str, dict[str, Any]] = {
    "delivery mode": {"delivery_mode": 77},
    "copies to nobody": {"headers": {"CC": "not a list"}},
}
PATIENCE_S = 30.0


class Service:
    name = "service"
    handled: list[int] = []  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, number: int) -> int:
        return number

    @event_handler("source", "happened")
    async def happened(self, number: int) -> None:
        self.handled.append(number)


async def poison(client: Client, properties: dict[str, Any]) -> None:
    with pytest.raises(PublishRejected, match="406"):
        await client.link.publish(
            Message("amq.direct", "k", b"1", Properties(**properties)), timeout=PATIENCE_S
        )


@pytest.mark.timeout(90)
@pytest.mark.parametrize("kind", POISON)
@pytest.mark.parametrize("count", [1, 10])
async def test_who_waits_while_the_culprit_is_found_goes_on_when_it_is(
    rabbit_uri: str, kind: str, count: int
) -> None:
    Service.handled.clear()
    async with run_services(Service, broker=rabbit_uri, timeout=PATIENCE_S) as bed:
        client = bed.client
        assert await client.call("service", "echo", -1) == -1
        started = time.monotonic()
        poisoning = [asyncio.ensure_future(poison(client, POISON[kind])) for _ in range(count)]
        await eventually(lambda: not client.link.writable, 30, interval=0)
        calls = [asyncio.ensure_future(client.call("service", "echo", n)) for n in range(50)]
        events = [asyncio.ensure_future(client.publish("source", "happened", n)) for n in range(50)]

        assert await asyncio.gather(*calls) == list(range(50))
        await asyncio.gather(*events, *poisoning)
        assert time.monotonic() - started < PATIENCE_S / 2
        await eventually(lambda: sorted(Service.handled) == list(range(50)), 30)
