"""aio-pika, by hand: an echo with direct reply-to, and durable events.

Its own `patterns.JsonRPC` measured no faster; the hand-made echo has Go's short cuts at the broker.
"""

from __future__ import annotations

import asyncio
import itertools
import json

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.peers import event_load, rpc_load
from benchmarks.peers.protocol import ECHOED, PREFETCH, Event, amqp_uri
from benchmarks.peers.roles import levels, play, serve_until_stopped
from benchmarks.peers.tally import Tally

ECHO_QUEUE = "bench-aio-pika-echo"
EVENT_EXCHANGE = "bench-aio-pika.events"
EVENT_QUEUE = "bench-aio-pika-departed"


async def rpc_server() -> None:
    """Answer each request on its reply-to address, then ack it."""
    async with await aio_pika.connect_robust(amqp_uri()) as connection:
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(PREFETCH)
        queue = await channel.declare_queue(ECHO_QUEUE, auto_delete=True)

        async def echo(request: AbstractIncomingMessage) -> None:
            assert request.reply_to is not None
            argument = json.loads(request.body)["args"][0]
            reply = aio_pika.Message(
                json.dumps({"result": argument, "error": None}).encode(),
                content_type="application/json",
                correlation_id=request.correlation_id,
            )
            # Mandatory, which is its default, would bring every reply back as well: direct reply-to
            # is no queue.
            await channel.default_exchange.publish(reply, request.reply_to, mandatory=False)
            await request.ack()

        await queue.consume(echo)
        await serve_until_stopped()


async def rpc_client() -> None:
    """Call through one channel, replies by direct reply-to."""
    async with await aio_pika.connect_robust(amqp_uri()) as connection:
        channel = await connection.channel(publisher_confirms=False)
        replies = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        waiting: dict[str, asyncio.Future[object]] = {}
        loop = asyncio.get_running_loop()
        ids = map(str, itertools.count())

        async def received(reply: AbstractIncomingMessage) -> None:
            assert reply.correlation_id is not None
            waiting.pop(reply.correlation_id).set_result(json.loads(reply.body)["result"])

        await replies.consume(received, no_ack=True)

        async def call() -> object:
            correlation_id = next(ids)
            answer = waiting[correlation_id] = loop.create_future()
            request = aio_pika.Message(
                json.dumps({"args": [ECHOED], "kwargs": {}}).encode(),
                content_type="application/json",
                correlation_id=correlation_id,
                reply_to="amq.rabbitmq.reply-to",
            )
            await channel.default_exchange.publish(request, ECHO_QUEUE, mandatory=False)
            return await answer

        await rpc_load.drive(call, levels())


async def event_handler() -> None:
    """Count events from a durable classic queue, each acked once handled."""
    async with await aio_pika.connect_robust(amqp_uri()) as connection:
        channel = await connection.channel()
        await channel.set_qos(PREFETCH)
        exchange = await _event_exchange(channel)
        queue = await channel.declare_queue(EVENT_QUEUE, durable=True)
        await queue.bind(exchange, "departed")
        tally = Tally()

        async def departed(message: AbstractIncomingMessage) -> None:
            async with message.process():
                tally.add(json.loads(message.body))

        await queue.consume(departed)
        await serve_until_stopped()


async def event_publisher() -> None:
    """Publish persistent events, each awaited until confirmed."""
    async with await aio_pika.connect_robust(amqp_uri()) as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await _event_exchange(channel)

        async def publish(event: Event) -> object:
            message = aio_pika.Message(
                json.dumps(event).encode(),
                content_type="application/json",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            return await exchange.publish(message, "departed")

        await event_load.publish_bursts(publish)


async def _event_exchange(channel: aio_pika.abc.AbstractChannel) -> aio_pika.abc.AbstractExchange:
    return await channel.declare_exchange(EVENT_EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)


if __name__ == "__main__":
    play(
        {
            "rpc-server": rpc_server,
            "rpc-client": rpc_client,
            "event-handler": event_handler,
            "event-publisher": event_publisher,
        }
    )
