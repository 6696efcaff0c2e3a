"""`EventDispatcher` and `Publisher` in both kinds of worker, and which handlers an event reaches."""

from __future__ import annotations

from typing import Any

import kombu
import pytest
from tests.runtime.conftest import Invoke, Serve

from mycelia import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    Binding,
    Client,
    EventDispatcher,
    Exchange,
    Publisher,
    Queue,
    RpcProxy,
    consume,
    event_handler,
    rpc,
)
from mycelia.amqp import ConsumeOptions, Delivery, Link
from mycelia.call import Call, Next, Outcome
from mycelia.errors import ConfigError, Unroutable
from mycelia.runtime import Runner
from mycelia.testing import eventually

JOBS = kombu.Queue("jobs", exchange=kombu.Exchange("work", type="direct"), routing_key="job")
PLAIN = Queue("plain")


class Publishes:
    emit = EventDispatcher()
    strict = EventDispatcher(mandatory=True)
    unconfirmed = EventDispatcher(use_confirms=False)
    to_jobs = Publisher(exchange=JOBS.exchange, declare=[JOBS])
    to_queue = Publisher(queue=PLAIN)
    to_name = Publisher(queue="named")
    to_default = Publisher()


class OnLoop(Publishes):
    name = "source"

    @rpc
    async def publish(self, publisher: str, *args: Any, **options: Any) -> list[str]:
        try:
            await getattr(self, publisher)(*args, **options)
        except Exception as exc:  # noqa: BLE001  whatever it is, it is what the test asks for
            return [type(exc).__name__, str(exc)]
        return []


class Threaded(Publishes):
    name = "source"

    @rpc
    def publish(self, publisher: str, *args: Any, **options: Any) -> list[str]:
        try:
            getattr(self, publisher)(*args, **options)
        except Exception as exc:  # noqa: BLE001  whatever it is, it is what the test asks for
            return [type(exc).__name__, str(exc)]
        return []


class Sink:
    name = "sink"
    got: list[tuple[str, Any]] = []  # noqa: RUF012  shared on purpose

    @event_handler("source", "happened")
    async def happened(self, payload: Any) -> None:
        self.got.append(("happened", payload))

    @event_handler("source", "plane.*")
    def wild(self, payload: Any) -> None:
        self.got.append(("wild", payload))

    @consume(JOBS)
    async def job(self, payload: Any) -> None:
        self.got.append(("job", payload))

    @consume(PLAIN)
    def plain(self, payload: Any) -> None:
        self.got.append(("plain", payload))

    @consume("named")
    async def named(self, payload: Any) -> None:
        self.got.append(("named", payload))


@pytest.fixture(autouse=True)
def _empty_sink() -> None:
    Sink.got.clear()


@pytest.fixture(params=[Threaded, OnLoop], ids=["def", "async"])
async def source(request: pytest.FixtureRequest, serve: Serve) -> Runner:
    return await serve(Sink, request.param)


async def test_event_reaches_its_handler(source: Runner, invoke: Invoke) -> None:
    assert await invoke("source", "publish", "emit", "happened", {"n": 1}) == []
    assert await invoke("source", "publish", "unconfirmed", "happened", None) == []

    wanted = [("happened", None), ("happened", {"n": 1})]
    await eventually(lambda: sorted(Sink.got, key=repr) == wanted)  # two workers: in either order


async def test_handler_s_event_type_may_have_wildcards(source: Runner, invoke: Invoke) -> None:
    for event_type in ("plane.landed", "plane.landed.late", "plane.left"):
        await invoke("source", "publish", "emit", event_type, event_type)

    wanted = [("wild", "plane.landed"), ("wild", "plane.left")]
    await eventually(lambda: sorted(Sink.got) == wanted)  # two workers: in either order


