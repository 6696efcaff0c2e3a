"""The feed: says what happens to flights, at the pace it happened or faster.

nameko run --config services/config.yaml services.flights.feed
n.rpc.feed.start(speed=3600)      # in nameko shell: one hour of 2013 in each second
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal

from mycelia import Config, EventDispatcher, Logger, RpcProxy, SharedDependency, rpc
from mycelia.runtime import Container
from services.flights.dataset import Row, flights_of, load
from services.flights.log_replay import LogReplay, end_of
from services.flights.messages import Due, due_events
from services.flights.records import HAPPENED, OBSERVED
from services.flights.replay import Emit, Replay

__all__ = ["Feed", "Stage"]


class Stage(SharedDependency):
    """Holds the flights and plays one replay at a time, beyond the call that asked for it."""

    container: Container

    def __init__(self) -> None:
        self.events: list[Due] = []
        self.weather: list[Row] = []
        self.replay: Replay | None = None
        self._queue: asyncio.Queue[tuple[Replay, Emit]] | None = None
        self._player: asyncio.Task[None] | None = None
        self._playing: asyncio.Task[None] | None = None

    async def setup(self) -> None:
        """Reads the flights, before any call can ask for them; in a thread, since the year takes some seconds."""
        tables = await asyncio.to_thread(load)
        self.weather = tables.weather
        self.events = await asyncio.to_thread(lambda: due_events(flights_of(tables)))

    async def start(self) -> None:
        """Starts the task that plays: it must not belong to a call, whose deadline would end it."""
        self._queue = asyncio.Queue(maxsize=1)
        self._player = asyncio.create_task(self._play(self._queue), name="flights:player")

    async def stop(self) -> None:
        """Ends a running replay."""
        if self._player is not None:
            self._player.cancel()
            await asyncio.wait([self._player])

    async def end_of_log(self) -> int | None:
        """The latest time in the log of what happened."""
        return await end_of(self.container.host.link)

    def begin(self, replay: Replay, emit: Emit) -> None:
        """Plays `replay` from now on; one that is still running is stopped."""
        assert self._queue is not None, "begin() comes after start()"
        self.end()
        self.replay = replay
        self._queue.put_nowait((replay, emit))

    def end(self) -> None:
        """Stops the running replay, and one that has not begun yet."""
        if self._playing is not None:
            self._playing.cancel()
        if self._queue is not None and not self._queue.empty():
            waiting, _ = self._queue.get_nowait()
            waiting.state = "stopped"

    def status(self) -> dict[str, Any]:
        """How far the newest replay is; `state` is `idle` before the first."""
        return self.replay.status() if self.replay else {"state": "idle", "run": None}

    async def _play(self, queue: asyncio.Queue[tuple[Replay, Emit]]) -> None:
        while True:
            replay, emit = await queue.get()
            self._playing = asyncio.create_task(replay.play(emit), name=f"flights:{replay.run}")
            try:
                # A failed replay says so in its status; the stage is ready for the next one.
                await asyncio.wait([self._playing])
            finally:
                self._playing.cancel()
                await asyncio.gather(self._playing, return_exceptions=True)


class Feed:
    """Replays flights: into the logs, or as `scheduled`, `departed`, `arrived` and `cancelled` events."""

    name = "feed"
    stage = Stage()
    happened = HAPPENED
    observed = OBSERVED
    registry = RpcProxy("registry", timeout=30)
    # Mandatory: without `enrich` the replay fails, instead of going nowhere.
    emit = EventDispatcher(mandatory=True)
    default_speed = Config("feed.speed", float, default=3600.0)
    in_flight = Config("feed.in_flight", int, default=512)
    log = Logger()

    @rpc
    async def start(
        self,
        speed: float | None = None,
        first_day: str | None = None,
        last_day: str | None = None,
        via: Literal["log", "events"] = "log",
    ) -> dict[str, Any]:
        """Starts a replay and returns its status at once; a running one is stopped first.

        Args:
            via: where to: `"log"`, which the flows read; or `"events"`, one message each, which `enrich` joins and `delays` counts.
            speed: seconds of event time for each second; 0: as fast as the broker takes them. Default: `feed.speed`.
            first_day: the first day to replay, `2013-02-08`, by scheduled departure in New York. Default: the first there is.
            last_day: the last day, itself included.

        Raises:
            ValueError: a speed below 0, or a day that is no date.
        """
        if speed is None:
            speed = self.default_speed
        if not 0 <= speed < math.inf:
            raise ValueError(f"speed={speed}: expected seconds of event time a second, 0 or more.")
        first_day, last_day = _day("first_day", first_day), _day("last_day", last_day)
        events = between(self.stage.events, first_day, last_day)
        replay: Replay
        if via == "log":
            await self.registry.publish_planes()
            replay = LogReplay(
                new_run_id(),
                events,
                self.stage.weather,
                float(speed),
                self.in_flight,
                happened=self.happened.append_many,
                observed=self.observed.append_many,
                begin_behind=self.stage.end_of_log,
            )
        elif via == "events":
            replay = Replay(new_run_id(), events, float(speed), self.in_flight)
        else:
            raise ValueError(f'via={via!r}: expected "log" or "events".')
        self.stage.begin(replay, self.emit)
        self.log.info("replay_started", run=replay.run, speed=replay.speed, events=len(replay))
        return replay.status()

    @rpc
    async def status(self) -> dict[str, Any]:
        """How far the newest replay is; `state` is `idle` before the first."""
        return self.stage.status()

    @rpc
    async def stop(self) -> dict[str, Any]:
        """Stops the replay and returns its status."""
        self.stage.end()
        return self.stage.status()


def new_run_id() -> str:
    """An id for a replay; later ones sort after earlier ones."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(2)}"


def _day(name: str, text: str | None) -> str | None:
    """A day as flights have it."""
    try:
        return None if text is None else date.fromisoformat(text).isoformat()
    except (TypeError, ValueError):
        raise ValueError(f"{name}={text!r}: expected a day such as 2013-02-08.") from None


def between(events: Sequence[Due], first_day: str | None, last_day: str | None) -> list[Due]:
    """The events of the flights of the days from `first_day` to `last_day`."""
    return [due for due in events if (first_day or "") <= due.flight.date <= (last_day or "9999")]
