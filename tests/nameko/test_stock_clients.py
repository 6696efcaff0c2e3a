"""Stock Nameko clients, kombu and plain pika call a Mycelia service."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import kombu
import pytest
from tests.nameko.processes import StockClient
from tests.nameko.raw_rpc import raw_call
from tests.nameko.shared_errors import PlaneNotFound

from mycelia import context, event_handler, rpc
from mycelia.nameko import AuthToken
from mycelia.testing import ServiceBed, eventually, run_services


class Planes:
    name = "planes"
    token = AuthToken()
    seen: list[Any]

    @rpc
    async def echo(self, value: Any) -> Any:
        return value

    @rpc
    def slowly(self, value: Any) -> Any:
        return value

    @rpc
    def fail(self) -> None:
        raise ValueError("no plane N1")

    @rpc
    def fail_registered(self) -> None:
        raise PlaneNotFound("N2")

    @rpc
    def unserializable(self) -> Any:
        return object()

    @rpc
    def who_asks(self) -> Any:
        return self.token

    @rpc
    def sends_back(self, fails: bool) -> str:
        context.reply.update(cache="hit", language="xx")
        if fails:
            raise ValueError("no plane N1")
        return "answered"

    @event_handler("stock_client", "landed", queue_type="classic")
    def on_landed(self, payload: Any) -> None:
        Planes.seen.append(payload)


@pytest.fixture
async def planes(module_uri: str) -> AsyncIterator[ServiceBed]:
    Planes.seen = []
    config = {"ACCEPT": ["json", "msgpack"]}
    async with run_services(Planes, broker=module_uri, config=config) as bed:
        yield bed


@pytest.fixture(scope="module")
def msgpack_client(module_uri: str) -> Any:
    client = StockClient({"AMQP_URI": module_uri, "serializer": "msgpack"})
    yield client
    client.close()


async def _call(client: StockClient, method: str, *args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(client.call, "planes", method, *args, **kwargs)


@pytest.mark.parametrize("method", ["echo", "slowly"])
async def test_cluster_proxy_gets_results(
    planes: ServiceBed, stock_client: StockClient, method: str
) -> None:
    value = {"a": [1, 2.5, "ü", None]}

    assert await _call(stock_client, method, value) == value
    assert await _call(stock_client, method, value=value) == value


async def test_service_proxy_gets_results(planes: ServiceBed, stock_client: StockClient) -> None:
    result = await asyncio.to_thread(
        stock_client.ask, "call_one_service", "planes", "echo", "alone"
    )

    assert result == "alone"


async def test_many_calls_at_once_each_get_their_own_result(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    items = list(range(50))

    assert (
        await asyncio.to_thread(stock_client.ask, "call_many", "planes", "slowly", items) == items
    )


async def test_msgpack_client_gets_results(planes: ServiceBed, msgpack_client: StockClient) -> None:
    assert await _call(msgpack_client, "echo", {"n": [1, None]}) == {"n": [1, None]}
    assert (await _call(msgpack_client, "fail"))["text"] == "ValueError no plane N1"


async def test_context_of_a_stock_client_arrives(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    assert await _call(stock_client, "who_asks") == "token of the stock client"


async def test_error_is_nameko_remote_error(planes: ServiceBed, stock_client: StockClient) -> None:
    error = await _call(stock_client, "fail")

    assert error == {
        "type": "RemoteError",
        "text": "ValueError no plane N1",
        "exc_type": "ValueError",
        "value": "no plane N1",
    }


async def test_registered_error_is_rebuilt(planes: ServiceBed, stock_client: StockClient) -> None:
    error = await _call(stock_client, "fail_registered")

    assert (error["type"], error["text"]) == ("PlaneNotFound", "N2")


async def test_protocol_errors_have_nameko_classes(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    missing = await _call(stock_client, "nothing")
    wrong = await _call(stock_client, "echo", 1, 2)

    assert (missing["type"], missing["text"]) == ("MethodNotFound", "nothing")
    assert wrong["type"] == "IncorrectSignature"
    assert "3 were given" in wrong["text"] or "too many" in wrong["text"]


async def test_unserializable_result_is_an_error_reply(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    error = await _call(stock_client, "unserializable")

    assert error["type"] == "RemoteError"
    assert error["exc_type"] == "UnserializableValueError"


async def test_unknown_service_is_known_at_once(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    error = await asyncio.to_thread(stock_client.call, "nobody", "nothing")

    assert error["type"] == "UnknownService"


async def test_event_of_the_stock_dispatcher_is_handled(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    await asyncio.to_thread(stock_client.dispatch, "stock_client", "landed", {"tail": "N1"})

    await eventually(lambda: Planes.seen == [{"tail": "N1"}])


def _call_with_kombu(uri: str, serializer: str) -> tuple[Any, str]:
    """A request as `contracts/` describes it, sent with kombu alone; the decoded reply and its content type."""
    replies: list[Any] = []
    with kombu.Connection(uri) as connection:
        exchange = kombu.Exchange("nameko-rpc", type="topic", durable=True)
        key = str(uuid.uuid4())
        queue = kombu.Queue(
            f"kombu-{key}", exchange, routing_key=key, exclusive=True, auto_delete=True
        )

        def on_message(body: Any, message: Any) -> None:
            replies.append((body, message.content_type))
            message.ack()

        consumer = connection.Consumer(queue, callbacks=[on_message], accept=[serializer])
        with consumer, connection.Producer() as producer:
            producer.publish(
                {"args": ["x"], "kwargs": {}},
                exchange=exchange,
                routing_key="planes.echo",
                serializer=serializer,
                reply_to=key,
                correlation_id="1",
            )
            while not replies:
                connection.drain_events(timeout=5)
    return replies[0]


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
async def test_kombu_client_is_answered_in_its_own_format(
    planes: ServiceBed, module_uri: str, serializer: str
) -> None:
    body, content_type = await asyncio.to_thread(_call_with_kombu, module_uri, serializer)

    assert body == {"result": "x", "error": None}
    assert serializer in content_type


async def test_plain_pika_client_is_answered(planes: ServiceBed, module_uri: str) -> None:
    request = {"args": [], "kwargs": {"value": 7}}

    reply = await asyncio.to_thread(raw_call, module_uri, "planes.echo", request)

    assert reply == {"result": 7, "error": None}


async def test_context_data_that_travels_back_is_passed_over(
    planes: ServiceBed, stock_client: StockClient
) -> None:
    def ask(fails: bool) -> Any:
        return stock_client.call("planes", "sends_back", fails)

    assert await asyncio.to_thread(ask, False) == "answered"
    assert (await asyncio.to_thread(ask, True))["text"] == "ValueError no plane N1"
