"""The timer in a running service; what it decides is in `test_schedules.py` and `test_agenda.py`."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from typing import Any

import pytest

from mycelia import (
    Call,
    Next,
    Outcome,
    Redeliver,
    Retry,
    RetryLater,
    Runner,
    TimerCall,
    fixed,
    get_current_call,
    timer,
)
from mycelia.entrypoints.timer import Timer
from mycelia.errors import ConfigError
from mycelia.testing import eventually

CONFIG = {"AMQP_URI": "memory://timer"}


@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf"), True, "5", None])
def test_an_interval_that_cannot_be_is_refused_where_it_is_written(interval: Any) -> None:
    with pytest.raises(ConfigError, match=r"@timer.*seconds between ticks, a number of at least 0"):
        timer(interval=interval)(lambda self: None)


# --- in a service -------------------------------------------------------------------------------------


def timer_of(runner: Runner, number: int = 0) -> Timer:
    entrypoint = runner.containers[0].entrypoints[number]
    assert isinstance(entrypoint, Timer)
    return entrypoint


class DrivenLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        loop = self
        self.now = 1000.0

        class Jumping(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                if timeout is None:
                    return super().select(None)
                loop.now += max(timeout, 0)
                return super().select(0)

        super().__init__(Jumping())

    def time(self) -> float:
        return self.now


def run_driven(service: type, until: float, **options: Any) -> tuple[Timer, float]:
    """Run `service` for `until` driven seconds. Gives its timer and when it started."""

    async def run() -> tuple[Timer, float]:
        loop = asyncio.get_running_loop()
        async with Runner(CONFIG, [service], **options) as runner:
            started = loop.time()
            await asyncio.sleep(until)
            return timer_of(runner), started

    with asyncio.Runner(loop_factory=DrivenLoop) as driver:
        return driver.run(run())


def test_ticks_come_on_the_grid_of_the_start_and_missed_ones_are_left_out() -> None:
    times: list[float] = []
    work = iter([0.0, 0.9, 1.0, 2.5, 0.1, 0.0, 0.0])

    class Service:
        name = "service"

        @timer(interval=1)
        async def tick(self) -> None:
            times.append(asyncio.get_running_loop().time())
            await asyncio.sleep(next(work))

    ticker, started = run_driven(Service, 10.5)

    # The worker of tick 3 ends with tick 4, that of tick 5 in the middle of tick 7.
    assert [round(t - started, 3) for t in times] == [1, 2, 3, 5, 8, 9, 10]
    assert (ticker.ticks, ticker.skipped) == (7, 3)


def test_a_timer_does_not_drift_in_a_day() -> None:
    times: list[float] = []

    class Service:
        name = "service"

        @timer(interval=60)
        async def tick(self) -> None:
            await asyncio.sleep(0.7)
            times.append(asyncio.get_running_loop().time())

    _, started = run_driven(Service, 24 * 3600 + 30)

    assert len(times) == 24 * 60
    assert times[-1] - started == pytest.approx(24 * 3600 + 0.7, abs=1e-3)


async def test_an_eager_timer_runs_at_once_and_another_after_its_interval() -> None:
    ran: list[str] = []

    class Service:
        name = "service"

        @timer(interval=3600, eager=True)
        async def eager(self) -> None:
            ran.append("eager")

        @timer(3600)
        async def patient(self) -> None:
            ran.append("patient")

        @timer(0.05)
        async def later(self) -> None:
            ran.append("later")

    async with Runner(CONFIG, [Service]):
        await eventually(lambda: "later" in ran)

    assert ran[0] == "eager"
    assert "patient" not in ran


async def test_a_slow_def_method_is_not_run_twice_at_once_and_its_ticks_are_counted() -> None:
    release = threading.Event()
    running, at_most = 0, 0

    class Service:
        name = "service"

        @timer(0.01)
        def tick(self) -> None:
            nonlocal running, at_most
            running += 1
            at_most = max(at_most, running)
            release.wait(5)
            running -= 1

    async with Runner(CONFIG, [Service]) as runner:
        ticker = timer_of(runner)
        await eventually(lambda: running == 1)
        begun = time.monotonic()
        await eventually(lambda: time.monotonic() > begun + 0.1)  # ten ticks come due
        ticks_while_running = ticker.ticks
        release.set()
        await eventually(lambda: ticker.ticks >= 3)

    assert ticks_while_running == 1
    assert at_most == 1
    assert ticker.skipped >= 8


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_timer_survives_whatever_its_method_raises(
    error: BaseException, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ran = 0

    class Async:
        name = "service"

        @timer(0.01)
        async def tick(self) -> None:
            nonlocal ran
            ran += 1
            raise error

    class Thread:
        name = "service"

        @timer(0.01)
        def tick(self) -> None:
            nonlocal ran
            ran += 1
            raise error

    async with Runner(CONFIG, [Async if is_async else Thread]):
        await eventually(lambda: ran >= 3)

    failed = [
        r for r in caplog.records if r.getMessage().startswith("worker_failed call=service.tick ")
    ]
    assert len(failed) >= 2
    assert failed[0].exc_info is not None
    assert failed[0].exc_info[1] is error


async def test_an_expected_error_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Service:
        name = "service"

        @timer(0.01, expected_exceptions=(ConnectionError,))
        async def tick(self) -> None:
            raise ConnectionError("away")

    async with Runner(CONFIG, [Service]) as runner:
        await eventually(lambda: timer_of(runner).ticks >= 2)

    levels = {r.levelname for r in caplog.records if "service.tick" in r.getMessage()}
    assert levels == {"WARNING"}


async def test_a_stop_lets_the_running_worker_finish_and_starts_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "mycelia.runtime")
    begun, release = asyncio.Event(), asyncio.Event()
    finished = 0

    class Service:
        name = "service"

        @timer(0.01, eager=True)
        async def tick(self) -> None:
            nonlocal finished
            begun.set()
            await release.wait()
            finished += 1

    runner = Runner(CONFIG, [Service])
    await runner.start()
    await begun.wait()
    stopping = asyncio.create_task(runner.stop())
    await eventually(lambda: "service_draining" in caplog.text)  # the timer has stopped
    release.set()
    await stopping

    assert finished == 1
    assert timer_of(runner).ticks == 1


async def test_ticks_share_the_service_wide_limit() -> None:
    """With one worker for the whole service two timers take turns, and a stop forgets the one that waits."""
    running, at_most = 0, 0

    async def work() -> None:
        nonlocal running, at_most
        running += 1
        at_most = max(at_most, running)
        await asyncio.sleep(0.005)
        running -= 1

    class Service:
        name = "service"

        @timer(0.01)
        async def one(self) -> None:
            await work()

        @timer(0.01)
        async def two(self) -> None:
            await work()

    async with Runner({**CONFIG, "max_workers": 1}, [Service]) as runner:
        await eventually(lambda: timer_of(runner, 0).ticks >= 3 and timer_of(runner, 1).ticks >= 3)

    assert at_most == 1


async def test_without_an_interval_it_runs_again_when_it_has_ended() -> None:
    """One worker at a time, and the loop's other work gets its turn."""
    running, most, runs = 0, 0, 0

    class Service:
        name = "ticker"

        @timer(interval=0)
        async def tick(self) -> None:
            nonlocal running, most, runs
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            runs += 1

    async with Runner(CONFIG, [Service]):
        await eventually(lambda: runs > 20)

    assert most == 1


