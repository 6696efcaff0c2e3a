"""Prefetch that follows the work: how long it takes, how large its messages are, how slow what it feeds is."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.progress import until
from tests.runtime.bodies import QUORUM, publish

from mycelia import (
    AdaptivePrefetch,
    Batch,
    KillSwitch,
    Publisher,
    Queue,
    Retry,
    consume,
    event_handler,
    fixed,
    rpc,
)
from mycelia.amqp import Link
from mycelia.entrypoints.statistics import ConsumerStatistics
from mycelia.errors import ConfigError
from mycelia.testing import ServiceBed, eventually, run_services


def statistics(bed: ServiceBed, service: type) -> ConsumerStatistics:
    (entrypoint,) = bed.container(service).entrypoints
    found = entrypoint.statistics()
    assert isinstance(found, ConsumerStatistics)
    return found


@pytest.mark.timeout(120)
async def test_prefetch_grows_for_quick_work_and_shrinks_for_slow(broker: str, bare: Link) -> None:
    done: Counter[int] = Counter()
    gate = asyncio.Event()
    is_slow = False

    class Work:
        name = "work"

        @consume("work", concurrency=10, prefetch=AdaptivePrefetch(least=12, most=500, wait=1))
        async def work(self, number: int) -> None:
            await (gate.wait() if is_slow else asyncio.sleep(0.001))
            done[number] += 1

    await bare.declare(Queue("work", arguments=QUORUM))
    async with run_services(Work, broker=broker, timeout=15) as bed:
        assert statistics(bed, Work).prefetch == 12
        await publish(bare, "work", [b"%d" % n for n in range(4000)])
        await eventually(lambda: statistics(bed, Work).prefetch == 500, 20)
        await until(lambda: len(done) == 4000, done.total, what="all 4000")

        is_slow = True
        await publish(bare, "work", [b"%d" % n for n in range(4000, 5000)])
        await eventually(lambda: statistics(bed, Work).prefetch <= 20, 30)
        gate.set()
        await until(lambda: len(done) == 5000, done.total, what="all 5000")

    assert done == Counter(range(5000))


@pytest.mark.timeout(120)
async def test_large_messages_are_fewer_at_a_time(broker: str, bare: Link) -> None:
    """However many the prefetch says; and as many as it says when their bytes do not matter any more."""
    seen: list[int] = []
    allowed = asyncio.Semaphore(0)

    def allow(count: int) -> None:
        for _ in range(count):
            allowed.release()

    large = b'"%s"' % (b"x" * 100_000)

    class Large:
        name = "large"

        @consume("large", concurrency=2, prefetch=30)
        async def work(self, text: str) -> None:
            await allowed.acquire()
            seen.append(len(text))

    await bare.declare(Queue("large", arguments=QUORUM))
    await publish(bare, "large", [large] * 300)
    config = {"mycelia": {"prefetch_bytes": 500_000}}
    async with run_services(Large, broker=broker, timeout=15, config=config) as bed:
        await eventually(lambda: 3 <= statistics(bed, Large).prefetch <= 5, 20)
        allow(60)
        await until(lambda: len(seen) == 60, lambda: len(seen), what="60 seen")
        # What the larger prefetch has brought is worked off, however late the broker hears of the smaller one.
        while not 0 < statistics(bed, Large).unsettled <= 5:
            before = len(seen)
            assert before < 200
            allow(1)
            await until(
                lambda before=before: len(seen) > before,
                lambda: len(seen),
                what="one more seen",
                interval=0.01,
            )

        bed.container(Large).host.change_settings({"mycelia": {"prefetch_bytes": 0}})
        await eventually(lambda: statistics(bed, Large).prefetch == 30, 20)
        await eventually(lambda: statistics(bed, Large).unsettled >= 30, 20)
        allow(300 - len(seen))
        await until(lambda: len(seen) == 300, lambda: len(seen), what="all 300")


@pytest.mark.timeout(120)
async def test_slow_sink_slows_its_source_down(broker: str, bare: Link) -> None:
    """The sink takes nothing for a while: the handler waits, and what it has not begun stays in the queue of its source."""
    arrived: Counter[int] = Counter()

    class Moves:
        name = "moves"
        send = Publisher(queue=Queue("sink", arguments=FULL))

        @consume(
            "source",
            concurrency=20,
            prefetch=AdaptivePrefetch(least=20, most=200),
            retry=Retry(20, fixed("200ms")),
        )
        async def work(self, number: int) -> None:
            await self.send(number)

    await bare.declare(Queue("source", arguments=QUORUM), Queue("sink", arguments=FULL))
    await publish(bare, "sink", [b"-1"] * 5)
    async with run_services(Moves, broker=broker, timeout=15) as bed:
        await publish(bare, "source", [b"%d" % n for n in range(1000)])
        link = bed.container(Moves).host.link
        await eventually(lambda: bed.container(Moves).active_workers == 20, 20)
        most = 0
        for _ in range(50):
            most = max(most, statistics(bed, Moves).unsettled)
            assert link.statistics().unconfirmed <= 20
            assert await bare.message_count("source") >= 800 - 5
            await asyncio.sleep(0.01)  # fifty looks at a state that must last
        assert most <= 200

        def take(deliveries: list[Any]) -> None:
            for delivery in deliveries:
                arrived[int(delivery.body)] += 1
                delivery.ack()

        await bare.consume("sink", take)
        await until(lambda: len(arrived) == 1001, arrived.total, what="all moved")

    assert set(arrived) == set(range(-1, 1000))


FULL = {"x-queue-type": "classic", "x-max-length": 5, "x-overflow": "reject-publish"}


@pytest.mark.timeout(120)
async def test_lists_have_a_prefetch_that_adapts_and_holds_a_list(broker: str, bare: Link) -> None:
    done: Counter[int] = Counter()

    class Lists:
        name = "lists"

        @consume(
            "lists",
            batch=Batch(size=50, within=0.05),
            prefetch=AdaptivePrefetch(least=1, most=400),
        )
        async def work(self, numbers: list[int]) -> None:
            await asyncio.sleep(0.001)
            done.update(numbers)

    await bare.declare(Queue("lists", arguments=QUORUM))
    await publish(bare, "lists", [b"%d" % n for n in range(3000)])
    async with run_services(Lists, broker=broker, timeout=15) as bed:
        assert statistics(bed, Lists).prefetch >= 50
        await until(lambda: len(done) == 3000, done.total, what="all 3000")
        assert statistics(bed, Lists).prefetch >= 50

    assert done == Counter(range(3000))


@pytest.mark.timeout(120)
async def test_after_a_kill_switch_s_stop_the_prefetch_is_the_adapted_one(
    broker: str, bare: Link
) -> None:
    done: Counter[int] = Counter()
    is_down = False

    class Shaky:
        name = "shaky"

        @consume(
            "shaky",
            concurrency=10,
            prefetch=AdaptivePrefetch(least=12, most=300, wait="1s"),
            kill_switch=KillSwitch(minimum=10, pause=0.2),
            retry=Retry(50, fixed("50ms")),
        )
        async def work(self, number: int) -> None:
            await asyncio.sleep(0.001)
            if is_down:
                raise ConnectionError("the database is down")
            done[number] += 1

    await bare.declare(Queue("shaky", arguments=QUORUM))
    async with run_services(Shaky, broker=broker, timeout=15) as bed:
        await publish(bare, "shaky", [b"%d" % n for n in range(4000)])
        await eventually(lambda: statistics(bed, Shaky).prefetch == 300, 20)
        await until(lambda: len(done) == 4000, done.total, what="all 4000")
        is_down = True
        await publish(bare, "shaky", [b"%d" % n for n in range(4000, 4200)])
        await eventually(lambda: statistics(bed, Shaky).kill_switch == "stopped", 20)
        is_down = False
        await until(lambda: len(done) == 4200, done.total, what="all 4200")
        await eventually(lambda: statistics(bed, Shaky).kill_switch == "consuming", 20)
        await eventually(lambda: statistics(bed, Shaky).prefetch == 300, 20)


def test_key_and_a_prefetch_that_adapts_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="beside key="):

        class Wrong:
            name = "wrong"

            @event_handler("feed", "departed", key="tail", prefetch=AdaptivePrefetch())
            def departed(self, payload: object) -> None: ...


def test_requests_have_no_prefetch_that_adapts() -> None:
    with pytest.raises(ConfigError, match="only handlers of events and messages"):

        class Wrong:
            name = "wrong"

            @rpc(prefetch=AdaptivePrefetch())
            def get(self) -> None: ...


@pytest.mark.parametrize("options", [{"key": "tail"}, {"batch": Batch()}])
async def test_kill_switch_for_all_is_refused_where_one_cannot_have_it(
    options: dict[str, Any],
) -> None:
    config = {"mycelia": {"kill_switch": True}}

    class Said:
        name = "said"

        @event_handler("feed", "departed", **options)
        async def departed(self, payload: object) -> None: ...

    class Unsaid:
        name = "unsaid"

        @event_handler("feed", "departed", kill_switch=False, **options)
        async def departed(self, payload: object) -> None: ...

    with pytest.raises(ConfigError, match=r"said\.departed has .* Say kill_switch=False"):
        async with run_services(Said, config=config):
            pass
    async with run_services(Unsaid, config=config):
        pass
