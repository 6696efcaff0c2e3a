"""A queue that AMQP would have the server name: one of the instance's own, which a reconnect finds again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import kombu
import pika.exceptions
from tests.nameko.fault_tools import dead_letter, proxied
from tests.nameko.raw_rpc import publish_raw

from mycelia import Queue, consume
from mycelia.testing import eventually, run_services

FANOUT = kombu.Exchange("news", type="fanout")


class Reader:
    name = "reader"
    got: list[Any] = []  # noqa: RUF012  shared on purpose

    @consume(kombu.Queue("", exchange=FANOUT, exclusive=True, durable=False))
    async def on_news(self, payload: Any) -> None:
        if payload == "bad":
            raise ValueError(payload)
        self.got.append(payload)

    @consume(Queue("", exclusive=True))
    async def on_nothing(self, payload: Any) -> None: ...


async def tell(uri: str, text: str) -> None:
    """Past the broken network, straight to the broker."""
    body = json.dumps(text).encode()
    await asyncio.to_thread(publish_raw, uri, "news", "", body, content_type="application/json")


async def test_it_gets_its_messages_also_after_a_reconnect(rabbit_uri: str) -> None:
    Reader.got.clear()
    async with proxied(rabbit_uri) as (proxy, uri), run_services(Reader, broker=uri):
        await tell(rabbit_uri, "before")
        await eventually(lambda: Reader.got == ["before"], timeout=10)

        proxy.drop()

        async def hears_again() -> bool:
            # The broker nacks for a queue that is going away with its connection; the next try finds the new one.
            with contextlib.suppress(pika.exceptions.NackError):
                await tell(rabbit_uri, "after")
            return "after" in Reader.got

        await eventually(hears_again, timeout=20, interval=0.1)


async def test_each_instance_has_one_of_its_own(rabbit_uri: str) -> None:
    Reader.got.clear()
    async with (
        run_services(Reader, broker=rabbit_uri),
        run_services(Reader, broker=rabbit_uri),
    ):
        await tell(rabbit_uri, "all")
        await eventually(lambda: Reader.got == ["all", "all"], timeout=10)


async def test_what_it_cannot_handle_lies_where_the_next_start_finds_it(rabbit_uri: str) -> None:
    async with run_services(Reader, broker=rabbit_uri):
        await tell(rabbit_uri, "bad")
        body, headers = await dead_letter(rabbit_uri, "reader.on_news")

    assert body == b'"bad"'
    assert headers["x-mycelia-queue"].startswith("reader.on_news-")
