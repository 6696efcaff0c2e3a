"""A service that is stopped, gracefully, in the middle of its work: what it has done is done."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from tests.progress import until

from mycelia import Queue, consume
from mycelia.amqp import Message, Properties, connect
from mycelia.testing import run_services


@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue_type", ["quorum", pytest.param("classic", marks=pytest.mark.long)])
async def test_what_a_stopped_service_has_done_does_not_come_again(
    rabbit_uri: str, queue_type: str
) -> None:
    """Also with hundreds of messages that go back at the same time: the broker keeps settlements back then."""
    done: Counter[int] = Counter()
    rng = random.Random(5)
    queue = Queue("work", arguments={"x-queue-type": queue_type})

    class Stops:
        name = "stops"

        @consume(queue, concurrency=100, prefetch=2000)
        async def work(self, number: int) -> None:
            await asyncio.sleep(rng.choice((0.01, 0.03, 0.1)))
            done[number] += 1

    link = connect(rabbit_uri)
    await link.open(15)
    try:
        await link.declare(queue)
        await asyncio.gather(
            *(
                link.publish(
                    Message("", "work", b"%d" % n, Properties("application/json", delivery_mode=2))
                )
                for n in range(4000)
            )
        )
    finally:
        await link.aclose()
    for _ in range(4):
        before = done.total()
        config = {"mycelia": {"grace": 0.06}}
        async with run_services(Stops, broker=rabbit_uri, timeout=15, config=config):
            await until(
                lambda before=before: done.total() >= before + 100, done.total, what="some done"
            )
    async with run_services(Stops, broker=rabbit_uri, timeout=15):
        await until(lambda: len(done) == 4000, done.total, what="all 4000")

    assert done == Counter(range(4000))
