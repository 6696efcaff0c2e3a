"""What a process does between a log or a queue and what comes out of it: flows, and what stands beside them.

| role | does |
|---|---|
| `flow-count` | a flow over `bench.in`: tumbling counts of each key, to `bench.out`; durable state |
| `flow-updates` | the same, with a result for each batch, committed as soon as the commit before is done: for latency |
| `flow-hop` | a flow that gives a record for each record |
| `client-count` | the bare client over the same entries: a dictionary of counts, kept nowhere |
| `client-hop` | the bare client: reads an entry, appends its records |
| `faststream-hop`, `aio-pika-hop` | a message from a queue, a message to another, confirmed, then the ack |
| `append` | appends `FLOW_RATE` records a second to `bench.in` for `FLOW_SECONDS`, in an open loop, and says `appended` |

A role says `ready` when it is there. Those over a log say `begun`, with the number of records, when the first have gone through: a flow with its first
commit, the bare client with as many records; so what a start takes (partitions are shared out, state is claimed) is in no rate. Those that give
no results of their own say `handled` when `FLOW_RECORDS` have gone through.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from typing import Any

from benchmarks.peers.protocol import PREFETCH, amqp_uri, say
from benchmarks.peers.roles import play, serve_until_stopped

QUEUE_IN, QUEUE_OUT = "bench-hop-in", "bench-hop-out"
BASE_MS = 1_700_000_000_000
WINDOW_MS = 10_000
KEYS = 1_000

BEGUN = 50_000
"""Records after which the bare client has begun: those of a flow's largest commit."""


def records() -> int:
    """How many the harness has put there."""
    return int(os.environ["FLOW_RECORDS"])


async def _run_flow(service: type) -> None:
    from mycelia import Runner
    from mycelia.flow import FlowHandler, PartitionCommit

    state = os.environ["FLOW_STATE"]
    config = {"AMQP_URI": amqp_uri(), "mycelia": {"flows": {"state": state}}}
    async with Runner(config, [service]) as runner:
        (container,) = runner.containers
        (handler,) = [one for one in container.entrypoints if isinstance(one, FlowHandler)]

        is_told = False

        def begun(commit: PartitionCommit) -> None:
            nonlocal is_told
            if commit.records and not is_told:
                is_told = True
                say("begun", records=handler.statistics().records)

        handler.observers.append(begun)
        await serve_until_stopped()


async def flow_count() -> None:
    """Windows that give a result as they close."""
    from benchmarks.flow_logs import Counting

    await _run_flow(Counting)


async def flow_updates() -> None:
    """Windows that give a result for each batch."""
    from benchmarks.flow_logs import Updating

    await _run_flow(Updating)


async def flow_hop() -> None:
    """A record for each record."""
    from benchmarks.flow_logs import Hopping

    await _run_flow(Hopping)


async def client_count() -> None:
    """Count, and keep nothing."""
    from benchmarks.flow_logs import SOURCE
    from mycelia import Client

    async with Client(amqp_uri()) as client, SOURCE.reader(client.link, 0, "first") as reader:
        say("ready")
        left = records()
        counts: dict[tuple[str, int], int] = {}
        async for entry in reader:
            for one in entry.values:
                cell = one.key, one.at_ms // WINDOW_MS
                counts[cell] = counts.get(cell, 0) + 1
            left = _count_down(left, len(entry.values))
            if left <= 0:
                break
        say("handled", count=sum(counts.values()))


async def client_hop() -> None:
    """Append what is read."""
    from benchmarks.flow_logs import HOPPED, SOURCE, Result
    from mycelia import Client

    async with Client(amqp_uri()) as client, SOURCE.reader(client.link, 0, "first") as reader:
        writer = await HOPPED.open_writer(client.link, 30.0)
        say("ready")
        left = records()
        slots = asyncio.Semaphore(16)

        async def append(values: list[Result]) -> None:
            await writer.append_many(values)
            slots.release()

        async with asyncio.TaskGroup() as appends:
            async for entry in reader:
                await slots.acquire()
                appends.create_task(append([Result(one.key, one.value) for one in entry.values]))
                left = _count_down(left, len(entry.values))
                if left <= 0:
                    break
        await writer.aclose()
        await serve_until_stopped()


async def append() -> None:
    """Append as many a second, in equal steps of 5 ms, whatever becomes of those before; then the record that ends all."""
    from benchmarks.flow_logs import SOURCE, Reading
    from mycelia import Client

    rate, seconds = float(os.environ["FLOW_RATE"]), float(os.environ["FLOW_SECONDS"])
    async with Client(amqp_uri()) as client:
        writer = await SOURCE.open_writer(client.link, 30.0)
        began, sent = time.perf_counter(), 0
        async with asyncio.TaskGroup() as appends:
            while (elapsed := time.perf_counter() - began) < seconds:
                now = time.time()
                due = int(rate * elapsed) - sent
                at_ms = int(now * 1000)
                if due:
                    some = [Reading(f"k{(sent + n) % KEYS}", at_ms, 1, now) for n in range(due)]
                    appends.create_task(writer.append_many(some))
                    sent += due
                await asyncio.sleep(0.005)
        await writer.append(Reading("end", int(time.time() * 1000), 1, time.time()))
        await writer.aclose()
    say("appended", records=sent)


def _count_down(left: int, taken: int) -> int:
    """How many are left; says `begun` once."""
    before = records() - left
    if before < min(BEGUN, records()) <= before + taken:
        say("begun", records=before + taken)
    return left - taken


class _Left:
    """Counts down to `handled`."""

    def __init__(self) -> None:
        self.left = records()

    def one(self) -> None:
        self.left -= 1
        if self.left == 0:
            say("handled", count=records())


async def faststream_hop() -> None:
    """FastStream's own way: a subscriber whose result is published."""
    import logging

    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    broker = RabbitBroker(
        amqp_uri(),
        default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=True),
        log_level=logging.DEBUG,
    )
    count = _Left()

    @broker.subscriber(RabbitQueue(QUEUE_IN, durable=True))
    async def hop(event: dict[str, Any]) -> None:
        await broker.publish(
            {"key": event["key"], "count": event["value"]}, QUEUE_OUT, persist=True
        )
        count.one()

    async with broker:
        await broker.declare_queue(RabbitQueue(QUEUE_OUT, durable=True))
        await broker.start()
        await serve_until_stopped()


async def aio_pika_hop() -> None:
    """By hand."""
    import json

    import aio_pika
    from aio_pika.abc import AbstractIncomingMessage

    async with await aio_pika.connect_robust(amqp_uri()) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.set_qos(PREFETCH)
        source = await channel.declare_queue(QUEUE_IN, durable=True)
        await channel.declare_queue(QUEUE_OUT, durable=True)
        count = _Left()

        async def hop(message: AbstractIncomingMessage) -> None:
            event = json.loads(message.body)
            made = aio_pika.Message(
                json.dumps({"key": event["key"], "count": event["value"]}).encode(),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await channel.default_exchange.publish(made, QUEUE_OUT)
            await message.ack()
            count.one()

        await source.consume(hop)
        await serve_until_stopped()


if __name__ == "__main__":
    # As `mycelia run` has it; of all roles, so that none is collected for more often, or interrupted sooner, than another.
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    sys.setswitchinterval(0.001)
    play(
        {
            "flow-count": flow_count,
            "flow-updates": flow_updates,
            "flow-hop": flow_hop,
            "client-count": client_count,
            "client-hop": client_hop,
            "faststream-hop": faststream_hop,
            "aio-pika-hop": aio_pika_hop,
            "append": append,
        }
    )
