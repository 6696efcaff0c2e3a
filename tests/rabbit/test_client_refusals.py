"""What a broker does not take from a client is told to whoever sent it, at once, and to nobody else.

What is larger than a broker takes: `test_link_refusals.py`, for a link and for a client.
"""

from __future__ import annotations

import asyncio

from mycelia import Client


async def test_first_events_at_once_to_a_new_exchange_all_arrive_at_the_broker(
    rabbit_uri: str,
) -> None:
    async with Client(rabbit_uri, timeout=30) as client:
        results = await asyncio.gather(
            *(client.publish("fresh", "begun", n) for n in range(2500)), return_exceptions=True
        )

    assert results == [None] * 2500
