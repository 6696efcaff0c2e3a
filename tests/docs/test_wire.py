"""The messages in contracts/README.md are those that travel, and its client works."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.documents import ROOT, blocks_of, table_rows

from mycelia import Binding, Client, EventDispatcher, Exchange, Queue, event_handler, rpc
from mycelia.amqp import ConsumeOptions, Delivery, connect
from mycelia.errors import IncorrectSignature
from mycelia.testing import eventually, run_services

DOCUMENT = ROOT / "contracts" / "README.md"
ENVELOPES = [json.loads(b.text) for b in blocks_of(DOCUMENT, "json") if '"exchange"' in b.text]
(ERROR_BODY,) = (json.loads(b.text) for b in blocks_of(DOCUMENT, "json") if '"exc_type"' in b.text)

VARIES = ("expiration", "correlation_id", "reply_to", "message_id", "timestamp", "routing_key")


class Hello:
    name = "hello"
    emit = EventDispatcher()

    @rpc
    async def greet(self, who: str) -> str:
        await self.emit("greeted", {"who": who})
        return f"Hello, {who}!"

    @event_handler("hello", "greeted")
    def count(self, event: dict[str, str]) -> None:
        event["who"]


def described(delivery: Delivery) -> dict[str, Any]:
    """A message as the document shows one."""
    properties = delivery.properties
    names = (*properties.__slots__,)
    present = {name: getattr(properties, name) for name in names}
    return {
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
        "properties": {name: value for name, value in present.items() if value is not None},
        "body": json.loads(delivery.body),
    }


def shape(value: Any, key: str = "") -> Any:
    """The same without what differs from message to message: of that, only the type (and the form of ids)."""
    if isinstance(value, dict):
        return {name: shape(item, name) for name, item in value.items()}
    if key == "nameko.call_id_stack":
        return [re.sub(r"[0-9a-f-]{36}$", "<uuid>", item) for item in value]
    if key in VARIES and not (key == "routing_key" and not re.fullmatch(r"[0-9a-f-]{36}", value)):
        return type(value).__name__
    return type(value).__name__ if key == "nameko.deadline_ms" else value


@pytest.fixture
async def captured() -> AsyncIterator[list[dict[str, Any]]]:
    """What travels for a good call, the event it causes, and a bad call."""
    taken: list[Delivery] = []
    async with run_services(Hello) as bed, Client(bed.broker, name="mycelia_cli") as client:
        tap = connect(bed.broker)
        await tap.open(5)
        await tap.declare(
            Queue("tap", exclusive=True),
            Exchange("nameko-rpc"),
            Exchange("hello.events"),
            Binding("tap", "nameko-rpc", "#"),
            Binding("tap", "hello.events", "#"),
        )
        await tap.consume("tap", taken.extend, ConsumeOptions(no_ack=True))
        assert await client.call("hello", "greet", "Ada") == "Hello, Ada!"
        await eventually(lambda: len(taken) == 3)
        with pytest.raises(IncorrectSignature):
            await client.call("hello", "greet")
        await eventually(lambda: len(taken) == 5)
        yield [described(delivery) for delivery in taken]
        await tap.aclose()


async def test_captured_messages_are_those_shown(captured: list[dict[str, Any]]) -> None:
    request, reply, event = ENVELOPES

    assert [shape(message) for message in captured[:3]] == [
        shape(request),
        shape(event),
        shape(reply),
    ]


async def test_captured_error_is_the_one_shown(captured: list[dict[str, Any]]) -> None:
    body = captured[4]["body"]
    traceback = body["error"].pop("traceback")
    shown = dict(ERROR_BODY, error=dict(ERROR_BODY["error"]))
    first, last = shown["error"].pop("traceback").split("…")

    assert body == shown
    assert traceback.startswith(first.rstrip())
    assert traceback.endswith(last)


def _names_in_table() -> dict[str, str]:
    section = DOCUMENT.read_text("utf-8").split("## Exchanges and queues")[1].split("\n## ")[0]
    return {row[1].strip("`"): row[2] for row in list(table_rows(section))[1:]}


async def test_queues_are_declared_as_the_table_says() -> None:
    table = _names_in_table()
    async with run_services(Hello) as bed:
        container = bed.container(Hello)
        link = container.host.link
        (handler,) = (e for e in container.entrypoints if e.method_name == "count")
        queue, _ = handler.topology()

        assert "classic, no arguments" in table["rpc-{service}"]
        assert await link.message_count("rpc-hello") == 0
        assert "quorum" in table["evt-{source}-{event}--{service}.{method}"]
        assert queue.name == "evt-hello-greeted--hello.count"
        assert queue.arguments == {"x-queue-type": "quorum"}


async def test_plain_client_prints_what_is_shown(rabbit_uri: str, tmp_path: Path) -> None:
    (program,) = blocks_of(DOCUMENT, "python")
    (printed,) = blocks_of(DOCUMENT, "text")
    file = tmp_path / program.name
    file.write_text(program.text, "utf-8")

    async with run_services(Hello, broker=rabbit_uri):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(file)],
            env=os.environ | {"AMQP_URI": rabbit_uri},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert done.stdout == printed.text, done.stderr
