"""`@timer` by the calendar and once for a fleet, in services on `memory://`: one instance ticks, and another goes on."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from mycelia import Retry, Runner, Tick, TimerCall, fixed, get_current_call, timer
from mycelia.amqp import Link, Message, Properties, connect
from mycelia.entrypoints import tick_lease
from mycelia.entrypoints.timer import Timer
from mycelia.errors import ConfigError
from mycelia.testing import eventually

_brokers = itertools.count(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick_lease, "SETTLED_AFTER", 0.05)
    monkeypatch.setattr(tick_lease, "REMIND_AFTER_LOSS", 0.05)


@pytest.fixture
def uri() -> str:
    return f"memory://fleet-{next(_brokers)}"


@pytest.fixture
async def link(uri: str) -> AsyncIterator[Link]:
    link = connect(uri)
    await link.open()
    yield link
    await link.aclose()


class Fleet:
    """Instances of one service, each with a book of what it has run."""

    def __init__(self, uri: str, **options: Any) -> None:
        self.uri = uri
        self.options = {"interval": 0.1, **options}
        self.ran: list[tuple[int, Tick]] = []
        self.runners: dict[int, Runner] = {}
        self.work: Any = None

    async def start(self, number: int) -> None:
        fleet = self

        class Service:
            name = "service"

            @timer(once_per_fleet=True, **fleet.options)
            async def tick(self, tick: Tick) -> None:
                fleet.ran.append((number, tick))
                if fleet.work is not None:
                    await fleet.work(number)

        runner = self.runners[number] = Runner({"AMQP_URI": self.uri}, [Service])
        await runner.start(5)

    def timer(self, number: int) -> Timer:
        found = self.runners[number].containers[0].entrypoints[0]
        assert isinstance(found, Timer)
        return found

    @property
    def holders(self) -> list[int]:
        return [n for n in self.runners if self.timer(n).statistics().holds_lease]

    async def stop(self) -> None:
        for runner in self.runners.values():
            await runner.stop()


@pytest.fixture
async def fleet(uri: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(uri)
    yield fleet
    await fleet.stop()


def assert_none_ran_twice(fleet: Fleet) -> None:
    counts = Counter(tick.key for _, tick in fleet.ran)
    assert [key for key, count in counts.items() if count > 1] == []


async def test_of_many_instances_one_ticks_and_another_when_it_stops(fleet: Fleet) -> None:
    for number in range(4):
        await fleet.start(number)
    await eventually(lambda: len(fleet.ran) >= 3)
    (first,) = fleet.holders

    await fleet.runners[first].stop()
    stopped_at = len(fleet.ran)
    await eventually(lambda: len(fleet.ran) >= stopped_at + 3)

    assert {number for number, _ in fleet.ran[:stopped_at]} == {first}
    assert len({number for number, _ in fleet.ran[stopped_at:]}) == 1
    assert first not in {number for number, _ in fleet.ran[stopped_at:]}
    assert_none_ran_twice(fleet)
    scheduled = [tick.scheduled.timestamp() for _, tick in fleet.ran]
    assert scheduled == sorted(scheduled)
    assert all(abs(at * 10 - round(at * 10)) < 1e-3 for at in scheduled)  # the grid since 1970


async def test_cut_connections_move_the_lease_and_repeats_nothing(fleet: Fleet, link: Any) -> None:
    for number in range(3):
        await fleet.start(number)
    for _ in range(5):
        before = len(fleet.ran)
        await eventually(lambda before=before: len(fleet.ran) > before)
        link.broker.drop_connections()
        await eventually(lambda: len(fleet.holders) == 1)

    assert_none_ran_twice(fleet)


async def test_a_fleet_that_was_away_makes_up_for_one_tick(uri: str) -> None:
    await leave_a_note(uri, time.time() - 3600)
    fleet = Fleet(uri, interval=300, missed="once")
    await fleet.start(1)
    await eventually(lambda: bool(fleet.ran))
    (_, tick) = fleet.ran[0]
    await fleet.stop()

    late = time.time() - tick.scheduled.timestamp()
    assert 0 <= late < 301
    assert len(fleet.ran) == 1


async def test_missed_ticks_are_all_run_oldest_first(uri: str) -> None:
    now = time.time()
    await leave_a_note(uri, now - 1500)
    fleet = Fleet(uri, interval=300, missed="all")
    await fleet.start(1)
    await eventually(lambda: len(fleet.ran) >= 5)
    await fleet.stop()

    scheduled = [tick.scheduled.timestamp() for _, tick in fleet.ran]
    assert scheduled == sorted(scheduled)
    assert [b - a for a, b in itertools.pairwise(scheduled)] == [300] * (len(scheduled) - 1)


async def test_by_default_missed_ticks_are_left_out_and_counted(uri: str) -> None:
    at = time.time() // 300 * 300
    if (
        time.time() - at < 31
    ):  # the last tick would still be in time: take a grid that is further from here
        at -= 300
    await leave_a_note(uri, at - 600)
    fleet = Fleet(uri, interval=3600 * 24 * 365)
    await fleet.start(1)
    await eventually(lambda: fleet.holders == [1])
    await fleet.stop()

    assert fleet.ran == []


async def leave_a_note(uri: str, last: float) -> None:
    """As a fleet leaves it whose last tick was then."""
    link = connect(uri)
    await link.open()
    fleet = Fleet(uri, interval=3600 * 24 * 365)
    await fleet.start(1)
    await eventually(lambda: fleet.holders == [1])
    await fleet.stop()
    held = await link.get("timer-service.tick")
    assert held is not None
    held.ack()
    body = f'{{"kind":"done","tick_ms":{int(last * 1000)}}}'.encode()
    await link.publish(Message("", "timer-service.tick", body, Properties(delivery_mode=2)))
    await link.aclose()


async def test_a_deleted_queue_comes_back_and_the_ticks_go_on(fleet: Fleet, link: Link) -> None:
    await fleet.start(1)
    await fleet.start(2)
    await eventually(lambda: len(fleet.ran) >= 2)

    await link.delete_queue("timer-service.tick")
    before = len(fleet.ran)
    await eventually(lambda: len(fleet.ran) >= before + 3, 30)

    assert_none_ran_twice(fleet)


async def test_rubbish_in_the_queue_is_thrown_away(fleet: Fleet, link: Link) -> None:
    await fleet.start(1)
    await eventually(lambda: len(fleet.ran) >= 1)
    for body in (b"", b"\xff", b"[" * 10_000, b'{"kind":"done","tick_ms":9999999999999}'):
        await link.publish(Message("", "timer-service.tick", body, Properties()))

    before = len(fleet.ran)
    await eventually(lambda: len(fleet.ran) >= before + 3)


async def test_a_failing_tick_is_followed_by_the_next(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(_: int) -> None:
        raise ValueError("no")

    fleet.work = work
    await fleet.start(1)
    await eventually(lambda: len(fleet.ran) >= 3)

    assert "worker_failed call=service.tick " in caplog.text
    assert_none_ran_twice(fleet)


async def test_a_failed_tick_is_tried_again_by_the_instance_that_began_it(fleet: Fleet) -> None:
    attempts: list[tuple[int, int]] = []

    async def work(number: int) -> None:
        call = get_current_call()
        assert call is not None
        attempts.append((number, call.attempt))
        if call.attempt < 3:
            raise ValueError("no")

    fleet.work = work
    fleet.options |= {"interval": 1, "retry": Retry(attempts=3, backoff=fixed(0.05))}
    for number in range(3):
        await fleet.start(number)
    await eventually(lambda: len(attempts) >= 6, 30)

    assert [attempt for _, attempt in attempts[:6]] == [1, 2, 3] * 2
    assert len({number for number, _ in attempts[:3]}) == 1
    assert set(Counter(tick.key for _, tick in fleet.ran[:6]).values()) == {3}


async def test_a_failed_tick_is_given_up_with_the_lease(
    fleet: Fleet, link: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(_: int) -> None:
        raise ValueError("no")

    caplog.set_level(logging.INFO)
    fleet.work = work
    fleet.options |= {"missed": "all", "retry": Retry(attempts=3, backoff=fixed(1))}
    await fleet.start(1)
    await eventually(lambda: "tick_tried_again" in caplog.text)
    await fleet.start(2)
    await fleet.runners[1].host.link.aclose()  # the lease moves
    await eventually(lambda: fleet.holders == [2], 30)

    await eventually(lambda: "the lease was lost" in caplog.text, 30)
    first = fleet.ran[0][1].key
    assert [number for number, tick in fleet.ran if tick.key == first] == [1]


# --- what the method and middleware are given ---------------------------------------------------------


async def test_a_tick_comes_as_argument_and_in_the_call() -> None:
    seen: list[Tick] = []

    class Service:
        name = "service"

        @timer(0.05)
        async def given(self, tick: Tick) -> None:
            call = get_current_call()
            assert isinstance(call, TimerCall)
            assert call.tick is tick
            seen.append(tick)

        @timer(0.05)
        def asks(self, force: bool = False) -> None:
            assert force is False
            call = get_current_call()
            assert isinstance(call, TimerCall)
            seen.append(call.tick)

    async with Runner({"AMQP_URI": "memory://ticks"}, [Service]):
        await eventually(
            lambda: {t.key.split("@")[0] for t in seen} == {"service.given", "service.asks"}
        )

    assert all(abs((datetime.now(UTC) - tick.scheduled).total_seconds()) < 10 for tick in seen)


# --- cron ------------------------------------------------------------------------------------------------


async def test_a_cron_timer_ticks_each_second_of_the_clock() -> None:
    ran: list[tuple[float, Tick]] = []

    class Service:
        name = "service"

        @timer(cron="* * * * * *", timezone="Europe/Berlin")
        async def tick(self, tick: Tick) -> None:
            ran.append((time.time(), tick))

    async with Runner({}, [Service]):
        await eventually(lambda: len(ran) >= 3, 30)

    for at, tick in ran:
        assert tick.scheduled.microsecond == 0
        assert tick.scheduled.timestamp() <= at
        assert tick.key == f"service.tick@{tick.scheduled:%Y-%m-%dT%H:%M:%SZ}"
    # A busy machine may be late for one, hardly for all.
    assert min(at - tick.scheduled.timestamp() for at, tick in ran) < 0.9


class SetClock:
    """A wall clock that can be set, in place of `time.time()` in the timer alone."""

    def __init__(self, now: float) -> None:
        self.offset = now - time.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self.offset


@pytest.mark.parametrize(("missed", "expected"), [("skip", 0), ("once", 1), ("all", 24)])
async def test_a_clock_that_is_set_a_day_ahead(
    monkeypatch: pytest.MonkeyPatch, missed: Any, expected: int
) -> None:
    module = sys.modules["mycelia.entrypoints.timer"]
    clock = SetClock(datetime(2026, 11, 26, 6, 30, tzinfo=UTC).timestamp())
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.02)
    ran: list[str] = []

    class Service:
        name = "service"

        @timer(cron="0 * * * *", missed=missed)
        async def tick(self, tick: Tick) -> None:
            ran.append(tick.key)

    async with Runner({}, [Service]) as runner:
        entrypoint = runner.containers[0].entrypoints[0]
        clock.offset += 24 * 3600
        if missed == "skip":
            await eventually(lambda: entrypoint.skipped == 24)
        await eventually(lambda: len(ran) >= expected)
        clock.offset += 1800
        await eventually(lambda: len(ran) >= expected + 1)

    assert len(ran) == len(set(ran)) == expected + 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"cron": "every day"}, "is no cron expression: Wrong number of fields"),
        ({"cron": "61 * * * *"}, "is no cron expression: Bad minute"),
        ({"cron": "0 0 30 2 *"}, "is no cron expression: Bad day-of-month"),
        ({"cron": "0 6 * * *", "timezone": "Europe/Atlantis"}, "no time zone"),
        ({"cron": "0 6 * * *", "timezone": "../etc/passwd"}, "no time zone"),
        ({"cron": "0 6 * * *", "timezone": "Europe"}, "no time zone"),
        ({"cron": "0 6 * * *", "interval": 5}, "give one of the two"),
        ({"interval": 5, "timezone": "Europe/Berlin"}, "an interval has none"),
        ({}, "missing a required argument: .interval"),
        ({"interval": 5, "missed": "never"}, "expected one of skip, once, all"),
        ({"interval": 0, "once_per_fleet": True}, "expected at least 0.1 s"),
        ({"interval": 5, "eager": True, "once_per_fleet": True}, "for each instance"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_method(
    options: Any, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:

        class Service:
            name = "service"

            @timer(**options)
            async def report(self) -> None: ...

    text = str(caught.value)
    assert text.startswith("Service.report: @timer")
    assert "\n" not in text


async def test_without_cronsim_the_start_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    monkeypatch.setattr("mycelia.extras.find_spec", lambda name: None if name == "cronsim" else 1)

    class Service:
        name = "service"

        @timer(cron="0 6 * * *")
        async def report(self) -> None: ...

    with pytest.raises(ConfigError) as caught:
        Runner({}, [Service])

    assert str(caught.value) == (
        'service.report: @timer(cron="0 6 * * *") needs cronsim, which is not installed: pip install "mycelia[cron]"'
    )


async def test_what_a_method_takes_is_checked_at_the_start(uri: str) -> None:
    class Two:
        name = "service"

        @timer(5)
        async def report(self, tick: Tick, other: int) -> None: ...

    class Twice:
        name = "service"

        @timer(5, once_per_fleet=True)
        @timer(cron="0 6 * * *", once_per_fleet=True)
        async def report(self) -> None: ...

    with pytest.raises(ConfigError, match=r"service\.report: a timer's method takes no arguments"):
        await Runner({"AMQP_URI": uri}, [Two]).start()
    with pytest.raises(ConfigError, match=r"service\.report: has two timers with once_per_fleet"):
        await Runner({"AMQP_URI": uri}, [Twice]).start()
