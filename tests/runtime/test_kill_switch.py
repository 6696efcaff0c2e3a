"""A handler that fails too often stops, tries, goes on; on both brokers, with the connection cut, and at a stop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.control.letters import AT_ONCE

from mycelia import KillSwitch, Queue, consume, event_handler
from mycelia.amqp import Delivery, Message, Properties
from mycelia.broker.management_api import ManagementApi
from mycelia.entrypoints.consumption_guard import ConsumptionGuard
from mycelia.errors import ConfigError, TopologyError
from mycelia.policies.kill_switch import ConsumptionState
from mycelia.testing import ServiceBed, eventually, run_services

QUICK = KillSwitch(failure_rate=0.5, minimum=5, pause=0.3)
SLOW = KillSwitch(failure_rate=0.5, minimum=5, pause=600)
QUEUE = "evt-source-happened--shaky.happened"


class World:
    """What the handlers need, and what they have done."""

    is_down = True
    tried: list[int]
    handled: list[int]
    others: list[int]

    @classmethod
    def reset(cls, *, is_down: bool = True) -> None:
        cls.is_down, cls.tried, cls.handled, cls.others = is_down, [], [], []

    @classmethod
    def handle(cls, number: int) -> None:
        cls.tried.append(number)
        if cls.is_down:
            raise ConnectionError("the database is down")
        cls.handled.append(number)


def shaky(switch: KillSwitch, **options: Any) -> type:
    class Shaky:
        name = "shaky"

        @event_handler("source", "happened", kill_switch=switch, **options)
        async def happened(self, number: int) -> None:
            World.handle(number)

        @event_handler("source", "other")
        async def other(self, number: int) -> None:
            World.others.append(number)

    return Shaky


def state(bed: ServiceBed, service: type, method: str = "happened") -> tuple[str | None, int]:
    for name, found in bed.runner.statistics().services[service.name].extensions.items():  # type: ignore[attr-defined]
        if name.endswith(f":{method}"):
            return found.kill_switch, found.kill_switch_stops  # type: ignore[attr-defined]
    raise AssertionError


async def publish(bed: ServiceBed, *numbers: int, event: str = "happened") -> None:
    for number in numbers:
        await bed.client.publish("source", event, number)


def said(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(message.startswith(event) for message in caplog.messages)


@pytest.mark.parametrize("options", [{}, {"prefetch": 1, "concurrency": 1}, {"concurrency": 2}])
async def test_failing_handler_stops_probes_and_resumes(
    broker: str, caplog: pytest.LogCaptureFixture, options: dict[str, int]
) -> None:
    World.reset()
    caplog.set_level("INFO", "mycelia.entrypoints")
    service = shaky(QUICK, **options)
    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE) as bed:
        assert state(bed, service) == ("consuming", 0)
        await publish(bed, *range(40))
        await eventually(lambda: state(bed, service)[1] == 1, 20)
        await eventually(lambda: said(caplog, "kill_switch_probe_failed") >= 2, 20)
        assert len(World.tried) < 40
        World.is_down = False

        await eventually(lambda: state(bed, service) == ("consuming", 1), 20)
        failed = set(World.tried) - set(World.handled)
        await eventually(lambda: set(World.handled) | failed == set(range(40)), 20)

    assert said(caplog, "kill_switch_stopped") == 1
    assert said(caplog, "kill_switch_resumed") == 1
    assert len(World.handled) == len(set(World.handled))


async def test_only_the_failing_handler_stops(broker: str) -> None:
    World.reset()
    service = shaky(SLOW)
    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE) as bed:
        await publish(bed, *range(10))
        await eventually(lambda: state(bed, service)[0] == "stopped", 20)
        await publish(bed, *range(5), event="other")

        await eventually(lambda: sorted(World.others) == list(range(5)), 20)
        assert state(bed, service, "other") == (None, 0)


async def test_probes_that_fail_are_one_message_a_pause(
    broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    World.reset()
    caplog.set_level("INFO", "mycelia.entrypoints")
    service = shaky(QUICK, concurrency=10, prefetch=20)
    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE) as bed:
        await publish(bed, *range(100))
        await eventually(lambda: state(bed, service)[1] == 1, 20)
        await eventually(lambda: said(caplog, "kill_switch_probing") >= 1, 20)
        probes, tried = said(caplog, "kill_switch_probing"), len(World.tried)
        await eventually(lambda: said(caplog, "kill_switch_probe_failed") >= probes + 4, 20)

        more = said(caplog, "kill_switch_probing") - probes
        assert len(World.tried) - tried <= 1 + more  # the one under way, and one each


async def test_messages_wait_in_the_queue_and_none_is_lost_at_the_stop(broker: str) -> None:
    World.reset()
    service = shaky(SLOW, concurrency=2, prefetch=10)
    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE) as bed:
        link = bed.client.link
        await publish(bed, *range(50))
        await eventually(lambda: state(bed, service)[0] == "stopped", 20)

        async def is_given_back() -> bool:
            waits_here = 50 - len(World.tried) - await link.message_count(QUEUE)
            return waits_here in (0, 1)

        await eventually(is_given_back, 20)
        failed = set(World.tried)

    World.is_down = False
    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE):
        await eventually(lambda: set(World.handled) >= set(range(50)) - failed, 20)
    assert len(failed) < 20


async def test_another_instance_takes_what_waits(broker: str) -> None:
    World.reset()
    service = shaky(SLOW, concurrency=2, prefetch=10)

    class Sound:
        name = "shaky"

        @event_handler("source", "happened", kill_switch=False)
        async def happened(self, number: int) -> None:
            World.others.append(number)

    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE) as bed:
        await publish(bed, *range(50))
        await eventually(lambda: state(bed, service)[0] == "stopped", 20)
        failed = set(World.tried)
        async with run_services(Sound, broker=broker, timeout=30, config=AT_ONCE):
            # One may wait where it is to be tried next.
            await eventually(lambda: len(set(World.others) | failed) >= 49, 20)


async def test_connection_that_is_cut_while_it_is_stopped_changes_nothing(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    World.reset()
    service = shaky(KillSwitch(failure_rate=0.5, minimum=5, pause=2), prefetch=10)
    async with run_services(service, broker=rabbit_uri, timeout=30, config=AT_ONCE) as bed:
        await publish(bed, *range(30))
        await eventually(lambda: state(bed, service)[0] == "stopped", 20)
        link = bed.container(service).host.link
        for _ in range(2):
            await eventually(
                lambda: asyncio.to_thread(rabbit_api.close_connections, rabbit_vhost),
                20,
                interval=0.2,
            )
            await link.ready(30)
        World.is_down = False

        await eventually(lambda: state(bed, service) == ("consuming", 1), 30)
        failed = set(World.tried) - set(World.handled)
        await eventually(lambda: set(World.handled) | failed == set(range(30)), 30)


async def test_connection_that_is_cut_while_it_probes_is_no_end_of_it(
    rabbit_uri: str, rabbit_api: ManagementApi, rabbit_vhost: str
) -> None:
    World.reset()
    probe_runs, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        name = "shaky"

        @event_handler("source", "happened", kill_switch=QUICK)
        async def happened(self, number: int) -> None:
            if len(World.tried) >= 5 and not go_on.is_set():
                probe_runs.set()
                await go_on.wait()
            World.handle(number)

    async with run_services(Slow, broker=rabbit_uri, timeout=30, config=AT_ONCE) as bed:
        await publish(bed, *range(5))
        await eventually(lambda: state(bed, Slow)[1] == 1, 20)
        await publish(bed, *range(5, 20))
        async with asyncio.timeout(20):
            await probe_runs.wait()
        await eventually(
            lambda: asyncio.to_thread(rabbit_api.close_connections, rabbit_vhost), 20, interval=0.2
        )
        await bed.container(Slow).host.link.ready(30)
        World.is_down = False
        go_on.set()

        await eventually(lambda: set(World.handled) == set(range(5, 20)), 30)
        assert state(bed, Slow) == ("consuming", 1)


@pytest.mark.parametrize("kind", ["classic", "auto-delete"])
async def test_other_queues_too(broker: str, kind: str) -> None:
    World.reset()
    queue = Queue("work", auto_delete=kind == "auto-delete")

    class Worker:
        name = "shaky"

        @consume(queue, kill_switch=QUICK, concurrency=1, prefetch=8)
        async def happened(self, number: int) -> None:
            World.handle(number)

    async with run_services(Worker, broker=broker, timeout=30, config=AT_ONCE) as bed:
        link = bed.container(Worker).host.link
        for number in range(30):
            properties = Properties("application/json", "utf-8")
            await link.publish(
                Message("", "work", str(number).encode(), properties, mandatory=True)
            )
        await eventually(lambda: state(bed, Worker)[1] == 1, 20)
        World.is_down = False

        await eventually(lambda: state(bed, Worker) == ("consuming", 1), 20)
        failed = set(World.tried) - set(World.handled)
        await eventually(lambda: set(World.handled) | failed == set(range(30)), 20)
    assert len(World.handled) == len(set(World.handled))


async def test_expected_errors_and_unreadable_messages_are_no_failures(broker: str) -> None:
    class Picky:
        name = "shaky"

        @event_handler("source", "happened", kill_switch=QUICK, expected_exceptions=KeyError)
        async def happened(self, number: int) -> None:
            World.tried.append(number)
            raise KeyError(number)

    World.reset()
    async with run_services(Picky, broker=broker, timeout=30, config=AT_ONCE) as bed:
        await publish(bed, *range(10))
        link = bed.container(Picky).host.link
        for _ in range(10):
            broken = Message(
                "", "evt-source-happened--shaky.happened", b"{", Properties("application/json")
            )
            await link.publish(broken)
        await publish(bed, 99)

        await eventually(lambda: 99 in World.tried, 20)
        assert state(bed, Picky) == ("consuming", 0)


async def test_configuration_turns_it_on_for_all_that_say_nothing() -> None:
    class Two:
        name = "two"

        @event_handler("source", "one")
        def one(self, number: int) -> None: ...

        @event_handler("source", "two", kill_switch=False)
        def two(self, number: int) -> None: ...

    config = {"mycelia": {"kill_switch": {"minimum": 7, "pause": "2m"}}}
    async with run_services(Two, config=config) as bed:
        assert state(bed, Two, "one") == ("consuming", 0)
        assert state(bed, Two, "two") == (None, 0)
    with pytest.raises(ConfigError, match=r"mycelia\.kill_switch"):
        async with run_services(Two, config={"mycelia": {"kill_switch": {"minimal": 7}}}):
            pass
    with pytest.raises(ConfigError, match="kill_switch='yes'"):
        event_handler("source", "x", kill_switch="yes")(lambda self, x: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("last", ["2", "{"], ids=["handled", "unreadable"])
async def test_probe_that_decides_nothing_is_followed_by_another(broker: str, last: str) -> None:
    """Of a queue that is not left while it stands still: the one message that waits here is not enough, or tells nothing."""
    World.reset()
    switch = KillSwitch(failure_rate=0.5, minimum=2, pause=0.3, probes=2)
    all_are_here = asyncio.Event()

    class Worker:
        name = "shaky"

        @consume(Queue("work", auto_delete=True), kill_switch=switch, concurrency=1, prefetch=8)
        async def happened(self, number: int) -> None:
            await all_are_here.wait()
            World.handle(number)

    async with run_services(Worker, broker=broker, timeout=30, config=AT_ONCE) as bed:
        link = bed.container(Worker).host.link

        async def send(*bodies: str) -> None:
            for body in bodies:
                properties = Properties("application/json", "utf-8")
                await link.publish(Message("", "work", body.encode(), properties, mandatory=True))

        await send("0", "1", last)
        consumer = bed.container(Worker).entrypoints[0]._consumer
        await eventually(lambda: consumer.unsettled == 3, 20)
        all_are_here.set()
        await eventually(lambda: state(bed, Worker)[0] == "stopped", 20)
        World.is_down = False
        await eventually(lambda: state(bed, Worker)[0] == "probing", 20)
        await asyncio.sleep(0.1)  # what waits here is tried meanwhile
        await send("3", "4")

        await eventually(lambda: state(bed, Worker) == ("consuming", 1), 20)
        await eventually(lambda: {3, 4} <= set(World.handled), 20)


async def test_broker_that_refuses_the_change_for_a_while_is_asked_again(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    World.reset()
    service = shaky(QUICK)
    monkeypatch.setattr("mycelia.entrypoints.consumption_guard.ASK_AGAIN_S", 0.05)
    async with run_services(service, broker=broker, timeout=30, config=AT_ONCE) as bed:
        consumer = bed.container(service).entrypoints[0]._consumer
        refused: list[str] = []

        def refuse_twice(name: str) -> None:
            real = getattr(consumer, name)

            async def step(*arguments: Any) -> None:
                if refused.count(name) < 2:
                    refused.append(name)
                    raise TopologyError("the node of its queue is down")
                await real(*arguments)

            monkeypatch.setattr(consumer, name, step)

        for name in ("set_prefetch", "pause", "resume"):
            refuse_twice(name)
        await publish(bed, *range(20))
        await eventually(lambda: state(bed, service)[1] == 1, 20)
        World.is_down = False

        await eventually(lambda: state(bed, service) == ("consuming", 1), 20)
        failed = set(World.tried) - set(World.handled)
        await eventually(lambda: set(World.handled) | failed == set(range(20)), 20)
        await eventually(lambda: consumer.prefetch > 1, 20)


def test_what_comes_after_the_stop_goes_back() -> None:
    """Between the stop and the broker's word that it sends no more."""

    class Settler:
        is_lost = False
        returned: list[int] = []  # noqa: RUF012

        def ack(self, delivery_tag: int) -> None: ...

        def nack(self, delivery_tag: int, requeue: bool) -> None:
            self.returned.append(delivery_tag)

    settler = Settler()
    guard = ConsumptionGuard(
        QUICK, lambda _: None, call="a.b", queue="q", expected=(), keeps=False, prefetch=lambda: 1
    )
    guard._consumption.state = ConsumptionState.PROBING
    guard.stop()
    guard.on_deliveries([Delivery(settler, "c", 7, False, "", "q", Properties(), b"")])

    assert settler.returned == [7]
