"""A clock that a test moves, and what moves with it."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import uvloop

from mycelia import Queue, Retry, consume, event_handler, fixed, rpc, timer
from mycelia.amqp import Message, Properties, connect
from mycelia.amqp.delays import Delays
from mycelia.errors import HandlerTimeout, RpcTimeout, RuntimeStateError
from mycelia.testing import DrivenClock, entrypoint_waiter, run_services


@pytest.fixture
async def clock() -> AsyncIterator[DrivenClock]:
    with DrivenClock() as clock:
        yield clock


async def test_all_clocks_of_the_process_move_together(clock: DrivenClock) -> None:
    loop = asyncio.get_running_loop()
    before = time.monotonic(), time.time(), loop.time(), time.time_ns() / 1e9
    await clock.advance("1h")
    after = time.monotonic(), time.time(), loop.time(), time.time_ns() / 1e9

    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([3600] * 4, abs=1)
    assert clock.ahead == pytest.approx(3600, abs=1)


async def test_what_falls_due_happens_in_its_order_and_each_at_its_time(clock: DrivenClock) -> None:
    began, seen = time.monotonic(), []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((seconds, round(time.monotonic() - began)))
        await asyncio.sleep(seconds)
        seen.append((seconds, round(time.monotonic() - began)))

    async with asyncio.TaskGroup() as group:
        for seconds in (40, 10, 25):
            group.create_task(sleeper(seconds))
        await clock.advance("2m")

    assert seen == [(10, 10), (10, 20), (25, 25), (40, 40), (25, 50), (40, 80)]


async def test_clock_goes_on_by_itself_so_that_no_wait_hangs(clock: DrivenClock) -> None:
    await clock.advance("5m")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


async def test_timers_tick_as_often_as_time_says(clock: DrivenClock) -> None:
    class Reminder:
        name = "reminder"
        times: list[float] = []  # noqa: RUF012  for the test to read

        @timer(60)
        def remind(self) -> None:
            self.times.append(clock.ahead)

    async with run_services(Reminder):
        await clock.advance("5m")
        assert [round(at) for at in Reminder.times] == [60, 120, 180, 240, 300]


async def test_rpc_deadline_passes(clock: DrivenClock) -> None:
    class Silent:
        name = "silent"

        @rpc
        async def wait(self) -> None:
            await asyncio.Event().wait()

    async with run_services(Silent, timeout=30) as bed:
        calling = asyncio.create_task(bed.client.call("silent", "wait"))
        await clock.advance(29)
        assert not calling.done()
        await clock.advance(2)
        with pytest.raises(RpcTimeout, match="within 30 s"):
            await calling


async def test_handler_timeout_passes(clock: DrivenClock) -> None:
    class Slow:
        name = "slow"

        @event_handler("feed", "departed", timeout=120)
        async def departed(self, event: Any) -> None:
            await asyncio.Event().wait()

    async with run_services(Slow) as bed:
        async with entrypoint_waiter(bed.container(Slow), "departed") as result:
            await bed.client.publish("feed", "departed", {})
            await clock.advance("3m")
        with pytest.raises(HandlerTimeout, match="after 120 s"):
            result.get()


async def test_pauses_before_another_attempt_pass(clock: DrivenClock) -> None:
    class Stubborn:
        name = "stubborn"
        attempts: list[float] = []  # noqa: RUF012  for the test to read

        @consume(Queue("stubborn"), retry=Retry(attempts=9, backoff=fixed("5s")))
        async def take(self, payload: Any) -> None:
            self.attempts.append(clock.ahead)
            if len(self.attempts) < 9:
                raise LookupError

    async with run_services(Stubborn) as bed:
        async with entrypoint_waiter(
            bed.container(Stubborn), "take", callback=lambda ctx, _, exc_info: exc_info is None
        ):
            await _publish(bed.broker, "stubborn")
            await clock.advance("1m")
    assert len(Stubborn.attempts) == 9
    assert 39.9 < Stubborn.attempts[-1] < 45


async def _publish(uri: str, queue: str, expiration: str | None = None) -> None:
    link = connect(uri)
    await link.open(5)
    properties = Properties(content_type="application/json", expiration=expiration)
    await link.publish(Message("", queue, b"{}", properties), timeout=5)
    await link.aclose()


async def test_ttl_and_expiry_of_queues_in_memory_pass(clock: DrivenClock) -> None:
    link = connect("memory://driven-ttl")
    await link.open(5)
    try:
        await link.declare(
            Queue("delay", arguments={"x-message-ttl": 300_000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "later"}),
            Queue("later"),
            Queue("brief", arguments={"x-expires": 60_000}),
        )  # fmt: skip
        await link.publish(Message("", "delay", b"{}", Properties()), timeout=5)

        await clock.advance("4m")
        assert (await link.message_count("delay"), await link.message_count("later")) == (1, 0)
        await clock.advance("2m")
        assert (await link.message_count("delay"), await link.message_count("later")) == (0, 1)
        assert "brief" not in link.broker.queue_names  # type: ignore[attr-defined]
    finally:
        await link.aclose()


@pytest.mark.parametrize("once_per_fleet", [False, True])
async def test_timers_by_the_wall_clock_tick_as_often_as_it_says(
    clock: DrivenClock, once_per_fleet: bool
) -> None:
    class Hourly:
        name = "hourly"
        ticks = 0

        @timer(cron="0 * * * *", timezone="Europe/Berlin", once_per_fleet=once_per_fleet)
        async def tick(self) -> None:
            type(self).ticks += 1

    async with run_services(Hourly):
        await clock.advance("1s")  # a lease is being taken
        await clock.advance("24h")
        assert Hourly.ticks == 24


async def test_messages_that_arrive_later_do_so_at_their_time(clock: DrivenClock) -> None:
    link = connect("memory://driven-delays")
    await link.open(5)
    try:
        await link.declare(Queue("goal"))
        delays = Delays(link)
        for _ in range(2):  # the queues that keep them expire in between
            await delays.publish(Message("", "goal", b"{}", Properties()), 300)
            await clock.advance("4m")
            assert await link.message_count("goal") == 0
            await clock.advance("2m")
            delivery = await link.get("goal")
            assert delivery is not None
            delivery.ack()
            await clock.advance("1d")
    finally:
        await link.aclose()


async def test_workers_in_threads_end_before_time_moves_on(clock: DrivenClock) -> None:
    class Blocking:
        name = "blocking"
        seen: list[float] = []  # noqa: RUF012  for the test to read

        @timer(60)
        def work(self) -> None:
            time.sleep(0.05)
            self.seen.append(clock.ahead)

    async with run_services(Blocking):
        await clock.advance("3m")
        assert [round(at) for at in Blocking.seen] == [60, 120, 180]


async def test_a_month_passes_in_a_moment(clock: DrivenClock) -> None:
    class Daily:
        name = "daily"
        ticks = 0

        @timer(86_400)
        async def tick(self) -> None:
            type(self).ticks += 1

    began = time.perf_counter()
    async with run_services(Daily):
        await clock.advance(timedelta(days=30))

    assert Daily.ticks == 30
    assert time.perf_counter() - began < 20


async def test_time_is_the_real_one_again_afterwards() -> None:
    real = time.monotonic, time.time, time.monotonic_ns, time.time_ns
    fired = asyncio.Event()
    with DrivenClock() as clock:
        await clock.advance("1h")
        asyncio.get_running_loop().call_later(0.01, fired.set)

    assert (time.monotonic, time.time, time.monotonic_ns, time.time_ns) == real
    async with asyncio.timeout(2):  # what was set by the driven clock is not an hour late
        await fired.wait()


async def test_misuse_says_what_to_do() -> None:
    with pytest.raises(RuntimeStateError, match="is not open"):
        await DrivenClock().advance(1)
    with DrivenClock():
        with pytest.raises(RuntimeStateError, match="another DrivenClock is open"):
            DrivenClock().__enter__()


def test_uvloops_clock_cannot_be_moved() -> None:
    async def advance() -> None:
        with DrivenClock() as clock:
            await clock.advance(1)

    with pytest.raises(RuntimeStateError, match="Run this test on asyncio's event loop"):
        uvloop.run(advance())


async def test_loop_that_never_rests_does_not_hold_the_clock_for_ever(
    clock: DrivenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mycelia.testing.driven_clock.SETTLE_S", 0.05)

    turning = True

    def turn() -> None:
        if turning:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    await clock.advance("1m")
    turning = False

    assert clock.ahead >= 59