# --- a tick that fails ----------------------------------------------------------------------------------


class Tries:
    """A service whose ticks do what they are told, and what came: seconds since the start, the tick's number, the attempt."""

    def __init__(self, work: Any, interval: float = 60, **options: Any) -> None:
        tries = self
        self.seen: list[tuple[float, int, int]] = []
        self.begun = self.running = 0

        class Service:
            name = "service"

            @timer(interval, **options)
            async def tick(self) -> None:
                call = get_current_call()
                assert isinstance(call, TimerCall)
                assert tries.running == 0
                tries.running += 1
                try:
                    tries.begun += call.attempt == 1
                    now = asyncio.get_running_loop().time()
                    tries.seen.append((now, tries.begun, call.attempt))
                    await work(call.attempt)
                finally:
                    tries.running -= 1

        self.service = Service

    def run(self, until: float, **options: Any) -> list[tuple[float, int, int]]:
        async def run() -> None:
            async with Runner(CONFIG, [self.service], **options) as runner:
                self.timer = timer_of(runner)
                await asyncio.sleep(until)

        with asyncio.Runner(loop_factory=DrivenLoop) as driver:
            driver.run(run())
        return [
            (round(at - self.timer._started, 3), tick, attempt) for at, tick, attempt in self.seen
        ]


async def fail(attempt: int) -> None:
    raise ConnectionError("no net")


def test_a_tick_that_fails_is_tried_again_as_its_policy_says() -> None:
    tries = Tries(fail, retry=Retry(attempts=4, backoff=fixed(1, 5, 30)))

    assert tries.run(190) == [
        *((60, 1, 1), (61, 1, 2), (66, 1, 3), (96, 1, 4)),
        *((120, 2, 1), (121, 2, 2), (126, 2, 3), (156, 2, 4)),
        *((180, 3, 1), (181, 3, 2), (186, 3, 3)),
    ]
    assert (tries.timer.ticks, tries.timer.retried, tries.timer.skipped) == (3, 8, 0)


