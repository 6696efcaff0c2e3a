"""A message that has gone through pauses, a dead-letter queue and `mycelia dlq redrive` arrives as it was published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import kombu
import msgspec
import pytest
from tests.cli.commands import MyceliaCommand

from mycelia import (
    Exchange,
    Publisher,
    Retry,
    consume,
    event_handler,
    fixed,
    get_current_call,
    rpc,
)
from mycelia.amqp import Link, Message, Properties, connect
from mycelia.broker.node import PrivateNode
from mycelia.testing import eventually, run_services

AIRPORT = kombu.Exchange("airport", type="topic")
LANDINGS = kombu.Queue(
    "landings", AIRPORT, routing_key="landed.#", queue_arguments={"x-max-priority": 5}
)


class Tower:
    """Fails while it is foggy."""

    name = "tower"
    is_foggy = True
    seen: list[tuple[str, Any]] = []  # noqa: RUF012  shared on purpose
    publish = Publisher(Exchange("airport", "topic"))

    @consume(LANDINGS, retry=Retry(attempts=3, backoff=fixed("250ms", "500ms")))
    async def landed(self, payload: Any) -> None:
        self.take("landed")

    @event_handler("airline", "delayed", retry=Retry(attempts=2, backoff=fixed("250ms")))
    async def delayed(self, payload: Any) -> None:
        self.take("delayed")

    @rpc
    async def land_later(self) -> None:
        await self.publish.later("500ms", {"n": 1}, routing_key="landed.late")

    def take(self, method: str) -> None:
        call = get_current_call()
        assert call is not None
        assert call.message is not None
        self.seen.append((method, call.attempt, as_seen(call.message)))
        if self.is_foggy:
            raise LookupError("fog")


def as_seen(message: Any) -> dict[str, Any]:
    """What its publisher has said of the message."""
    properties = msgspec.structs.asdict(message.properties)
    headers = {
        name: value
        for name, value in (properties.pop("headers") or {}).items()
        if not name.startswith("x-mycelia-")
    }
    return {
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "body": message.body,
        "headers": headers,
        **properties,
    }


RICH = Properties(
    content_type="application/json",
    content_encoding="utf-8",
    headers={
        "gate": 7,
        "deep": {"list": [1, "two"]},
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    },
    delivery_mode=2,
    priority=3,
    correlation_id="correlated",
    reply_to="nobody",
    expiration="600000",
    message_id="message-1",
    timestamp=1_700_000_000,
    type="landing",
    app_id="a program",
)


@pytest.fixture(autouse=True)
def _foggy() -> None:
    Tower.is_foggy = True
    Tower.seen.clear()


@pytest.fixture
def mycelia() -> Iterator[MyceliaCommand]:
    command = MyceliaCommand()
    yield command
    command.close()


@pytest.fixture
async def link(rabbit_uri: str) -> AsyncIterator[Link]:
    link = connect(rabbit_uri)
    await link.open(15)
    yield link
    await link.aclose()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", [(), ("--to-exchange",)])
async def test_redriven_message_arrives_as_it_was_published(
    link: Link,
    mycelia: MyceliaCommand,
    rabbit_uri: str,
    rabbit_node: PrivateNode,
    tmp_path: Path,
    way: tuple[str, ...],
) -> None:
    management = f"http://127.0.0.1:{rabbit_node.management_port}"

    async def dead(queue: str) -> int:
        try:
            return await link.message_count(f"{queue}.dead")
        except Exception:  # noqa: BLE001  it is declared with the first
            return 0

    async def all_are_dead() -> bool:
        return (await dead("landings"), await dead(delayed_queue)) == (2, 1)

    delayed_queue = "evt-airline-delayed--tower.delayed"
    async with run_services(Tower, broker=rabbit_uri, timeout=20) as bed:
        await link.publish(Message("airport", "landed.JFK.7", b'{"n": 7}', RICH, mandatory=True))
        await link.publish(Message("airline.events", "delayed", b"[1]", RICH, mandatory=True))
        await (await bed.client.service("tower")).land_later()
        await eventually(lambda: len(Tower.seen) == 3 + 2 + 3, 30)
        await eventually(all_are_dead, 20, interval=0.1)
        failed = list(Tower.seen)
        Tower.seen.clear()
        Tower.is_foggy = False

        done = await asyncio.to_thread(
            mycelia,
            *("dlq", "redrive", "landings.dead", f"{delayed_queue}.dead", *way),
            *("--management", management),
            cwd=tmp_path,
            AMQP_URI=rabbit_uri,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        await eventually(lambda: len(Tower.seen) == 3, 20)

    assert len({view["routing_key"] for _, _, view in failed}) == 3
    for method, _, view in failed:  # also of the second and third attempt
        assert view == first_of(failed, method, view["body"])
    for method, attempt, view in Tower.seen:
        assert attempt == 1
        assert view == first_of(failed, method, view["body"])
    rich = next(view for _, _, view in Tower.seen if view["body"] == b'{"n": 7}')
    assert (rich["exchange"], rich["routing_key"]) == ("airport", "landed.JFK.7")
    assert rich["headers"] == RICH.headers
    said = msgspec.structs.asdict(RICH)
    assert {name: rich[name] for name in said if name != "headers"} == {
        name: value for name, value in said.items() if name != "headers"
    }


def first_of(failed: list[tuple[str, int, Any]], method: str, body: bytes) -> Any:
    """What the handler saw of the message at its first attempt."""
    return next(view for name, n, view in failed if (name, n, view["body"]) == (method, 1, body))
