"""Lanes: bounds, order, fairness, and slots that always come back."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from mycelia.call import (
    Ack,
    Call,
    CallKind,
    DeadLetter,
    Direction,
    GiveBack,
    Middleware,
    Next,
    Observer,
    Outcome,
    Redeliver,
    Reply,
    Settlement,
    Target,
    get_current_call,
)
from mycelia.errors import DeadlinePassed, MethodNotFound, Overloaded, RuntimeStateError
from mycelia.runtime import lane as lane_module
from mycelia.runtime.lane import WAY_BACK, Lane
from mycelia.runtime.service_slots import ServiceSlots
from mycelia.runtime.threads import ThreadPool
from mycelia.testing import eventually

Work = Callable[[Call], Coroutine[Any, Any, Outcome]]


class Worker:
    """How the lanes here run their calls."""

    is_async = True

    def __init__(self, run: Work) -> None:
        self.run = run

    def run_in_thread(self, call: Call) -> Outcome:
        return Outcome(get_current_call())


class ThreadWorker(Worker):
    is_async = False


class Scene:
    """Lanes over plain coroutine functions, with what was settled in order. It is their settler."""

    on_success: Settlement = Ack()
    settlements: frozenset[type[Settlement]] = frozenset({Ack, DeadLetter})

    def __init__(self) -> None:
        self.settled: list[tuple[Call, Outcome]] = []
        self.settlement: dict[Call, Settlement] = {}
        self.logged: list[Outcome] = []
        self.gates: dict[Call, asyncio.Event] = {}
        self.running: list[Call] = []

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        return Ack()

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        self.settled.append((call, outcome))
        self.settlement[call] = settlement

    def log_error(self, call: Call, outcome: Outcome) -> None:
        self.logged.append(outcome)

    async def gated(self, call: Call) -> Outcome:
        self.running.append(call)
        gate = self.gates.setdefault(call, asyncio.Event())
        try:
            await gate.wait()
        except BaseException as exc:  # noqa: BLE001  an invocation never raises
            return Outcome(error=exc)
        return Outcome(call.method)

    async def at_once(self, call: Call) -> Outcome:
        self.running.append(call)
        return Outcome(call.method)

    def lane(
        self,
        limit: int = 2,
        slots: ServiceSlots | None = None,
        work: Work | None = None,
        middleware: tuple[Middleware, ...] = (),
        worker: type[Worker] = Worker,
        sheds: bool = False,
    ) -> Lane:
        loop = asyncio.get_running_loop()
        return Lane(
            target("m"),
            worker(work or self.gated),
            self,
            limit=limit,
            slots=slots or ServiceSlots(None),
            threads=ThreadPool(loop, 1, "test"),
            loop=loop,
            middleware=middleware,
            sheds=sheds,
        )

    def open(self, call: Call) -> None:
        self.gates.setdefault(call, asyncio.Event()).set()


def target(method: str, kind: CallKind = CallKind.RPC) -> Target:
    return Target(Direction.INBOUND, kind, "s", method)


def calls(count: int) -> list[Call]:
    return [Call(target(str(n))) for n in range(count)]


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


async def test_a_lane_that_is_held_starts_nothing_until_it_is_released() -> None:
    scene = Scene()
    lane = scene.lane(limit=2)
    first, *others = calls(4)
    lane.submit(first)
    lane.hold()
    for call in others:
        lane.submit(call)
    scene.open(first)
    await turns()
    assert scene.running == [first]
    assert lane.waiting == 3
    assert not lane.has_room

    lane.release()
    await turns()
    assert scene.running == [first, *others[:2]]

    lane.hold()
    await lane.cancel()
    lane.release()
    await turns()
    assert scene.running == [first, *others[:2]]


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
    scene.settle = lambda call, outcome, settlement: 1 / 0  # type: ignore[assignment, return-value]
    lane = scene.lane(limit=1)
    for call in (todo := calls(2)):
        scene.open(call)
        lane.submit(call)
    await turns(20)

    assert lane.active == 0
    assert scene.running == todo


async def test_expired_call_is_not_started_and_is_counted() -> None:
    scene = Scene()
    lane = scene.lane()
    late = Call(target("m"), deadline=0.0)
    lane.submit(late)
    await turns()

    [(call, outcome)] = scene.settled
    assert call is late
    assert outcome.is_refused
    assert isinstance(outcome.error, DeadlinePassed)
    assert scene.running == []
    assert lane.active == 0
    assert lane.statistics().expired == 1


async def test_service_limit_holds_over_lanes_and_a_busy_lane_does_not_starve_a_quiet_one() -> None:
    scene = Scene()
    slots = ServiceSlots(1)
    busy, quiet = scene.lane(limit=5, slots=slots), scene.lane(limit=5, slots=slots)
    first = calls(4)
    for call in first:
        busy.submit(call)
    lone = Call(target("lone", CallKind.EVENT))
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


async def test_cancel_gives_back_what_runs_and_leaves_nothing_active() -> None:
    scene = Scene()
    lane = scene.lane(limit=2)
    todo = calls(3)
    for call in todo:
        lane.submit(call)
    await turns()
    backlog = lane.take_backlog()
    await lane.cancel()

    assert backlog == todo[2:]
    assert [scene.settlement[call] for call, _ in scene.settled] == [GiveBack()] * 2
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
    assert scene.settlement == {call: GiveBack()}

    release.set()
    await turns()
    assert len(scene.settled) == 1
    assert lane.active == 0


@pytest.mark.parametrize("limited", [False, True])
async def test_a_burst_of_calls_that_never_wait_does_not_nest(limited: bool) -> None:
    """With eager tasks (Python 3.12) a worker may end inside the call that starts it, and there starts the next."""
    scene = Scene()
    slots = ServiceSlots(2 if limited else None)
    first = calls(3)

    async def waits_at_first(call: Call) -> Outcome:
        return await (scene.gated if call in first else scene.at_once)(call)

    lanes = [scene.lane(limit=1, slots=slots, work=waits_at_first) for _ in range(3)]
    for call, lane in zip(first, lanes, strict=True):
        lane.submit(call)
    for lane in lanes:
        for call in calls(1500):
            lane.submit(call)
    for call in first:
        scene.open(call)
    for lane in lanes:
        while lane.waiting or lane.active:
            await lane.wait_idle()
            await turns(1)

    assert len(scene.settled) == 3 + 4500
    assert scene.logged == []
    assert slots.active == 0


async def test_refused_calls_pass_the_middleware_and_are_settled_without_a_worker() -> None:
    scene = Scene()
    seen: list[tuple[Outcome, Call | None]] = []

    async def watch(call: Call, next: Next) -> Outcome:
        outcome = await next(call)
        seen.append((outcome, get_current_call()))
        return outcome

    lane = scene.lane(middleware=(watch,))
    todo = calls(200)
    error = MethodNotFound("nope")
    for call in todo:
        lane.refuse(call, error)
    await turns()

    assert scene.running == []
    assert [call for call, _ in scene.settled] == todo
    assert [call for _, call in seen] == todo
    assert all(outcome.is_refused and outcome.error is error for outcome, _ in seen)
    assert lane.statistics().refused == 200


async def test_a_settlement_that_cannot_be_is_an_error_and_never_ignored() -> None:
    scene = Scene()

    async def wants_a_reply(call: Call, next: Next) -> Outcome:
        return (await next(call)).replace(settlement=Reply())

    lane = scene.lane(work=scene.at_once, middleware=(wants_a_reply,))
    [call] = calls(1)
    lane.submit(call)
    await turns()

    [(_, outcome)] = scene.settled
    assert isinstance(outcome.error, RuntimeStateError)
    assert str(outcome.error) == (
        "s.0: a middleware asked for Reply(), which a call of kind rpc cannot have. It can have: Ack, DeadLetter."
    )
    assert scene.settlement[call] == Ack()
    assert scene.logged == [outcome]


@pytest.mark.parametrize("worker", [Worker, ThreadWorker])
async def test_the_current_call_is_set_outside_the_chain(worker: type[Worker]) -> None:
    scene = Scene()
    seen: list[Call | None] = []

    async def watch(call: Call, next: Next) -> Outcome:
        seen.append(get_current_call())
        outcome = await next(call)
        seen.append(get_current_call())
        return outcome

    async def tells(call: Call) -> Outcome:
        return Outcome(get_current_call())

    lane = scene.lane(work=tells, middleware=(watch,), worker=worker)
    [call] = calls(1)
    lane.submit(call)
    await lane.wait_idle()

    assert [outcome.value for _, outcome in scene.settled] == [call]
    assert seen == [call, call]


async def test_a_higher_limit_starts_what_waits_and_a_lower_one_starts_no_more() -> None:
    scene = Scene()
    lane = scene.lane(limit=1)
    todo = calls(6)
    for call in todo:
        lane.submit(call)
    await turns()
    lane.limit = 3
    await turns()
    assert scene.running == todo[:3]

    lane.limit = 1
    scene.open(todo[0])
    await turns()
    assert scene.running == todo[:3]
    for call in todo:
        scene.open(call)
    await lane.wait_idle()
    assert scene.running == todo


def due_in(seconds: float, count: int) -> list[Call]:
    return [Call(target("m"), deadline=time.monotonic() + seconds) for _ in range(count)]


async def test_calls_that_have_waited_and_cannot_be_done_in_time_are_refused_at_once() -> None:
    scene = Scene()
    lane = scene.lane(limit=1, sheds=True)
    assert lane.service_time is not None
    lane.service_time.add(10.0)
    [first], late, good = due_in(60, 1), due_in(5, 200), due_in(60, 1)
    for call in [first, *late, *good]:
        lane.submit(call)
    scene.open(first)
    await turns()

    assert scene.running == [first, *good]
    refused = [outcome for call, outcome in scene.settled if call in late]
    assert len(refused) == 200
    assert all(outcome.is_refused for outcome in refused)
    assert {type(outcome.error) for outcome in refused} == {Overloaded}
    assert lane.statistics().overloaded == 200
    scene.open(good[0])
    await lane.wait_idle()


async def test_a_call_that_has_not_waited_is_begun_however_little_time_it_has() -> None:
    """Or a method that was slow once would never be tried again."""
    scene = Scene()
    lane = scene.lane(limit=1, sheds=True)
    assert lane.service_time is not None
    lane.service_time.add(10.0)
    [call] = due_in(5, 1)
    lane.submit(call)
    await turns()

    assert scene.running == [call]
    scene.open(call)
    await lane.wait_idle()


async def test_the_last_in_the_queue_is_begun_with_just_enough_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene()
    lane = scene.lane(limit=1, sheds=True)
    now = time.monotonic()
    monkeypatch.setattr(lane_module, "time", SimpleNamespace(monotonic=lambda: now))
    first, last = (Call(target("m"), deadline=now + left) for left in (60, WAY_BACK - 0.01))
    lane.submit(first)
    lane.submit(last)
    scene.open(first)
    await turns()

    assert scene.running == [first, last]
    scene.open(last)
    await lane.wait_idle()


# --- what cannot be settled as it is ------------------------------------------------------------------


class Bug(Scene):
    """A settler with a bug: it cannot do what it decides."""

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        if type(settlement) is not GiveBack:
            raise TypeError("a bug")
        super().settle(call, outcome, settlement)


@pytest.mark.parametrize("fails", [False, True])
async def test_call_that_cannot_be_settled_is_given_back_with_its_slot(fails: bool) -> None:
    async def work(call: Call) -> Outcome:
        return Outcome(error=LookupError("no")) if fails else Outcome(1)

    scene = Bug()
    lane = scene.lane(limit=1, work=work)
    todo = calls(20)
    for call in todo:
        lane.submit(call)
    await lane.wait_idle()

    assert scene.settlement == dict.fromkeys(todo, GiveBack())
    assert lane.active == 0


class NoClass(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


@pytest.mark.parametrize("refused", [False, True])
async def test_error_that_cannot_be_asked_for_its_class_is_settled(refused: bool) -> None:
    class Asking(Scene):
        def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
            return DeadLetter() if isinstance(outcome.error, LookupError) else Ack()

    async def fails(call: Call, next: Next) -> Outcome:
        return Outcome(error=NoClass("told"))

    scene = Asking()
    lane = scene.lane(limit=1, work=scene.at_once, middleware=(fails,))
    for call in calls(20):
        if refused:
            lane.refuse(call, MethodNotFound("m"))
        else:
            lane.submit(call)
    await lane.wait_idle()

    assert [type(outcome.error) for _, outcome in scene.settled] == [RuntimeStateError] * 20
    assert "NoClass: told" in str(scene.settled[0][1].error)
    assert set(scene.settlement.values()) == {Ack()}


@pytest.mark.parametrize("after", [float("nan"), float("inf"), -float("inf"), "soon", None])
async def test_retry_at_no_time_is_an_error(after: Any) -> None:
    class Retrying(Scene):
        settlements = frozenset({Ack, Redeliver})

    async def retries(call: Call, next: Next) -> Outcome:
        return Outcome(error=LookupError("not yet"), settlement=Redeliver(after))

    scene = Retrying()
    lane = scene.lane(work=scene.at_once, middleware=(retries,))
    (call,) = calls(1)
    lane.submit(call)
    await lane.wait_idle()

    ((_, outcome),) = scene.settled
    assert isinstance(outcome.error, RuntimeStateError)
    assert "Redeliver" in str(outcome.error)
    assert scene.settlement[call] == Ack()


@pytest.mark.parametrize("worker", [Worker, ThreadWorker])
async def test_watch_is_told_once_of_each_end_after_all_middleware(worker: type[Worker]) -> None:
    scene = Scene()
    told: list[tuple[Call, Outcome]] = []

    async def changes(call: Call, next: Next) -> Outcome:
        await next(call)
        return Outcome("changed")

    def ended(call: Call, outcome: Outcome) -> None:
        told.append((call, outcome))
        raise LookupError

    lane = scene.lane(
        limit=50, work=scene.at_once, middleware=(changes, Observer(ended)), worker=worker
    )
    todo, refused = calls(200), calls(3)
    for call in todo:
        lane.submit(call)
    for call in refused:
        lane.refuse(call, MethodNotFound("nope"))
    await lane.wait_idle()
    await eventually(lambda: len(scene.settled) == 203)

    assert [(call, outcome.value) for call, outcome in told] == [
        (call, outcome.value) for call, outcome in scene.settled
    ]
    assert {outcome.value for _, outcome in told} == {"changed"}
    assert lane.active == 0


async def test_lane_with_nothing_but_watches_has_no_chain_around_its_threads() -> None:
    scene = Scene()
    told: list[Outcome] = []
    lane = scene.lane(
        middleware=(Observer(lambda call, outcome: told.append(outcome)),), worker=ThreadWorker
    )
    call, late = calls(2)
    late.deadline = time.monotonic() - 1
    lane.submit(call)
    lane.submit(late)
    await lane.wait_idle()

    assert [(outcome.value, outcome.is_refused) for outcome in told] == [
        (None, True),
        (call, False),
    ]