def test_a_tick_that_succeeds_at_last_is_done() -> None:
    async def work(attempt: int) -> None:
        if attempt < 3:
            raise ConnectionError("no net")

    assert Tries(work, retry=Retry(backoff=fixed(1))).run(119) == [
        *((60, 1, 1), (61, 1, 2), (62, 1, 3)),
    ]


@pytest.mark.parametrize("missed", ["skip", "once"])
def test_the_next_tick_ends_the_attempts_of_the_one_before(
    missed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tries = Tries(fail, retry=Retry(attempts=9, backoff=fixed(25)), missed=missed)

    assert tries.run(130) == [(60, 1, 1), (85, 1, 2), (110, 1, 3), (120, 2, 1)]
    assert "tick_given_up" in caplog.text
    assert "attempts=3" in caplog.text


def test_ticks_that_are_all_run_wait_for_the_attempts_of_the_one_before() -> None:
    tries = Tries(fail, retry=Retry(attempts=4, backoff=fixed(25)), missed="all")

    assert tries.run(200) == [
        *((60, 1, 1), (85, 1, 2), (110, 1, 3), (135, 1, 4)),
        *((135, 2, 1), (160, 2, 2), (185, 2, 3)),
    ]
    assert tries.timer.skipped == 0


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("skip", [(60, 1, 1), (130, 1, 2), (180, 2, 1)]),  # the tick of 120 is left out
        ("once", [(60, 1, 1), (125, 2, 1), (190, 3, 1)]),
        ("all", [(60, 1, 1), (130, 1, 2), (130, 2, 1)]),
    ],
)
def test_an_attempt_that_outlasts_the_next_tick(missed: Any, expected: Any) -> None:
    async def work(attempt: int) -> None:
        await asyncio.sleep(65 if attempt == 1 else 0)
        if attempt == 1:
            raise ConnectionError("no net")

    tries = Tries(work, retry=Retry(backoff=fixed(5)), missed=missed)

    assert tries.run(194.9) == expected


def test_without_a_policy_a_tick_that_fails_is_followed_by_the_next() -> None:
    assert Tries(fail).run(130) == [(60, 1, 1), (120, 2, 1)]


def test_a_method_says_itself_when_it_is_tried_again() -> None:
    async def work(attempt: int) -> None:
        if attempt < 3:
            raise RetryLater("10s")

    assert Tries(work).run(119) == [(60, 1, 1), (70, 1, 2), (80, 1, 3)]


def test_errors_that_are_not_meant_are_not_tried_again() -> None:
    tries = Tries(fail, retry=Retry(backoff=fixed(1), give_up_on=OSError))

    assert tries.run(119) == [(60, 1, 1)]


def test_a_middleware_may_have_a_tick_tried_again() -> None:
    async def again(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        return outcome.replace(settlement=Redeliver(3)) if call.attempt == 1 else outcome

    async def work(attempt: int) -> None: ...

    assert Tries(work).run(119, inbound=(again,)) == [(60, 1, 1), (63, 1, 2)]


def test_what_is_run_without_a_pause_is_tried_again_after_one() -> None:
    async def work(attempt: int) -> None:
        await asyncio.sleep(1)
        if attempt == 1:
            raise ConnectionError("no net")

    tries = Tries(work, interval=0, retry=Retry(attempts=2, backoff=fixed(5)))

    assert tries.run(13.5) == [(0, 1, 1), (6, 1, 2), (7, 2, 1), (13, 2, 2)]


def test_an_eager_tick_is_tried_again_until_the_next_one() -> None:
    tries = Tries(fail, eager=True, retry=Retry(attempts=9, backoff=fixed(25)))

    assert tries.run(61) == [(0, 1, 1), (25, 1, 2), (50, 1, 3), (60, 2, 1)]


async def test_a_stop_does_not_wait_for_another_attempt() -> None:
    began = asyncio.Event()

    class Service:
        name = "service"

        @timer(0.05, missed="all", retry=Retry(backoff=fixed("1h")))
        async def tick(self) -> None:
            began.set()
            raise ConnectionError("no net")

    async with asyncio.timeout(10):
        async with Runner(CONFIG, [Service]):
            await began.wait()


def test_a_retry_that_is_none_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"@timer.*retry=3: expected Retry"):
        timer(60, retry=3)(lambda self: None)  # type: ignore[arg-type]