async def test_event_without_handler_goes_nowhere_unless_mandatory(
    source: Runner, invoke: Invoke
) -> None:
    assert await invoke("source", "publish", "emit", "unheard", 1) == []
    for publisher, options in (("strict", {}), ("emit", {"mandatory": True})):
        kind, text = await invoke("source", "publish", publisher, "unheard", 1, **options)
        assert kind == Unroutable.__name__
        assert 'routing key "unheard" on exchange "source.events"' in text


async def test_publisher_reaches_queues_declared_in_nameko_s_ways(
    source: Runner, invoke: Invoke
) -> None:
    assert await invoke("source", "publish", "to_jobs", 1, routing_key="job") == []
    assert await invoke("source", "publish", "to_queue", 2) == []
    assert await invoke("source", "publish", "to_name", 3) == []
    assert await invoke("source", "publish", "to_default", 4, routing_key="plain") == []
    assert (
        await invoke("source", "publish", "to_default", 5, exchange="work", routing_key="job") == []
    )

    wanted = [("job", 1), ("job", 5), ("named", 3), ("plain", 2), ("plain", 4)]
    await eventually(lambda: sorted(Sink.got) == wanted)


async def test_unknown_option_and_unserializable_payload_are_clear_errors(
    source: Runner, invoke: Invoke
) -> None:
    kind, text = await invoke("source", "publish", "emit", "happened", 1, prioriti=3)
    assert kind == "ConfigError"
    assert 'event "happened": unknown option prioriti' in text

    assert Sink.got == []


async def test_message_carries_what_nameko_s_carry(
    source: Runner, invoke: Invoke, link: Link
) -> None:
    seen: list[Delivery] = []
    await link.declare(Queue("tap"), Exchange("work", type="direct"))
    consumer = await link.consume("tap", seen.extend, ConsumeOptions(no_ack=True))
    options = {
        "routing_key": "tap",
        "priority": 3,
        "expiration": 60,
        "correlation_id": "c",
        "headers": {"a": 1, "b": 1},
        "extra_headers": {"b": 2},
        "retry": True,
        "retry_policy": {"max_retries": 3},
    }

    assert await invoke("source", "publish", "to_default", [1], **options) == []

    await eventually(lambda: seen)
    await consumer.aclose()
    properties = seen[0].properties
    assert seen[0].body == b"[1]"
    assert properties.delivery_mode == 2
    assert properties.priority == 3
    assert properties.expiration == "60000"
    assert properties.correlation_id == "c"
    assert properties.content_type == "application/json"
    assert properties.message_id
    headers = properties.headers or {}
    assert (headers["a"], headers["b"]) == (1, 2)
    assert headers["nameko.call_id_stack"][-1].startswith("source.publish.")


async def test_one_instance_of_each_service_handles_an_event_and_each_broadcast_handler_does(
    serve: Serve, client: Client
) -> None:
    got: list[str] = []

    def make(service: str, instance: int) -> type:
        class Handler:
            name = service

            @event_handler("tower", "closed", handler_type=SERVICE_POOL)
            async def pool(self, payload: str) -> None:
                got.append(f"pool {service}")

            @event_handler("tower", "closed", handler_type=SINGLETON)
            async def single(self, payload: str) -> None:
                got.append("single")

            @event_handler("tower", "closed", handler_type=BROADCAST, reliable_delivery=False)
            async def every(self, payload: str) -> None:
                got.append(f"every {service} {instance}")

        return Handler

    for service in ("a", "b"):
        for instance in (1, 2):
            await serve(make(service, instance))

    await client.publish("tower", "closed", None)

    everyone = [f"every {service} {instance}" for service in "ab" for instance in (1, 2)]
    wanted = [*everyone, "pool a", "pool b", "single"]
    await eventually(lambda: sorted(got) == wanted)


async def test_reliable_handler_gets_what_was_published_while_it_was_down(
    serve: Serve, client: Client
) -> None:
    first = await serve(Sink)
    await first.stop()
    await client.publish("source", "happened", "meanwhile")

    await serve(Sink)

    await eventually(lambda: Sink.got == [("happened", "meanwhile")])


