"""FastStream on RabbitMQ: subscribers, `request` for RPC, `publish` for events.

`RabbitBroker.request` takes a lock for each broker object, so that a client has one call in
flight however many wait. The role `rpc-client-replies` goes round it the documented way, with
`publish(reply_to=...)` and a subscriber on a reply queue of its own; it is listed as a peer of
its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from typing import Any, cast

from faststream import AckPolicy
from faststream.rabbit import (
    Channel,
    ExchangeType,
    RabbitBroker,
    RabbitExchange,
    RabbitMessage,
    RabbitQueue,
    RabbitResponse,
)

from benchmarks.peers import event_load, rpc_load
from benchmarks.peers.protocol import ANSWER_WITHIN, ECHOED, PREFETCH, Event, amqp_uri
from benchmarks.peers.roles import levels, play, serve_until_stopped
from benchmarks.peers.tally import Tally

ECHO_QUEUE = "bench-faststream-echo"
EVENT_QUEUE = RabbitQueue("bench-faststream-departed", durable=True, routing_key="departed")
EVENT_EXCHANGE = RabbitExchange("bench-faststream.events", type=ExchangeType.TOPIC, durable=True)


def _broker(*, confirms: bool) -> RabbitBroker:
    # DEBUG is below the level of its logger: a log line for each message is no one's idea of a
    # running service, and would only slow this peer down.
    return RabbitBroker(
        amqp_uri(),
        default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=confirms),
        log_level=logging.DEBUG,
    )


async def rpc_server() -> None:
    """Echo: what the subscriber returns is the reply."""
    broker = _broker(confirms=False)

    @broker.subscriber(RabbitQueue(ECHO_QUEUE, durable=False, auto_delete=True))
    async def echo(request: dict[str, Any]) -> RabbitResponse:
        # Mandatory, which is its default, would bring every reply back as well: direct reply-to
        # is no queue.
        return RabbitResponse({"result": request["args"][0], "error": None}, mandatory=False)

    async with broker:
        await broker.start()
        await serve_until_stopped()


async def rpc_client() -> None:
    """Call with `request`, FastStream's own RPC."""
    async with _broker(confirms=False) as broker:
        await broker.start()

        async def call() -> object:
            reply = await broker.request(
                {"args": [ECHOED], "kwargs": {}}, ECHO_QUEUE, timeout=ANSWER_WITHIN
            )
            answer: Any = await reply.decode()
            return answer["result"]

        await rpc_load.drive(call, levels())


async def rpc_client_replies() -> None:
    """Call with `publish` and collect the replies from a queue of our own."""
    broker = _broker(confirms=False)
    reply_queue = f"bench-faststream-replies-{uuid.uuid4()}"
    waiting: dict[str, asyncio.Future[object]] = {}
    loop = asyncio.get_running_loop()
    ids = map(str, itertools.count())

    @broker.subscriber(
        RabbitQueue(reply_queue, durable=False, exclusive=True), ack_policy=AckPolicy.ACK_FIRST
    )
    async def received(reply: dict[str, Any], message: RabbitMessage) -> None:
        waiting.pop(message.correlation_id).set_result(reply["result"])

    async with broker:
        await broker.start()

        async def call() -> object:
            correlation_id = next(ids)
            answer = waiting[correlation_id] = loop.create_future()
            await broker.publish(
                {"args": [ECHOED], "kwargs": {}},
                ECHO_QUEUE,
                reply_to=reply_queue,
                correlation_id=correlation_id,
            )
            return await answer

        await rpc_load.drive(call, levels())


async def event_handler() -> None:
    """Count events from a durable classic queue; FastStream acks once the handler returned."""
    broker = _broker(confirms=True)
    tally = Tally()

    @broker.subscriber(EVENT_QUEUE, EVENT_EXCHANGE)
    async def departed(event: dict[str, Any]) -> None:
        tally.add(cast(Event, event))

    async with broker:
        await broker.start()
        await serve_until_stopped()


async def event_publisher() -> None:
    """Publish persistent events, each awaited until confirmed."""
    async with _broker(confirms=True) as broker:
        await broker.start()

        async def publish(event: Event) -> object:
            return await broker.publish(
                cast(dict[str, Any], event),
                exchange=EVENT_EXCHANGE,
                routing_key="departed",
                persist=True,
            )

        await event_load.publish_bursts(publish)


if __name__ == "__main__":
    play(
        {
            "rpc-server": rpc_server,
            "rpc-client": rpc_client,
            "rpc-client-replies": rpc_client_replies,
            "event-handler": event_handler,
            "event-publisher": event_publisher,
        }
    )
