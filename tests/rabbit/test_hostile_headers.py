"""Messages whose headers cannot be decoded, through a running service: answered, or buried whole; never lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pika
import pytest
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import Client, Runner, event_handler, rpc
from mycelia.amqp import Binding, ConsumeOptions, Delivery, Link, Queue, RabbitLink
from mycelia.testing import eventually


class Target:
    name = "target"
    got: list[Any] = []  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, value: Any) -> Any:
        self.got.append(value)
        return value

    @event_handler("source", "happened")
    async def on_happened(self, payload: Any) -> None:
        self.got.append(payload)


QUEUE = "evt-source-happened--target.on_happened"
BODY = b'{"args": [7], "kwargs": {}}'


def nested(depth: int, kind: str) -> Any:
    value: Any = {} if kind == "table" else []
    for _ in range(depth):
        value = {"k": value} if kind == "table" else [value]
    return value


HOSTILE = [nested(depth, kind) for kind in ("table", "list") for depth in (65, 100, 300)]


def publish_with_pika(uri: str, exchange: str, routing_key: str, reply_to: str | None) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    channel = connection.channel()
    channel.confirm_delivery()  # else what is still on its way when the channel closes may be gone
    for number, value in enumerate(HOSTILE):
        channel.basic_publish(
            exchange,
            routing_key,
            BODY,
            pika.BasicProperties(
                headers={"nameko.call_id_stack": ["a.b.1"], "deep": value},
                content_type="application/json",
                content_encoding="utf-8",
                correlation_id=f"c-{number}",
                reply_to=reply_to,
            ),
        )
    connection.close()


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    Target.got.clear()
    runner = Runner({"AMQP_URI": rabbit_uri, "mycelia": {"grace": 1}}, [Target])
    await runner.start(20)
    link = RabbitLink(rabbit_uri)
    await link.open(20)
    yield link
    await link.aclose()
    await runner.stop()


async def test_events_with_hostile_headers_are_buried_with_body_and_raw_headers(
    link: Link, rabbit_uri: str
) -> None:
    await asyncio.to_thread(publish_with_pika, rabbit_uri, "source.events", "happened", None)
    async with Client(rabbit_uri, timeout=10) as client:
        await client.publish("source", "happened", "sound")
        dead = await read_dead_letters(link, QUEUE, len(HOSTILE), timeout=20)
        await eventually(lambda: Target.got == ["sound"], 30)

    assert {one.properties.correlation_id for one in dead} == {
        f"c-{number}" for number in range(len(HOSTILE))
    }
    for one in dead:
        headers = one.properties.headers or {}
        assert one.body == BODY
        assert headers["x-mycelia-reason"] == "undecodable"
        assert headers["nameko.call_id_stack"] == ["a.b.1"]
        assert b"\x04deep" in headers["x-mycelia-raw-headers"]
        assert "deep" not in headers
    await eventually(lambda: is_empty(link, QUEUE), 30)


async def is_empty(link: Link, queue: str) -> bool:
    return await link.message_count(queue) == 0


async def test_requests_with_hostile_headers_are_answered_with_the_error(
    link: Link, rabbit_uri: str
) -> None:
    replies: list[Delivery] = []
    await link.declare(Queue("answers"), Binding("answers", "nameko-rpc", "answers"))
    await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))

    await asyncio.to_thread(publish_with_pika, rabbit_uri, "nameko-rpc", "target.echo", "answers")
    await eventually(lambda: len(replies) == len(HOSTILE), 20)

    assert {one.properties.correlation_id for one in replies} == {
        f"c-{number}" for number in range(len(HOSTILE))
    }
    for one in replies:
        assert "nested more than 64 deep" in str(json.loads(one.body)["error"])
    assert Target.got == []
    async with Client(rabbit_uri, timeout=10) as client:
        assert await client.call("target", "echo", 1) == 1
