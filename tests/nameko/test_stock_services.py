"""Mycelia calls stock Nameko services, and events go both ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.nameko.processes import NamekoRun, StockClient
from tests.nameko.raw_rpc import raw_call
from tests.nameko.shared_errors import PlaneNotFound

from mycelia import (
    Client,
    EventDispatcher,
    RpcProxy,
    event_handler,
    get_current_call,
    register_remote_error,
    rpc,
)
from mycelia.errors import (
    IncorrectSignature,
    MethodNotFound,
    RemoteError,
    UnserializableValueError,
)
from mycelia.testing import eventually, run_services

register_remote_error(PlaneNotFound)

pytestmark = pytest.mark.usefixtures("stock_run")


class Mycelium:
    """A Mycelia service between stock ones."""

    name = "mycelium"
    stock = RpcProxy("stock", timeout=5)
    emit = EventDispatcher()
    seen: list[Any]

    @rpc
    def call_stock(self, method: str, *args: Any) -> Any:
        return self.stock[method](*args)

    @rpc
    async def call_stock_async(self, method: str, *args: Any) -> Any:
        return await self.stock[method](*args)

    @rpc
    async def announce(self, event_type: str, payload: Any) -> None:
        await self.emit(event_type, payload)

    @rpc
    def context_data(self) -> Any:
        call = get_current_call()
        assert call is not None
        return {**call.context, "call_id_stack": call.call_id_stack}

    @rpc
    def fail(self, text: str) -> None:
        raise ValueError(text)

    @rpc
    def fail_registered(self, text: str) -> None:
        raise PlaneNotFound(text)

    @rpc
    def unserializable(self) -> Any:
        return object()

    @event_handler("stock", "landed", queue_type="classic")
    def on_landed(self, payload: Any) -> None:
        Mycelium.seen.append(payload)


@pytest.fixture
async def client(module_uri: str) -> AsyncIterator[Client]:
    async with Client(module_uri, timeout=10) as client:
        yield client


@pytest.fixture
async def mycelium(module_uri: str) -> AsyncIterator[Client]:
    """The service `mycelium` runs; a client of it."""
    Mycelium.seen = []
    async with run_services(Mycelium, broker=module_uri) as bed:
        yield bed.client


async def test_arguments_and_result_travel_unchanged(client: Client) -> None:
    result = await client.call("stock", "echo", 1, 2.5, "ü", None, [True], key={"a": [1]})

    assert result == {"args": [1, 2.5, "ü", None, [True]], "kwargs": {"key": {"a": [1]}}}


async def test_error_of_a_stock_service_is_a_remote_error(client: Client) -> None:
    with pytest.raises(RemoteError) as raised:
        await client.call("stock", "fail")

    assert (raised.value.exc_type, raised.value.value) == ("ValueError", "no plane N1")


async def test_registered_error_of_a_stock_service_is_its_own_class(client: Client) -> None:
    with pytest.raises(PlaneNotFound, match="N2"):
        await client.call("stock", "fail_registered")


async def test_protocol_errors_of_a_stock_service_are_ours(client: Client) -> None:
    with pytest.raises(MethodNotFound, match="nothing"):
        await client.call("stock", "nothing")
    with pytest.raises(IncorrectSignature, match="value"):
        await client.call("stock", "one")


async def test_unserializable_result_of_a_stock_service_is_an_error_reply(client: Client) -> None:
    with pytest.raises(UnserializableValueError, match="Unserializable value: `<object"):
        await client.call("stock", "unserializable")


async def test_msgpack_request_is_answered_in_msgpack(module_uri: str) -> None:
    config = {"serializer": "msgpack"}
    async with Client(module_uri, config=config) as client:
        assert await client.call("stock", "one", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize("method", ["call_stock", "call_stock_async"])
async def test_proxy_in_a_service_reaches_a_stock_one(mycelium: Client, method: str) -> None:
    assert await mycelium.call("mycelium", method, "one", "x") == "x"


async def test_context_passes_unharmed_through_a_stock_hop(mycelium: Client) -> None:
    """mycelium → stock: the call ids of both, and the deadline, arrive there; see `nameko.<key>` headers."""
    context = await mycelium.call("mycelium", "call_stock", "context_data", timeout=5)

    services = [call_id.split(".")[0] for call_id in context["call_id_stack"]]
    assert services[-2:] == ["mycelium", "stock"]
    assert abs(context["deadline_ms"] / 1000 - (time.time() + 5)) < 4


async def test_context_passes_unharmed_from_us_over_stock_to_us(
    mycelium: Client, module_uri: str
) -> None:
    """Stock Nameko sends on every header that it got, with its prefix; ours must still be what they were."""
    deadline_ms = int((time.time() + 60) * 1000)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {
        "traceparent": traceparent,
        "baggage": "tenant=acme",
        "nameko.auth_token": "secret",
        "nameko.deadline_ms": deadline_ms,
        "nameko.call_id_stack": ["web.get.1"],
        "x-death": [{"count": 1}],
    }
    request = {"args": ["context_data"], "kwargs": {}}

    reply = await asyncio.to_thread(raw_call, module_uri, "stock.relay", request, headers=headers)

    context = reply["result"]
    assert context["auth_token"] == "secret"
    assert context["traceparent"] == traceparent
    assert context["baggage"] == "tenant=acme"
    assert context["deadline_ms"] == deadline_ms
    assert [i.split(".")[0] for i in context["call_id_stack"]] == ["web", "stock", "mycelium"]
    assert "x-death" not in context  # a header of one message is not context


async def test_errors_of_ours_reach_stock_callers_under_nameko_names(mycelium: Client) -> None:
    relay = [
        ("fail", "boom", ["RemoteError", "ValueError boom"]),
        ("fail_registered", "N3", ["PlaneNotFound", "N3"]),
        ("nothing", "", ["MethodNotFound", "nothing"]),
    ]
    for method, text, expected in relay:
        assert await mycelium.call("stock", "relay_error", method, text) == expected
    kind, text = await mycelium.call("stock", "relay_error", "announce", "only one")
    assert (kind, "missing" in text) == ("IncorrectSignature", True)
    kind, text = await mycelium.call("stock", "relay_error", "unserializable")
    assert kind == "RemoteError"
    assert text.startswith("UnserializableValueError")


async def test_event_of_a_stock_service_is_handled_here(mycelium: Client) -> None:
    await mycelium.call("stock", "announce", "landed", {"tail": "N1"})

    await eventually(lambda: Mycelium.seen == [{"tail": "N1"}])


@pytest.mark.parametrize("event_type", ["pooled", "single", "cast"])
async def test_event_of_ours_is_handled_by_a_stock_service(
    mycelium: Client, event_type: str
) -> None:
    await mycelium.call("mycelium", "announce", event_type, {"n": 1})

    async def handled() -> bool:
        return [event_type, {"n": 1}] in await mycelium.call("stock", "seen")

    await eventually(handled)


async def test_client_publishes_events_as_a_stock_dispatcher_does(
    client: Client, stock_client: StockClient
) -> None:
    await client.publish("stock_client", "announced", "by mycelia")
    stock_client.dispatch("stock_client", "announced", "by nameko")

    async def handled() -> bool:
        seen = await client.call("stock", "seen")
        return ["announced", "by mycelia"] in seen and ["announced", "by nameko"] in seen

    await eventually(handled)


def test_stock_process_runs_nameko_itself(stock_run: NamekoRun) -> None:
    """Guards the suite: with a hand-over these tests would compare Mycelia with itself."""
    assert "starting services: stock" in stock_run.output
