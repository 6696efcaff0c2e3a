"""`Client` and `BlockingClient`: shared, reopened, closed at the wrong moment, used before they are open."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.runtime.conftest import Serve

from mycelia import BlockingClient, Client, Exchange, event_handler, rpc
from mycelia.amqp import Link
from mycelia.amqp.memory.broker import broker_at
from mycelia.errors import (
    BrokerUnavailable,
    ConfigError,
    RpcTimeout,
    RuntimeStateError,
    TopologyError,
    UnknownService,
    Unroutable,
    UnserializableValueError,
)
from mycelia.testing import eventually


class Service:
    name = "service"
    got: list[Any] = []  # noqa: RUF012  shared on purpose

    @rpc
    async def echo(self, *args: Any, **kwargs: Any) -> list[Any]:
        return [list(args), kwargs]

    @rpc
    async def never(self) -> None:
        self.got.append("begun")
        await asyncio.Event().wait()

    @event_handler("tower", "closed")
    async def closed(self, payload: Any) -> None:
        self.got.append(payload)


@pytest.fixture(autouse=True)
def _nothing_got() -> None:
    Service.got.clear()


async def test_client_is_shared_among_tasks(serve: Serve, client: Client) -> None:
    await serve(Service)

    answers = await asyncio.gather(*(client.call("service", "echo", n) for n in range(200)))

    assert answers == [[[n], {}] for n in range(200)]


async def test_first_calls_at_once_share_one_reply_queue(serve: Serve, uri: str) -> None:
    await serve(Service)
    async with Client(uri, name="program") as client:
        await asyncio.gather(*(client.call("service", "echo") for _ in range(20)))

        queues = [
            name for name in broker_at(uri).queue_names if name.startswith("rpc.reply-program-")
        ]
        assert len(queues) == 1

    assert not [
        name for name in broker_at(uri).queue_names if name.startswith("rpc.reply-program-")
    ]


async def test_arguments_named_like_the_client_s_own_reach_the_service_through_a_proxy(
    serve: Serve, client: Client
) -> None:
    await serve(Service)
    service = await client.service("service", timeout=15)

    assert await client.call("service", "echo", service=1, method=2) == [
        [],
        {"service": 1, "method": 2},
    ]
    assert await service.echo(timeout=9) == [[], {"timeout": 9}]
    assert await service["echo"].options(timeout=15)(1) == [[1], {}]


async def test_client_that_is_not_open_says_so(uri: str) -> None:
    client = Client(uri)

    for attempt in (client.call("service", "echo"), client.publish("tower", "closed")):
        with pytest.raises(RuntimeStateError, match="the client is not open"):
            await attempt
    with pytest.raises(RuntimeStateError, match="the client is not open"):
        await client.service("service")
    await client.aclose()


async def test_client_can_be_opened_again_after_closing(serve: Serve, uri: str) -> None:
    await serve(Service)
    client = Client(uri)

    for _ in range(2):
        async with client:
            assert await client.call("service", "echo", 1) == [[1], {}]
            await client.publish("tower", "closed", 1, mandatory=True)
    with pytest.raises(RuntimeStateError, match="the client is not open"):
        await client.call("service", "echo", 1)


async def test_closing_fails_the_calls_under_way(serve: Serve, uri: str) -> None:
    await serve(Service)
    client = Client(uri, timeout=5)
    await client.open()
    call = asyncio.ensure_future(client.call("service", "never"))
    await eventually(lambda: Service.got == ["begun"])

    await client.aclose()

    with pytest.raises(BrokerUnavailable, match=r"service\.never: the caller was closed"):
        await call


async def test_client_survives_a_lost_connection(serve: Serve, client: Client, uri: str) -> None:
    await serve(Service)
    await client.call("service", "echo")
    pending = asyncio.ensure_future(client.call("service", "echo", "pending"))

    broker_at(uri).drop_connections()

    assert await client.call("service", "echo", "after") == [["after"], {}]
    assert await pending == [["pending"], {}]


async def test_errors_of_a_client_s_calls_and_events(serve: Serve, client: Client) -> None:
    await serve(Service)

    with pytest.raises(UnknownService):
        await client.call("nobody", "echo")
    with pytest.raises(RpcTimeout):
        await client.call("service", "never", timeout=0.05)
    with pytest.raises(UnserializableValueError):
        await client.call("service", "echo", object())
    with pytest.raises(Unroutable):
        await client.publish("tower", "unheard", mandatory=True)
    with pytest.raises(UnserializableValueError):
        await client.publish("tower", "closed", object())
    assert await client.call("service", "echo") == [[], {}]


def test_blocking_client_that_is_not_open_says_so(uri: str) -> None:
    client = BlockingClient(uri)

    with pytest.raises(RuntimeStateError, match="the client is not open"):
        client.call("service", "echo")
    with pytest.raises(RuntimeStateError, match="the client is not open"):
        client.publish("tower", "closed")
    client.close()


def test_blocking_client_opens_and_closes_as_often_as_asked(uri: str) -> None:
    client = BlockingClient(uri)

    for _ in range(2):
        client.open()
        client.open()
        with pytest.raises(UnknownService):
            client.call("nobody", "echo", timeout=2)
        client.publish("tower", "closed", 1)
        client.close()
        client.close()

    assert not [t for t in threading.enumerate() if t.name == "mycelia-client"]


def test_blocking_client_that_cannot_be_opened_leaves_no_thread() -> None:
    with pytest.raises(ConfigError, match="no link speaks"):
        BlockingClient("redis://here").open()

    assert not [t for t in threading.enumerate() if t.name == "mycelia-client"]


@pytest.fixture
def declared(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what the client's link is asked to declare."""
    names: list[str] = []
    declare = client.link.declare

    async def note(*parts: Any, **options: Any) -> None:
        names.extend(part.name for part in parts)
        await declare(*parts, **options)

    monkeypatch.setattr(client.link, "declare", note)
    return names


async def test_first_events_at_once_declare_their_exchange_once(
    client: Client, declared: list[str]
) -> None:
    await asyncio.gather(*(client.publish("fresh", "begun", n) for n in range(2500)))

    assert declared == ["fresh.events"]


async def test_cancelled_first_event_does_not_take_the_others_with_it(
    client: Client, declared: list[str]
) -> None:
    tasks = [asyncio.ensure_future(client.publish("fresh", "begun", n)) for n in range(20)]
    await asyncio.sleep(0)

    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None] * 19
    assert declared == ["fresh.events"]


async def test_exchange_that_cannot_be_declared_fails_its_events_and_is_tried_again(
    client: Client, link: Link
) -> None:
    await link.declare(Exchange("odd.events", type="direct"))

    for _ in range(2):
        results = await asyncio.gather(
            *(client.publish("odd", "begun", n) for n in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [TopologyError] * 5


async def test_event_waits_for_its_exchange_no_longer_than_it_may(client: Client, uri: str) -> None:
    broker_at(uri).stop()

    with pytest.raises(BrokerUnavailable, match=r"fresh\.events"):
        await client.publish("fresh", "begun", 1, timeout=0.05)
    waiting = asyncio.ensure_future(client.publish("fresh", "begun", 2))
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(BrokerUnavailable, match=r"fresh\.events"):
        await waiting
