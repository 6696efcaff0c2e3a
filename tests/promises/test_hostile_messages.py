"""Whatever a message or an error holds: every message ends handled or as a dead letter, every request is answered.

Two hundred at once, of messages and errors that resist it, in memory and at a real broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pika
import pytest
from tests.runtime.dead_letter_box import read_dead_letters
from tests.unit.entrypoints.hostile_errors import HOSTILE_ERRORS

from mycelia import Binding, Exchange, Queue, consume, rpc
from mycelia.amqp import ConsumeOptions, Delivery, Link, LinkOptions, Message, Properties, connect
from mycelia.errors import RemoteError
from mycelia.testing import eventually, run_services

COUNT = 200
NAMES = list(HOSTILE_ERRORS)

handled: list[int] = []


def work(number: int) -> int:
    """Every third call returns; the others raise what resists being told, each kind in its turn."""
    if number % 3 == 0:
        handled.append(number)
        return number
    raise HOSTILE_ERRORS[NAMES[number // 3 % len(NAMES)]]()


LONG = "q" * 251
"""A queue whose name leaves no room for `.dead`."""


class Service:
    name = "service"

    @consume(Queue("classic-def"))
    def classic_def(self, number: int) -> None:
        work(number)

    @consume(Queue("classic-async"))
    async def classic_async(self, number: int) -> None:
        work(number)

    @consume("quorum-def")
    def quorum_def(self, number: int) -> None:
        work(number)

    @consume("quorum-async")
    async def quorum_async(self, number: int) -> None:
        work(number)

    @consume(Queue(LONG))
    async def long(self, number: int) -> None:
        work(number)

    @rpc
    def ask_def(self, number: int) -> int:
        return work(number)

    @rpc
    async def ask_async(self, number: int) -> int:
        return work(number)

    @rpc
    def fail_at_length(self, size: int) -> None:
        raise ValueError("x" * size)


@pytest.fixture(autouse=True)
def _nothing_handled() -> None:
    handled.clear()


@pytest.fixture
async def link(broker: str) -> AsyncIterator[Link]:
    link = connect(broker, LinkOptions(name="bare"))
    await link.open(15)
    yield link
    await link.aclose()


def hostile_properties(number: int) -> Properties:
    """As a publisher may send them: large, strange, marked as if by ourselves or by the broker."""
    headers: dict[str, Any] = {
        0: {},
        1: {"large": "x" * 120_000},
        2: {f"h{n}": "y" * 1000 for n in range(118)},
        3: {"x-mycelia-attempt": 2**62, "x-mycelia-returns": -1, "x-mycelia-traceback": [1]},
        4: {"x-delivery-count": 10**9, "x-acquired-count": "many", "x-death": "none"},
        5: {"deep": deep(60), "bytes": b"\xff", "none": None, "nested": [[[[]]], {"a": {}}]},
        6: {"name": "Ann \udcff", "CC": ["nowhere", "else"]},
        7: {"x-mycelia-expires-at-ms": "soon", "x-mycelia-expiration": "never"},
    }[number % 8]
    return Properties(
        "application/json",
        "utf-8",
        headers,
        priority=number % 256,
        correlation_id=str(number),
        expiration="600000" if number % 5 == 0 else None,
        type="t" * 255,
        timestamp=2**60,
    )


def deep(levels: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for _ in range(levels):
        table = {"d": table}
    return table


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "queue",
    ["classic-def", "classic-async", "quorum-def", "quorum-async", pytest.param(LONG, id="long")],
)
@pytest.mark.long_variants(
    "memory-classic-def",
    "memory-quorum-async",
    "memory-long",
    "rabbit-classic-async",
    "rabbit-quorum-def",
)
async def test_every_message_is_handled_or_dead(broker: str, link: Link, queue: str) -> None:
    async with run_services(Service, broker=broker, timeout=15):
        await asyncio.gather(
            *(
                link.publish(Message("", queue, str(n).encode(), hostile_properties(n)))
                for n in range(COUNT)
            )
        )
        expected = [number for number in range(COUNT) if number % 3]
        dead = await read_dead_letters(link, queue, len(expected), timeout=60)
        await eventually(lambda: len(handled) == COUNT - len(expected))

    assert Counter(handled) == Counter(number for number in range(COUNT) if number % 3 == 0)
    assert Counter(int(letter.body) for letter in dead) == Counter(expected)
    for letter in dead:
        headers = letter.properties.headers or {}
        assert letter.properties.correlation_id == letter.body.decode()
        assert headers["x-mycelia-reason"] == "handler_error"
    assert await link.message_count(queue) == 0


@pytest.mark.long_variants("memory-ask_async", "rabbit-ask_def")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["ask_def", "ask_async"])
async def test_every_request_is_answered(broker: str, link: Link, method: str) -> None:
    replies: list[Delivery] = []
    await link.declare(Exchange("nameko-rpc"), Queue("answers", exclusive=True))
    await link.declare(Binding("answers", "nameko-rpc", "answers"))
    await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))
    async with run_services(Service, broker=broker, timeout=15):
        for number in range(COUNT):
            properties = hostile_properties(number)
            properties.reply_to = "answers"
            (properties.headers or {})["nameko.deadline_ms"] = 10**13
            body = b'{"args": [%d], "kwargs": {}}' % number
            await link.publish(Message("nameko-rpc", f"service.{method}", body, properties))
        await eventually(lambda: len(replies) >= COUNT, 60, what="every request answered")

    answered = Counter(int(reply.properties.correlation_id or "") for reply in replies)
    assert answered == Counter(range(COUNT))
    assert await link.message_count("rpc-service") == 0


async def test_error_as_long_as_the_broker_takes_travels_shortened() -> None:
    """Its text would travel twice, as value and as argument."""
    async with run_services(Service, timeout=60) as bed:
        with pytest.raises(RemoteError) as raised:
            await bed.client.call("service", "fail_at_length", 72 * 1024 * 1024)
    assert raised.value.value == "x" * 1_000_000 + "…"


def publish_with_pika(uri: str, queue: str, messages: list[tuple[bytes, dict[str, Any]]]) -> None:
    """What our own encoder refuses: headers nested deeper than we read them."""
    with pika.BlockingConnection(pika.URLParameters(uri)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for body, headers in messages:
            properties = pika.BasicProperties(
                content_type="application/json",
                headers=headers,
                correlation_id=body.decode(),
                reply_to="answers",
                priority=3,
            )
            exchange = "nameko-rpc" if queue.startswith("service.") else ""
            channel.basic_publish(exchange, queue, body, properties)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("queue", ["classic-async", "quorum-def"])
async def test_message_with_headers_that_cannot_be_read_is_dead_with_its_body(
    rabbit_uri: str, queue: str
) -> None:
    bodies = [str(number).encode() for number in range(50)]
    async with run_services(Service, broker=rabbit_uri, timeout=15) as bed:
        link = bed.container(Service).host.link
        await asyncio.to_thread(
            publish_with_pika, rabbit_uri, queue, [(body, {"deep": deep(300)}) for body in bodies]
        )
        dead = await read_dead_letters(link, queue, 50, timeout=60)
        assert await link.message_count(queue) == 0

    assert Counter(letter.body for letter in dead) == Counter(bodies)
    for letter in dead:
        assert letter.properties.correlation_id == letter.body.decode()
        assert (letter.properties.headers or {})["x-mycelia-reason"] in (
            "undecodable",
            "handler_error",
        )


@pytest.mark.timeout(120)
async def test_request_with_headers_that_cannot_be_read_is_answered(rabbit_uri: str) -> None:
    replies: list[Delivery] = []
    async with run_services(Service, broker=rabbit_uri, timeout=15) as bed:
        link = bed.container(Service).host.link
        await link.declare(Queue("answers"), Binding("answers", "nameko-rpc", "answers"))
        consumer = await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))
        await asyncio.to_thread(
            publish_with_pika,
            rabbit_uri,
            "service.ask_async",
            [(str(number).encode(), {"deep": deep(300)}) for number in range(50)],
        )
        await eventually(lambda: len(replies) == 50, 30)
        await consumer.aclose()

    ids = Counter(reply.properties.correlation_id for reply in replies)
    assert ids == Counter(str(number) for number in range(50))
    assert all(b'"error": {' in r.body or b'"error":{' in r.body for r in replies)
