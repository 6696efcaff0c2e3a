"""pika through its asyncio adapter, by hand: an echo with direct reply-to, and durable events."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel

from benchmarks.peers import event_load, rpc_load
from benchmarks.peers.protocol import ECHOED, PREFETCH, Event, amqp_uri
from benchmarks.peers.roles import levels, play, serve_until_stopped
from benchmarks.peers.tally import Tally

ECHO_QUEUE = "bench-pika-echo"
EVENT_EXCHANGE = "bench-pika.events"
EVENT_QUEUE = "bench-pika-departed"


async def rpc_server() -> None:
    """Answer each request on its reply-to address, then ack it."""
    channel = await _open_channel()
    await _done(channel.basic_qos, prefetch_count=PREFETCH)
    await _done(channel.queue_declare, ECHO_QUEUE, auto_delete=True)

    def echo(channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        argument = json.loads(body)["args"][0]
        channel.basic_publish(
            "",
            properties.reply_to,
            json.dumps({"result": argument, "error": None}).encode(),
            pika.BasicProperties(
                content_type="application/json", correlation_id=properties.correlation_id
            ),
        )
        channel.basic_ack(method.delivery_tag)

    await _done(channel.basic_consume, ECHO_QUEUE, echo)
    await serve_until_stopped()


async def rpc_client() -> None:
    """Call through one channel, replies by direct reply-to."""
    channel = await _open_channel()
    waiting: dict[str, asyncio.Future[object]] = {}
    loop = asyncio.get_running_loop()
    ids = map(str, itertools.count())

    def received(
        channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        waiting.pop(properties.correlation_id).set_result(json.loads(body)["result"])

    await _done(channel.basic_consume, "amq.rabbitmq.reply-to", received, auto_ack=True)

    def call() -> asyncio.Future[object]:
        correlation_id = next(ids)
        answer = waiting[correlation_id] = loop.create_future()
        channel.basic_publish(
            "",
            ECHO_QUEUE,
            json.dumps({"args": [ECHOED], "kwargs": {}}).encode(),
            pika.BasicProperties(
                content_type="application/json",
                correlation_id=correlation_id,
                reply_to="amq.rabbitmq.reply-to",
            ),
        )
        return answer

    await rpc_load.drive(call, levels())


async def event_handler() -> None:
    """Count events from a durable classic queue, each acked once handled."""
    channel = await _open_channel()
    await _done(channel.basic_qos, prefetch_count=PREFETCH)
    await _declare_exchange(channel)
    await _done(channel.queue_declare, EVENT_QUEUE, durable=True)
    await _done(channel.queue_bind, EVENT_QUEUE, EVENT_EXCHANGE, "departed")
    tally = Tally()

    def departed(
        channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        tally.add(json.loads(body))
        channel.basic_ack(method.delivery_tag)

    await _done(channel.basic_consume, EVENT_QUEUE, departed)
    await serve_until_stopped()


async def event_publisher() -> None:
    """Publish persistent events, each resolved by its own confirm."""
    channel = await _open_channel()
    await _declare_exchange(channel)
    unconfirmed: dict[int, asyncio.Future[None]] = {}
    loop = asyncio.get_running_loop()
    tags = itertools.count(1)
    oldest = 1

    def confirmed(frame: Any) -> None:
        nonlocal oldest
        method = frame.method
        if isinstance(method, pika.spec.Basic.Nack):
            raise RuntimeError(f"the broker refused event {method.delivery_tag}")
        if method.multiple:
            for tag in range(oldest, method.delivery_tag + 1):
                if tag in unconfirmed:
                    unconfirmed.pop(tag).set_result(None)
            oldest = method.delivery_tag + 1
        else:
            unconfirmed.pop(method.delivery_tag).set_result(None)

    await _done(channel.confirm_delivery, confirmed)

    def publish(event: Event) -> asyncio.Future[None]:
        channel.basic_publish(
            EVENT_EXCHANGE,
            "departed",
            json.dumps(event).encode(),
            pika.BasicProperties(
                content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent.value
            ),
        )
        done = unconfirmed[next(tags)] = loop.create_future()
        return done

    await event_load.publish_bursts(publish)


async def _open_channel() -> Channel:
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Channel] = loop.create_future()

    def failed(_connection: object, reason: BaseException | str) -> None:
        opened.set_exception(RuntimeError(f"cannot connect: {reason!r}"))

    AsyncioConnection(
        pika.URLParameters(amqp_uri()),
        on_open_callback=lambda connection: connection.channel(on_open_callback=opened.set_result),
        on_open_error_callback=failed,
        custom_ioloop=loop,
    )
    return await opened


async def _done(method: Any, *args: Any, **kwargs: Any) -> None:
    """Call a pika method that confirms through `callback`, and wait for that."""
    done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    method(*args, **kwargs, callback=done.set_result)
    await done


async def _declare_exchange(channel: Channel) -> None:
    await _done(channel.exchange_declare, EVENT_EXCHANGE, "topic", durable=True)


if __name__ == "__main__":
    play(
        {
            "rpc-server": rpc_server,
            "rpc-client": rpc_client,
            "event-handler": event_handler,
            "event-publisher": event_publisher,
        }
    )
