"""The pace and the bound of a replay."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from services.flights.dataset import flights_of
from services.flights.messages import Due, FlightEvent, due_events
from services.flights.replay import Replay
from tests.services.tables import FORTNIGHT


@pytest.fixture(scope="module")
def events() -> list[Due]:
    return due_events(flights_of(FORTNIGHT._replace(flights=FORTNIGHT.flights[:200])))


class Broker:
    """Takes events, and confirms them a moment later."""

    def __init__(self) -> None:
        self.taken: list[FlightEvent] = []
        self.at: list[float] = []
        self.open = 0
        self.most_open = 0

    async def emit(self, kind: str, event: FlightEvent) -> None:
        assert kind == event["kind"]
        self.taken.append(event)
        self.at.append(time.monotonic())
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0)
        self.open -= 1


async def test_everything_is_emitted_once_in_event_time_order(events: list[Due]) -> None:
    broker = Broker()
    replay = Replay("r", events, speed=0, in_flight=16)
    await replay.play(broker.emit)

    times = [event["event_time"] for event in broker.taken]
    assert times == sorted(times)
    assert Counter(e["event_id"] for e in broker.taken).most_common(1)[0][1] == 1
    assert len(broker.taken) == len(events)
    assert replay.status() | {"elapsed_s": 0} == {
        "run": "r",
        "state": "finished",
        "speed": 0,
        "total": len(events),
        "confirmed": len(events),
        "in_flight": 0,
        "event_time": times[-1],
        "elapsed_s": 0,
        "error": None,
    }


async def test_no_more_than_the_bound_are_in_flight(events: list[Due]) -> None:
    broker = Broker()
    await Replay("r", events, speed=0, in_flight=7).play(broker.emit)

    assert broker.most_open == 7


async def test_a_broker_that_stops_confirming_stops_the_replay(events: list[Due]) -> None:
    """Back-pressure: what cannot be confirmed is not read on."""
    taken: list[str] = []
    full, go_on = asyncio.Event(), asyncio.Event()

    async def emit(kind: str, event: FlightEvent) -> None:
        taken.append(event["event_id"])
        if len(taken) == 5:
            full.set()
        await go_on.wait()

    replay = Replay("r", events, speed=0, in_flight=5)
    playing = asyncio.create_task(replay.play(emit))
    await asyncio.wait_for(full.wait(), 5)
    assert (replay.status()["in_flight"], replay.status()["confirmed"]) == (5, 0)

    go_on.set()
    await asyncio.wait_for(playing, 10)
    assert len(taken) == len(events)


async def test_events_come_when_they_are_due_and_not_before(events: list[Due]) -> None:
    some = events[:40]
    span = (some[-1].time - some[0].time).total_seconds()
    speed = span / 0.3
    broker = Broker()
    began = time.monotonic()
    await Replay("r", some, speed=speed, in_flight=8).play(broker.emit)

    early = [
        at - began - (due.time - some[0].time).total_seconds() / speed
        for at, due in zip(broker.at, some, strict=True)
    ]
    assert min(early) >= -0.001
    assert broker.at[-1] - began >= 0.299


async def test_a_failing_broker_fails_the_replay_and_says_why(events: list[Due]) -> None:
    async def emit(kind: str, event: FlightEvent) -> None:
        raise ConnectionError("the broker is gone")

    replay = Replay("r", events, speed=0, in_flight=4)
    await replay.play(emit)

    assert replay.status()["state"] == "failed"
    assert replay.status()["error"] == "ConnectionError: the broker is gone"


async def test_a_stopped_replay_says_so(events: list[Due]) -> None:
    waiting = asyncio.Event()

    async def emit(kind: str, event: FlightEvent) -> None:
        waiting.set()
        await asyncio.Event().wait()

    replay = Replay("r", events, speed=0, in_flight=4)
    playing = asyncio.create_task(replay.play(emit))
    await asyncio.wait_for(waiting.wait(), 5)
    playing.cancel()
    await asyncio.wait([playing])

    assert playing.cancelled()
    assert replay.status()["state"] == "stopped"


async def test_a_replay_of_nothing_ends_at_once() -> None:
    replay = Replay("r", [], speed=3600, in_flight=4)
    await replay.play(Broker().emit)

    assert (replay.status()["state"], replay.status()["event_time"]) == ("finished", None)
