"""Retries and dead letters of messages that are awkward: full queues, a time to live, every property, names of one start."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from typing import Any

import pytest
from tests.runtime.conftest import Serve
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import (
    BROADCAST,
    Binding,
    Call,
    Client,
    Exchange,
    Next,
    Outcome,
    Queue,
    Redeliver,
    Requeue,
    Runner,
    consume,
    event_handler,
    get_current_call,
    rpc,
)
from mycelia.amqp import ConsumeOptions, Delivery, Link, Message, Properties, connect
from mycelia.call import Settlement
from mycelia.errors import TopologyError
from mycelia.testing import eventually, run_services

JSON = Properties("application/json", "utf-8")

# --- a queue that does not take a message back ------------------------------------------------------


class Failing:
    name = "failing"
    runs: Counter[int] = Counter()  # noqa: RUF012  shared on purpose

    @consume(
        Queue("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}),
        requeue_on_error=True,
        concurrency=1,
        prefetch=1,
    )
    async def fail(self, number: int) -> None:
        self.runs[number] += 1
        raise LookupError("still not")


@pytest.mark.timeout(120)
async def test_full_queue_makes_no_hot_loop_of_a_retry(broker: str, bare: Link) -> None:
    """There is room for one in the queue and one here: they wait elsewhere, and each has all of its attempts."""
    Failing.runs.clear()
    async with run_services(
        Failing, broker=broker, config={"mycelia": {"requeue_attempts": 3}}, timeout=15
    ):
        await bare.publish(Message("", "full", b"1", JSON))
        await eventually(lambda: Failing.runs[1] == 1)
        await bare.publish(Message("", "full", b"2", JSON))
        letters = await read_dead_letters(bare, "full", 2, 30)

    assert sorted(letter.body for letter in letters) == [b"1", b"2"]
    reasons = {(letter.properties.headers or {})["x-mycelia-reason"] for letter in letters}
    assert reasons == {"too_many_attempts"}
    assert Failing.runs == {1: 3, 2: 3}


# --- a time to live ---------------------------------------------------------------------------------


async def test_retries_give_a_message_no_new_life(serve: Serve, link: Link) -> None:
    runs: list[tuple[float, str | None]] = []

    class Mortal:
        name = "mortal"

        @consume("mortal", requeue_on_error=True)
        async def fail(self, payload: Any) -> None:
            call = get_current_call()
            assert call is not None
            assert call.message is not None
            runs.append((time.monotonic(), call.message.properties.expiration))
            raise LookupError("still not")

    await serve(Mortal)
    await link.publish(
        Message("", "mortal", b"1", Properties("application/json", expiration="3000"))
    )

    (letter,) = await read_dead_letters(link, "mortal", 1)
    headers = letter.properties.headers or {}
    left = [int(expiration or "-1") for _, expiration in runs]
    assert (
        runs[-1][0] - runs[0][0] < 3.0
    )  # the last but one begins after 1.5 s, the next would after 3.1
    assert 2 <= len(runs) <= 6
    assert left == sorted(left, reverse=True)
    assert left[0] == 3000
    assert headers["x-mycelia-reason"] == "expired"
    assert headers["x-mycelia-expiration"] == "3000"
    assert letter.properties.expiration is None


class TooLate:
    """What comes to it has no time left, and needs to be published again."""

    name = "late"
    runs: list[int] = []  # noqa: RUF012  shared on purpose

    @consume(Queue("late"), prefetch=1, concurrency=1)
    async def handle(self, number: int) -> None:
        self.runs.append(number)

    @rpc(prefetch=1, concurrency=1)
    async def ask(self, number: int) -> int:
        self.runs.append(number)
        return number


PAST = "x-mycelia-expires-at-ms"


async def return_once(link: Link, queue: str, count: int) -> None:
    """Have `count` messages of `queue` come back, as from a process that has died."""
    taken: list[Delivery] = []
    consumer = await link.consume(queue, taken.extend, ConsumeOptions(prefetch=count))
    await eventually(lambda: len(taken) == count, 30)
    for delivery in taken:
        delivery.nack(requeue=True)
    await consumer.aclose()


@pytest.mark.timeout(60)
async def test_returned_message_without_time_left_is_a_dead_letter(broker: str, bare: Link) -> None:
    """A classic queue: the return is counted by publishing the message again, and with no time it would be dropped."""
    TooLate.runs.clear()
    await bare.declare(Queue("late"))
    for number in range(20):
        properties = Properties("application/json", headers={PAST: 1_000 + number})
        await bare.publish(Message("", "late", str(number).encode(), properties))
    await return_once(bare, "late", 20)

    async with run_services(TooLate, broker=broker, timeout=15):
        letters = await read_dead_letters(bare, "late", 20, 20)

    assert Counter(int(letter.body) for letter in letters) == Counter(range(20))
    assert {(one.properties.headers or {})["x-mycelia-reason"] for one in letters} == {"expired"}
    assert TooLate.runs == []


async def ask_without_time(link: Link, count: int) -> list[Delivery]:
    """Requests without a deadline, and with a time to live that is over. Returns the replies, as they come."""
    replies: list[Delivery] = []
    await link.declare(
        Exchange("nameko-rpc"),
        Queue("rpc-late"),
        Binding("rpc-late", "nameko-rpc", "late.*"),
        Queue("answers"),
        Binding("answers", "nameko-rpc", "answers"),
    )
    await link.consume("answers", replies.extend, ConsumeOptions(no_ack=True))
    for number in range(count):
        properties = Properties(
            "application/json",
            headers={PAST: 1_000},
            reply_to="answers",
            correlation_id=str(number),
        )
        body = b'{"args": [%d], "kwargs": {}}' % number
        await link.publish(Message("nameko-rpc", "late.ask", body, properties))
    return replies


@pytest.mark.timeout(60)
async def test_returned_request_without_time_left_is_answered(broker: str, bare: Link) -> None:
    TooLate.runs.clear()
    replies = await ask_without_time(bare, 20)
    await return_once(bare, "rpc-late", 20)

    async with run_services(TooLate, broker=broker, timeout=15):
        await eventually(lambda: len(replies) == 20, 20)

    assert {reply.properties.correlation_id for reply in replies} == {str(n) for n in range(20)}
    assert all(b"DeadlinePassed" in reply.body for reply in replies)
    assert TooLate.runs == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("settlement", [Requeue(), Redeliver(0.01)])
async def test_request_tried_again_without_time_left_is_answered_with_its_error(
    broker: str, bare: Link, settlement: Settlement
) -> None:
    TooLate.runs.clear()
    replies = await ask_without_time(bare, 20)

    async def again(call: Call, next: Next) -> Outcome:
        await next(call)
        return Outcome(error=LookupError("not yet"), settlement=settlement)

    async with Runner({"AMQP_URI": broker}, [TooLate], inbound=(again,)):
        await eventually(lambda: len(replies) == 20, 20)

    assert all(b"LookupError" in reply.body for reply in replies)
    assert sorted(TooLate.runs) == list(range(20))


@pytest.mark.timeout(60)
async def test_request_without_time_left_is_answered_by_a_service_that_stops(
    broker: str, bare: Link
) -> None:
    begun = asyncio.Event()
    go_on = asyncio.Event()

    class Stopping:
        name = "late"

        @rpc(prefetch=20, concurrency=1)
        async def ask(self, number: int) -> int:
            begun.set()
            await go_on.wait()
            return number

    replies = await ask_without_time(bare, 20)
    async with run_services(Stopping, broker=broker, timeout=15) as bed:
        (lane,) = [lane for lane in bed.container(Stopping).lanes if lane.target.method == "ask"]
        await begun.wait()
        await eventually(lambda: lane.waiting == 19, 30)
        stopping = asyncio.ensure_future(bed.runner.stop())
        await eventually(lambda: len(replies) == 19, 30)
        go_on.set()
        await stopping
    await eventually(lambda: len(replies) == 20, 30)

    assert {reply.properties.correlation_id for reply in replies} == {str(n) for n in range(20)}
    assert sum(b"DeadlinePassed" in reply.body for reply in replies) == 19


KEPT = [
    *("content_type", "content_encoding", "priority", "correlation_id", "reply_to", "message_id"),
    *("timestamp", "type", "app_id", "cluster_id"),
]

# --- every property ---------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("retries", [False, True])
async def test_every_property_is_kept(broker: str, bare: Link, retries: bool) -> None:
    seen: list[Properties] = []

    class Keeper:
        name = "keeper"

        @consume("kept", requeue_on_error=retries)
        async def fail(self, payload: Any) -> None:
            call = get_current_call()
            assert call is not None
            assert call.message is not None
            seen.append(call.message.properties)
            raise LookupError("still not")

    sent = Properties(
        "application/json",
        "utf-8",
        {"own": [1, {"a": b"\\xff"}]},
        1,
        priority=7,
        correlation_id="c",
        reply_to="r",
        expiration="600000",
        message_id="m",
        timestamp=1_500_000_000,
        type="t",
        user_id="guest",
        app_id="a",
        cluster_id="k",
    )
    config = {"mycelia": {"requeue_attempts": 2}}
    async with run_services(Keeper, broker=broker, config=config, timeout=15):
        await bare.publish(Message("", "kept", b"1", sent))
        (letter,) = await read_dead_letters(bare, "kept", 1, 20)

    assert len(seen) == (2 if retries else 1)
    for properties in (*seen, letter.properties):
        for name in KEPT:
            assert getattr(properties, name) == getattr(sent, name), name
        assert (properties.headers or {})["own"] == [1, {"a": b"\\xff"}]
        user = properties.user_id or (properties.headers or {}).get("x-mycelia-user-id")
        assert user == "guest"


@pytest.mark.timeout(60)
async def test_message_of_another_user_is_tried_again_and_buried(
    rabbit_uri: str, rabbit_api: Any, rabbit_vhost: str
) -> None:
    """RabbitMQ closes the channel over a publishing in somebody else's name."""

    class Keeper:
        name = "keeper"

        @consume("kept", requeue_on_error=True)
        async def fail(self, payload: Any) -> None:
            raise LookupError("still not")

    name = f"u{secrets.token_hex(4)}"
    await asyncio.to_thread(
        rabbit_api.request, "PUT", f"/api/users/{name}", {"password": "p", "tags": ""}
    )
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    await asyncio.to_thread(
        rabbit_api.request, "PUT", f"/api/permissions/{rabbit_vhost}/{name}", everything
    )
    other = connect(rabbit_uri.replace("guest:guest", f"{name}:p"))
    try:
        await other.open(15)
        config = {"mycelia": {"requeue_attempts": 3}}
        async with run_services(Keeper, broker=rabbit_uri, config=config, timeout=15) as bed:
            properties = Properties("application/json", user_id=name)
            await other.publish(Message("", "kept", b"1", properties))
            link = bed.container(Keeper).host.link
            (letter,) = await read_dead_letters(link, "kept", 1, 20)
    finally:
        await other.aclose()
        await asyncio.to_thread(rabbit_api.request, "DELETE", f"/api/users/{name}")

    headers = letter.properties.headers or {}
    assert headers["x-mycelia-user-id"] == name
    assert headers["x-mycelia-attempts"] == 3


