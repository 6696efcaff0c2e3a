"""Lanes: bounds, order, fairness, and slots that always come back."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from mycelia.call import Call, CallKind, Outcome, Settle
from mycelia.runtime.lane import Lane, ServiceSlots
from mycelia.runtime.threads import ThreadPool

Work = Callable[[Call], Coroutine[Any, Any, Outcome]]


class Scene:
    """Lanes over plain coroutine functions, with what was settled in order."""

    def __init__(self) -> None:
        self.settled: list[tuple[Call, Outcome]] = []
        self.expired: list[Call] = []
        self.gates: dict[Call, asyncio.Event] = {}
        self.running: list[Call] = []

    async def gated(self, call: Call) -> Outcome:
        self.running.append(call)
        gate = self.gates.setdefault(call, asyncio.Event())
        try:
            await gate.wait()
        except BaseException as exc:  # noqa: BLE001  an invocation never raises
            return Outcome(error=exc)
        return Outcome(call.method)

    def lane(
        self, limit: int = 2, slots: ServiceSlots | None = None, work: Work | None = None
    ) -> Lane:
        loop = asyncio.get_running_loop()
        invocation: Any = SimpleNamespace(
            container=SimpleNamespace(service_name="s"),
            entrypoint=SimpleNamespace(method_name="m"),
            is_async=True,
            run=work or self.gated,
        )
        return Lane(
            invocation,
            lambda call, outcome: self.settled.append((call, outcome)),
            limit=limit,
            slots=slots or ServiceSlots(None),
            threads=ThreadPool(loop, 1, "test"),
            loop=loop,
            on_expired=self.expired.append,
        )

    def open(self, call: Call) -> None:
        self.gates.setdefault(call, asyncio.Event()).set()


def calls(count: int) -> list[Call]:
    return [Call(CallKind.RPC, "s", str(n)) for n in range(count)]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_no_more_workers_run_than_the_limit_and_the_rest_start_in_arrival_order() -> None:
    scene = Scene()
    lane = scene.lane(limit=2)
    todo = calls(5)
    for call in todo:
        lane.submit(call)
    await turns()
    assert scene.running == todo[:2]
    assert lane.waiting == 3

    scene.open(todo[1])
    await turns()
    assert scene.running == todo[:3]

    for call in todo:
        scene.open(call)
    await lane.wait_idle()
    assert scene.running == todo
    assert lane.active == 0


async def test_each_call_is_settled_exactly_once() -> None:
    scene = Scene()
    lane = scene.lane(limit=3)
    todo = calls(10)
    for call in todo:
        scene.open(call)
        lane.submit(call)
    await lane.wait_idle()

    assert [call for call, _ in scene.settled] == todo


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyboardInterrupt, SystemExit, asyncio.CancelledError]
)
async def test_base_exception_from_a_middleware_gives_the_slot_back(
    error: type[BaseException],
) -> None:
    scene = Scene()

    async def raising(call: Call) -> Outcome:
        raise error("x")

    lane = scene.lane(limit=1, work=raising)
    for call in calls(3):
        lane.submit(call)
    await turns(20)

    assert lane.active == 0
    assert [type(outcome.error) for _, outcome in scene.settled] == [error] * 3


async def test_a_settle_function_that_raises_gives_the_slot_back() -> None:
    scene = Scene()
    lane = scene.lane(limit=1)
    lane._settle = lambda call, outcome: 1 / 0
    for call in (todo := calls(2)):
        scene.open(call)
        lane.submit(call)
    await turns(20)

    assert lane.active == 0
    assert scene.running == todo


async def test_expired_call_is_not_started_and_is_counted() -> None:
    scene = Scene()
    lane = scene.lane()
    late = Call(CallKind.RPC, "s", "m", deadline=0.0)
    lane.submit(late)
    await turns()

    assert scene.expired == [late]
    assert scene.running == []
    assert lane.active == 0
    assert lane.statistics.expired == 1


async def test_service_limit_holds_over_lanes_and_a_busy_lane_does_not_starve_a_quiet_one() -> None:
    scene = Scene()
    slots = ServiceSlots(1)
    busy, quiet = scene.lane(limit=5, slots=slots), scene.lane(limit=5, slots=slots)
    first = calls(4)
    for call in first:
        busy.submit(call)
    lone = Call(CallKind.EVENT, "s", "lone")
    quiet.submit(lone)
    await turns()
    assert scene.running == first[:1]

    for call in first:
        scene.open(call)
    await turns(3)
    scene.open(lone)
    while busy.waiting or quiet.waiting or slots.active:  # bounded by the test's timeout
        await turns(1)

    assert scene.running.index(lone) <= 2
    assert sorted(map(id, scene.running)) == sorted(map(id, [*first, lone]))
    assert slots.active == 0


async def test_cancel_settles_what_runs_with_requeue_and_leaves_nothing_active() -> None:
    scene = Scene()
    lane = scene.lane(limit=2)
    todo = calls(3)
    for call in todo:
        lane.submit(call)
    await turns()
    backlog = lane.take_backlog()
    await lane.cancel()

    assert backlog == todo[2:]
    assert [outcome.settle for _, outcome in scene.settled] == [Settle.REQUEUE] * 2
    assert lane.active == 0


async def test_a_worker_that_refuses_to_be_cancelled_is_abandoned_within_the_time() -> None:
    scene = Scene()
    release = asyncio.Event()

    async def stubborn(call: Call) -> Outcome:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return Outcome("late")

    lane = scene.lane(work=stubborn)
    [call] = calls(1)
    lane.submit(call)
    await turns()
    await lane.cancel(timeout=0.05)
    assert [(c, o.settle) for c, o in scene.settled] == [(call, Settle.REQUEUE)]

    release.set()
    await turns()
    assert len(scene.settled) == 1
    assert lane.active == 0
