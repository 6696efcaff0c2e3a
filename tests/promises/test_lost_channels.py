"""The connection goes while messages wait and handlers run: nothing runs beside itself, or again when it has been done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tests.runtime.dead_letter_box import read_dead_letters

from mycelia import event_handler, rpc
from mycelia.amqp.memory.broker import broker_at
from mycelia.broker.management_api import ManagementApi
from mycelia.testing import ServiceBed, eventually, run_services

Cut = Callable[[], Awaitable[None]]
Settled = Callable[[str], Awaitable[None]]

WORKERS = 4


class Service:
    name = "service"
    runs: Counter[Any] = Counter()  # noqa: RUF012  shared on purpose
    gate: asyncio.Event
    thread_gate: threading.Event

    async def work(self, number: int) -> int:
        self.runs[number] += 1
        await self.gate.wait()
        return number

    @event_handler("source", "loop", concurrency=WORKERS)
    async def on_loop(self, number: int) -> None:
        await self.work(number)

    @event_handler("source", "classic", concurrency=WORKERS, queue_type="classic")
    async def on_classic(self, number: int) -> None:
        await self.work(number)

    @event_handler("source", "thread", concurrency=WORKERS)
    def in_thread(self, number: int) -> None:
        self.runs[number] += 1
        assert self.thread_gate.wait(30)

    @event_handler("source", "failing", concurrency=WORKERS)
    async def failing(self, number: int) -> None:
        await self.work(number)
        raise LookupError(f"no plane {number}")

    @rpc(concurrency=WORKERS)
    async def ask(self, number: int) -> int:
        return await self.work(number)


@pytest.fixture
async def bed(broker: str) -> AsyncIterator[ServiceBed]:
    Service.runs.clear()
    Service.gate = asyncio.Event()
    Service.thread_gate = threading.Event()
    async with run_services(Service, broker=broker, timeout=20) as bed:
        yield bed
        Service.gate.set()
        Service.thread_gate.set()


@pytest.fixture
def cut(request: pytest.FixtureRequest, broker: str, bed: ServiceBed) -> Cut:
    """Cuts every connection of this broker, and returns when the service has its connection back."""
    link = bed.container(Service).host.link

    async def cut_connections() -> None:
        before = link.statistics().reconnects
        if broker.startswith("memory"):
            broker_at(broker).drop_connections()
        else:
            api = request.getfixturevalue("rabbit_api")
            vhost = request.getfixturevalue("rabbit_vhost")

            def has_cut() -> bool:  # the broker lists a connection some time after it was opened
                return int(api.close_connections(vhost)) >= 3

            await eventually(lambda: asyncio.to_thread(has_cut), 30, interval=0.1)
        await eventually(lambda: link.statistics().reconnects > before and link.writable, 20)

    return cut_connections


def queue_of(event_type: str) -> str:
    method = {"loop": "on_loop", "classic": "on_classic", "thread": "in_thread"}.get(
        event_type, event_type
    )
    return f"evt-source-{event_type}--service.{method}"


@pytest.fixture
def settled(request: pytest.FixtureRequest, broker: str, bed: ServiceBed) -> Settled:
    """Waits until a queue is empty, with nothing of it unsettled."""
    if not broker.startswith("memory"):
        api = request.getfixturevalue("rabbit_api")
        vhost = request.getfixturevalue("rabbit_vhost")

    async def wait(queue: str) -> None:
        async def is_settled() -> bool:
            if broker.startswith("memory"):  # a redelivery comes with the next turns of the loop
                lanes = bed.container(Service).lanes
                ready = await bed.container(Service).host.link.message_count(queue)
                return not ready and not any(lane.active or lane.waiting for lane in lanes)
            found = await asyncio.to_thread(api.queues, vhost)
            return any(one["name"] == queue and one.get("messages") == 0 for one in found)

        await eventually(is_settled, 20, interval=0.05)

    return wait


@pytest.mark.long_variants("rabbit-classic", "rabbit-thread")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["loop", "classic", "thread"])
async def test_event_whose_channel_goes_while_it_is_handled_runs_once(
    bed: ServiceBed, cut: Cut, settled: Settled, kind: str
) -> None:
    await asyncio.gather(*(bed.client.publish("source", kind, n) for n in range(20)))
    await eventually(lambda: len(Service.runs) == WORKERS, 30)

    for _ in range(3):
        await cut()
    Service.gate.set()
    Service.thread_gate.set()
    await eventually(lambda: len(Service.runs) == 20, 20)
    await settled(queue_of(kind))

    assert Service.runs == Counter(range(20))


@pytest.mark.timeout(120)
async def test_request_whose_channel_goes_is_run_once_and_answered(
    bed: ServiceBed, cut: Cut
) -> None:
    calls = [asyncio.ensure_future(bed.client.call("service", "ask", n)) for n in range(20)]
    await eventually(lambda: len(Service.runs) == WORKERS, 30)
    # The callers' connections are cut as well, and a request that is still on its way is not sent again.
    requests = bed.client.link.statistics
    await eventually(lambda: requests().published == 20 and not requests().unproven, 20)

    await cut()
    Service.gate.set()

    assert await asyncio.gather(*calls) == list(range(20))
    assert Service.runs == Counter(range(20))


@pytest.mark.timeout(120)
async def test_event_that_fails_while_its_channel_is_gone_is_one_dead_letter(
    bed: ServiceBed, cut: Cut, settled: Settled
) -> None:
    await asyncio.gather(*(bed.client.publish("source", "failing", n) for n in range(20)))
    await eventually(lambda: len(Service.runs) == WORKERS, 30)

    cutting = asyncio.ensure_future(cut())
    link = bed.container(Service).host.link
    await eventually(lambda: cutting.done() or not link.writable, 30, interval=0.001)
    Service.gate.set()
    await cutting

    dead = await read_dead_letters(link, queue_of("failing"), 20, 30)
    await settled(queue_of("failing"))
    assert Counter(int(letter.body) for letter in dead) == Counter(range(20))
    assert await link.message_count(queue_of("failing") + ".dead") == 0
    assert Service.runs == Counter(range(20))


@pytest.mark.timeout(180)
async def test_backlog_does_not_grow_with_each_cut(
    bed: ServiceBed, cut: Cut, settled: Settled
) -> None:
    """200 events, three cuts while they are worked off."""
    Service.gate.set()
    await asyncio.gather(*(bed.client.publish("source", "loop", n) for n in range(100)))
    for third in range(3):
        await asyncio.gather(
            *(bed.client.publish("source", "loop", 100 + 33 * third + n) for n in range(33))
        )
        await cut()
    await eventually(lambda: len(Service.runs) == 199, 30)

    await settled(queue_of("loop"))

    assert Service.runs == Counter(range(199))


class Blocking:
    """Its methods hold the loop until the broker has closed their connections: done before anybody learns of it."""

    name = "blocking"
    runs: Counter[str] = Counter()  # noqa: RUF012  shared on purpose
    cut: Callable[[], object]

    def hold_the_loop(self, key: str) -> None:
        self.runs[key] += 1
        if self.runs.total() == 1:
            type(self).cut()

    @event_handler("source", "hold", concurrency=1)
    async def on_hold(self, key: str) -> None:
        self.hold_the_loop(key)

    @event_handler("source", "hold", concurrency=1, queue_type="classic")
    async def on_hold_classic(self, key: str) -> None:
        self.hold_the_loop(f"classic {key}")

    @event_handler("source", "raise", concurrency=1)
    async def on_raise(self, key: str) -> None:
        self.hold_the_loop(key)
        raise LookupError(key)

    @rpc(concurrency=1)
    async def hold(self, key: str) -> str:
        self.hold_the_loop(key)
        return key


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["hold", "raise", "rpc"])
async def test_what_ends_before_anybody_learns_of_the_loss_has_run_once(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str, kind: str
) -> None:
    Blocking.runs.clear()

    def cut() -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end and rabbit_api.close_connections(rabbit_vhost) < 3:
            time.sleep(0.1)  # the broker lists a connection some time after it was opened

    Blocking.cut = staticmethod(cut)
    keys = [f"{number}" for number in range(5)]
    async with run_services(Blocking, broker=rabbit_uri, timeout=20) as bed:
        if kind == "rpc":
            # One after the other: what has not left when the loop is held is lost with its connection.
            assert [await bed.client.call("blocking", "hold", key) for key in keys] == keys
            expected = Counter(keys)
        else:
            await asyncio.gather(*(bed.client.publish("source", kind, key) for key in keys))
            expected = Counter(keys)
            if kind == "hold":
                expected += Counter(f"classic {key}" for key in keys)
        await eventually(lambda: len(Blocking.runs) == len(expected), 20)

        async def is_settled() -> bool:
            queues = await asyncio.to_thread(rabbit_api.queues, rabbit_vhost)
            mine = [
                one for one in queues if "blocking" in one["name"] and ".dead" not in one["name"]
            ]
            return all(one.get("messages") == 0 for one in mine)

        await eventually(is_settled, 20, interval=0.1)
        if kind == "raise":
            queue = "evt-source-raise--blocking.on_raise"
            link = bed.container(Blocking).host.link
            assert len(await read_dead_letters(link, queue, len(keys), 20)) == len(keys)
            assert await link.message_count(queue + ".dead") == 0

    assert Blocking.runs == expected