# --- queues of one start ----------------------------------------------------------------------------


class Everywhere:
    name = "everywhere"

    @event_handler("source", "happened", BROADCAST, reliable_delivery=False)
    async def happened(self, payload: Any) -> None:
        raise LookupError("no")


@pytest.mark.timeout(120)
async def test_broadcast_handler_leaves_one_dead_letter_queue_after_many_starts(
    rabbit_uri: str, rabbit_api: Any, rabbit_vhost: str
) -> None:
    async with Client(rabbit_uri, timeout=15) as client:
        for start in range(5):
            async with run_services(Everywhere, broker=rabbit_uri, timeout=15) as bed:
                await client.publish("source", "happened", start, mandatory=True)
                link = bed.container(Everywhere).host.link
                await eventually(lambda link=link, start=start: _count(link, start + 1), 20)

    queues = await asyncio.to_thread(rabbit_api.queues, rabbit_vhost)
    assert [queue["name"] for queue in queues] == ["evt-source-happened--everywhere.happened.dead"]


async def _count(link: Link, count: int) -> bool:
    try:
        return await link.message_count("evt-source-happened--everywhere.happened.dead") == count
    except TopologyError:
        return False


# --- a stop is no death -----------------------------------------------------------------------------


async def test_request_that_was_given_back_not_begun_is_not_counted(
    serve: Serve, client: Client
) -> None:
    """Stops of one instance after the other, more often than a request may be begun."""
    attempts: list[int] = []

    class Busy:
        name = "busy"
        gate: asyncio.Event

        @rpc(concurrency=1, prefetch=10)
        async def work(self, number: int) -> int:
            call = get_current_call()
            assert call is not None
            attempts.append(call.attempt)
            await self.gate.wait()
            return number

    calls: list[asyncio.Future[Any]] = []
    for stops in range(4):
        Busy.gate = asyncio.Event()
        runner = await serve(Busy)
        lane = runner.containers[0].lanes[0]
        if not calls:
            calls = [asyncio.ensure_future(client.call("busy", "work", n)) for n in range(5)]
        await eventually(lambda lane=lane, left=4 - stops: (lane.active, lane.waiting) == (1, left))
        stopping = asyncio.ensure_future(runner.stop(grace=5))
        await eventually(lambda lane=lane: lane.waiting == 0)
        Busy.gate.set()  # the one that runs is answered; those behind it go to the next instance
        await stopping
    await serve(Busy)

    assert await asyncio.gather(*calls) == list(range(5))
    assert attempts == [1] * 5