async def test_unreliable_handler_starts_afresh(serve: Serve, client: Client) -> None:
    got: list[str] = []

    class Fresh:
        name = "fresh"

        @event_handler("source", "happened", reliable_delivery=False)
        async def happened(self, payload: str) -> None:
            got.append(payload)

    first = await serve(Fresh)
    await client.publish("source", "happened", "before")
    await eventually(lambda: got == ["before"])
    await first.stop()
    await client.publish("source", "happened", "meanwhile")
    await serve(Fresh)
    await client.publish("source", "happened", "after")

    await eventually(lambda: got == ["before", "after"])


async def test_reliable_broadcast_needs_an_identifier_that_lasts(serve: Serve) -> None:
    class Forgetful:
        name = "forgetful"

        @event_handler("source", "happened", handler_type=BROADCAST, reliable_delivery=True)
        async def happened(self, payload: str) -> None: ...

    with pytest.raises(ConfigError, match=r"forgetful\.happened: BROADCAST with reliable_delivery"):
        await serve(Forgetful)


def test_handler_type_is_one_of_three() -> None:
    with pytest.raises(ConfigError, match=r"'service-pool'.*service_pool, singleton, broadcast"):
        event_handler("source", "happened", handler_type="service-pool")(lambda self, payload: None)


def test_consume_takes_a_name_or_a_queue() -> None:
    with pytest.raises(ConfigError, match=r"@consume\(7\): 7 is no queue: expected a name"):
        consume(7)(lambda self, payload: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"immediate": True}, "immediate=True: RabbitMQ has not had it since 3.0"),
        ({"delivery_mode": 3}, 'delivery_mode=3: expected 2 or "persistent", 1 or "transient"'),
        ({"compression": "zip"}, "no compression 'zip'; there are: gzip, zlib, bzip2"),
        ({"kompression": "gzip"}, "unknown option kompression; did you mean compression?"),
    ],
)
def test_option_that_cannot_be_taken_is_refused_where_it_is_written(
    options: dict[str, Any], text: str
) -> None:
    for publisher in (Publisher, EventDispatcher):
        with pytest.raises(ConfigError) as refused:
            publisher(**options)
        assert text in str(refused.value)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ([1], "object of type list cannot go as text/plain"),
        ("\ud800", "the text cannot be encoded"),
    ],
)
async def test_payload_with_a_content_type_of_its_own_must_be_text_or_bytes(
    source: Runner, invoke: Invoke, payload: Any, text: str
) -> None:
    error = await invoke(
        "source", "publish", "to_default", payload, routing_key="tap", content_type="text/plain"
    )

    assert error[0] == "UnserializableValueError"
    assert text in error[1]


async def _through(call: Call, following: Next) -> Outcome:
    assert call.headers is not None
    assert call.headers["x"] == 1
    return await following(call)


@pytest.mark.parametrize("outbound", [(), (_through,)], ids=["bare", "through middleware"])
async def test_request_is_compressed_and_carries_headers_of_its_own(
    serve: Serve, invoke: Invoke, link: Link, outbound: tuple[Any, ...]
) -> None:
    class Called:
        name = "called"

        @rpc
        async def size(self, value: str) -> int:
            return len(value)

    class Calls:
        name = "calls"
        called = RpcProxy("called", compression="gzip", headers={"x": 1})

        @rpc
        async def call(self) -> int:
            return int(await self.called.size("a" * 100_000))

    tapped: list[Delivery] = []
    await serve(Called)
    await serve(Calls, outbound=outbound)
    await link.declare(Queue("tap"), Binding("tap", "nameko-rpc", "called.*"))
    await link.consume("tap", tapped.extend, ConsumeOptions(no_ack=True))

    assert await invoke("calls", "call") == 100_000

    await eventually(lambda: tapped)
    headers = tapped[0].properties.headers or {}
    assert (headers["compression"], headers["x"]) == ("application/x-gzip", 1)
    assert len(tapped[0].body) < 1000
