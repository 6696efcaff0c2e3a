"""Keyed lanes: order by key, one at a time of each, others pass; and nothing of a key is kept when it has no more calls."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.runtime.test_lane import Scene, Worker, target, turns

from mycelia.call import Ack, Call, DeadLetter, GiveBack, Outcome, Settlement
from mycelia.errors import KeyParked
from mycelia.runtime.keyed_lane import KeyedLane, KeyOrder
from mycelia.runtime.service_slots import ServiceSlots
from mycelia.runtime.threads import ThreadPool


class Fails(Exception):
    pass


class KeyedScene(Scene):
    """Calls are named `key/number`. What fails is settled by `on_error`, where the lane can be asked for more."""

    def __init__(self) -> None:
        super().__init__()
        self.on_error: Callable[[Call], None] = lambda call: None
        self.keyed: KeyedLane

    def make(
        self, limit: int = 4, slots: ServiceSlots | None = None, most_behind: int = 3
    ) -> KeyedLane:
        loop = asyncio.get_running_loop()
        self.keyed = KeyedLane(
            target("m"),
            Worker(self.gated),
            self,
            limit=limit,
            slots=slots or ServiceSlots(None),
            threads=ThreadPool(loop, 1, "test"),
            loop=loop,
            order=KeyOrder(
                key_of=lambda call: call.method.split("/")[0],
                releases=lambda call: call.attempt == 9,
                most_behind=lambda: most_behind,
            ),
        )
        return self.keyed

    async def gated(self, call: Call) -> Outcome:
        outcome = await super().gated(call)
        return Outcome(error=Fails()) if call.method.endswith("!") else outcome

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        return DeadLetter()

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        if isinstance(outcome.error, Fails):
            self.on_error(call)
        super().settle(call, outcome, settlement)

    def submit(self, *names: str) -> list[Call]:
        calls = [Call(target(name)) for name in names]
        for call in calls:
            self.keyed.submit(call)
        return calls

    @property
    def ran(self) -> list[str]:
        return [call.method for call in self.running]

    def is_empty(self) -> bool:
        lane = self.keyed
        return not (lane._behind or lane._keys or lane._paused or lane._behind_count or lane._slots.active)  # fmt: skip


async def test_call_whose_key_runs_waits_behind_it_and_others_pass() -> None:
    scene = KeyedScene()
    lane = scene.make(limit=2)
    a0, a1, a2, b0 = scene.submit("a/0", "a/1", "a/2", "b/0")
    await turns()
    assert scene.ran == ["a/0", "b/0"]
    assert (lane.active, lane.waiting) == (2, 2)

    scene.open(b0)
    await turns()
    assert scene.ran == ["a/0", "b/0"]

    for call in (a0, a1, a2):
        scene.open(call)
    await turns(20)
    assert scene.ran == ["a/0", "b/0", "a/1", "a/2"]
    assert scene.is_empty()


async def test_hot_key_takes_turns_with_the_others() -> None:
    scene = KeyedScene()
    scene.make(limit=1)
    calls = scene.submit(*(f"hot/{n}" for n in range(5)), "a/0", "b/0")
    for call in calls:
        scene.open(call)
    await turns(40)

    assert scene.ran[:4] == ["hot/0", "a/0", "b/0", "hot/1"]


async def test_thousands_behind_one_key_that_end_at_once_do_not_nest() -> None:
    scene = KeyedScene()
    lane = scene.make()
    lane._parked["a"] = None
    head = Call(target("a/head"), attempt=9)
    lane.submit(head)
    scene.submit(*(f"a/{n}" for n in range(5000)))
    lane.park(head)
    scene.open(head)
    await turns(20)

    assert len(scene.settled) == 5001
    assert all(isinstance(outcome.error, KeyParked) for _, outcome in scene.settled[1:])
    assert [call.method for call, _ in scene.settled[1:]] == [f"a/{n}" for n in range(5000)]
    assert scene.is_empty()


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_fails_and_however_long_it_takes_each_key_is_in_order(seed: int) -> None:
    rng = random.Random(seed)
    scene = KeyedScene()
    slots = ServiceSlots(rng.choice((None, 2, 3)))
    lane = scene.make(limit=rng.choice((1, 3, 8)), slots=slots, most_behind=rng.choice((1, 3, 50)))
    names: dict[str, list[str]] = defaultdict(list)
    runs: dict[str, list[str]] = defaultdict(list)
    running: set[str] = set()
    final: list[str] = []

    async def work(call: Call) -> Outcome:
        key = call.method.split("/")[0]
        assert key not in running
        running.add(key)
        runs[key].append(call.method)
        for _ in range(rng.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
        running.discard(key)
        return Outcome(error=Fails()) if rng.random() < 0.3 else Outcome(1)

    def settle(call: Call, outcome: Outcome, settlement: Settlement) -> None:
        again = Call(call.target, attempt=call.attempt + 1)
        if not (outcome.error and call.attempt < 4 and lane.try_again(call, again, 0.0)):
            final.append(call.method)

    scene.settle = settle  # type: ignore[method-assign]
    lane._chain = work
    for number in range(300):
        name = f"{rng.choice('abcdefg')}/{number}"
        names[name[0]].append(name)
        scene.submit(name)
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    for _ in range(3000):
        if len(final) == 300:
            break
        await asyncio.sleep(0)

    assert sorted(final) == sorted(name for of_key in names.values() for name in of_key)
    for key, of_key in names.items():
        assert list(dict.fromkeys(runs[key])) == of_key
    assert scene.is_empty()


async def test_failed_call_is_tried_again_before_those_behind_it_and_takes_no_slot_meanwhile() -> (
    None
):
    scene = KeyedScene()
    lane = scene.make(limit=1)
    (bad,) = scene.submit("a/0!")
    again = Call(target("a/0 again"))
    scene.on_error = lambda call: _note(lane.try_again(call, again, 60))
    a1, b0 = scene.submit("a/1", "b/0")
    for call in (bad, a1, b0, again):
        scene.open(call)
    await turns(20)
    assert scene.ran == ["a/0!", "b/0"]
    assert (lane.active, lane.waiting) == (0, 2)

    lane._resume("a")
    await turns(20)
    assert scene.ran == ["a/0!", "b/0", "a/0 again", "a/1"]
    assert scene.is_empty()


def _note(has_worked: bool) -> None:
    assert has_worked


async def test_pause_ends_when_too_many_wait_behind_it_and_there_is_no_other() -> None:
    scene = KeyedScene()
    lane = scene.make(most_behind=2)
    (bad,) = scene.submit("a/0!")
    again = Call(target("a/again!"))
    tried: list[bool] = []
    scene.on_error = lambda call: tried.append(lane.try_again(call, again, 60))
    scene.open(bad)
    await turns()
    assert tried == [True]

    scene.open(again)
    for call in scene.submit("a/1", "a/2", "a/3"):
        scene.open(call)
    await turns(20)
    assert tried == [True, False]
    assert scene.ran == ["a/0!", "a/again!", "a/1", "a/2", "a/3"]
    assert scene.is_empty()


async def test_parked_key_is_refused_in_order_until_a_call_releases_it() -> None:
    scene = KeyedScene()
    lane = scene.make()
    scene.on_error = lambda call: _note(lane.park(call))
    calls = scene.submit("a/0!", "a/1", "a/2", "b/0")
    for call in calls:
        scene.open(call)
    await turns(20)
    assert scene.ran == ["a/0!", "b/0"]
    refused = [call.method for call, out in scene.settled if isinstance(out.error, KeyParked)]
    assert refused == ["a/1", "a/2"]
    assert lane.parked == 1

    release = Call(target("a/3"), attempt=9)
    lane.submit(release)
    scene.open(release)
    (last,) = scene.submit("a/4")
    scene.open(last)
    await turns(20)
    assert scene.ran[2:] == ["a/3", "a/4"]
    assert lane.parked == 0


async def test_call_without_a_key_is_refused_and_harms_no_other() -> None:
    scene = KeyedScene()
    lane = scene.make()
    lane._order = KeyOrder(
        key_of=lambda call: [] if call.method == "bad" else call.method,  # type: ignore[return-value]
        releases=lambda call: False,
        most_behind=lambda: 1,
    )
    bad, good = scene.submit("bad", "good")
    scene.open(good)
    await turns()

    outcomes = dict(scene.settled)
    assert isinstance(outcomes[bad].error, TypeError)
    assert outcomes[good].error is None
    assert scene.is_empty()


async def test_backlog_that_is_given_back_has_what_pauses_too_and_nothing_is_tried_again() -> None:
    scene = KeyedScene()
    lane = scene.make(limit=2)
    bad, c0 = scene.submit("a/0!", "c/0!")
    again = Call(target("a/again"))
    scene.on_error = lambda call: _note(lane.try_again(call, again, 60))
    scene.open(bad)
    a1, b0, b1, d0 = scene.submit("a/1", "b/0", "b/1", "d/0")
    await turns()

    lane.give_back_backlog()
    given_back = [call for call in scene.settlement if scene.settlement[call] == GiveBack()]
    assert set(given_back) == {again, a1, b1, d0}
    assert given_back.index(again) < given_back.index(a1)

    tried: list[bool] = []
    scene.on_error = lambda call: tried.append(lane.try_again(call, Call(target("c/x")), 0))
    scene.open(c0)
    scene.open(b0)
    await turns()
    assert tried == [False]
    assert scene.is_empty()


async def test_cancelled_lane_leaves_no_timer_behind() -> None:
    scene = KeyedScene()
    lane = scene.make()
    (bad,) = scene.submit("a/0!")
    again = Call(target("a/again"))
    scene.on_error = lambda call: _note(lane.try_again(call, again, 60))
    scene.open(bad)
    await turns()

    await lane.cancel()
    assert scene.settlement[again] == GiveBack()
    assert scene.is_empty()


async def test_held_lane_starts_nothing_of_any_key_until_it_is_released() -> None:
    scene = KeyedScene()
    lane = scene.make()
    lane.hold()
    calls: list[Any] = scene.submit("a/0", "a/1", "b/0")
    for call in calls:
        scene.open(call)
    await turns()
    assert scene.ran == []

    lane.release()
    await turns(20)
    assert scene.ran == ["a/0", "b/0", "a/1"]
    assert all(scene.settlement[call] == Ack() for call in calls)
