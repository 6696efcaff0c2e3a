"""Brings what lies in a partition's outbox to its sinks: in order, again and again until they have it, and never more of it at once than fits.

Each output has a task of its own, which delivers one body after the other; a sink that is away holds up its own output, and, once
`max_bytes` wait, the partition: its owner takes nothing further before it `has_room`, and so the slowness goes back to the source.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Any, Final

from mycelia.amqp import Message, Properties
from mycelia.durations import seconds_of
from mycelia.errors import RetryLater, describe
from mycelia.flow.sinks.sink import FlowSink, SinkPlace, SinkRecord, SinkRefused
from mycelia.flow.user_code import error_of, is_called_off
from mycelia.log_event import event
from mycelia.policies.retry import Exponential, exponential

__all__ = ["SINK_EXCHANGE", "SinkDelivery", "number_of", "sink_message"]

log = logging.getLogger("mycelia.flow")

SINK_EXCHANGE: Final = "~sink"
"""What stands in the place of an exchange in an outbox's message for a sink."""

MAX_WAITING_BYTES: Final = 8 * 1024 * 1024
"""Of bodies that a partition's sinks have not had yet. What one commit gives may be above it."""

_NUMBER: Final = "number"
_PAUSES: Final[Exponential] = exponential("250ms", max="30s", jitter=False)
_TELL_EVERY: Final = 60.0
_CANCEL_WAITS: Final = 5.0

Bury = Callable[[list[SinkRecord[Any]], str, SinkRefused], Awaitable[bool]]
"""Makes dead letters of records that an output's sink has refused; whether they are there."""


def sink_message(output: str, number: int, body: bytes) -> Message:
    """A body as the outbox keeps it."""
    return Message(SINK_EXCHANGE, output, body, Properties(headers={_NUMBER: number}))


def number_of(message: Message) -> int:
    """A body's, among those of its output."""
    number: int = (message.properties.headers or {}).get(_NUMBER, 0)
    return number


class _Lane:
    """What waits for one output's sink."""

    __slots__ = ("arrived", "task", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, Message]] = deque()
        self.arrived = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class SinkDelivery:
    """Delivers for one partition, as long as its owner has it. Belongs to one event loop.

    Args:
        sinks: by the names of the outputs.
        flow: the place's: see `SinkPlace`.
        call: `service.method`, for lines of the log.
        bury: where records go that a sink has refused; None: it is asked again.
        max_bytes: what waits at most, 8 MiB by default.
    """

    def __init__(
        self,
        sinks: Mapping[str, FlowSink[Any]],
        flow: str,
        call: str,
        bury: Bury | None = None,
        *,
        max_bytes: int | None = None,
    ) -> None:
        self._sinks = sinks
        self._flow = flow
        self._call = call
        self._bury = bury
        self._max_bytes = MAX_WAITING_BYTES if max_bytes is None else max_bytes
        self._lanes: dict[str, _Lane] = {}
        self._has_moved = asyncio.Event()
        self._random = Random()
        self.waiting_bytes = 0
        """Of what the sinks have not had yet."""
        self.delivered = 0
        """Bodies."""
        self.published_up_to = 0
        """The number up to which all that is no sink's has been published; its owner says so."""
        self.standing_still: dict[str, str] = {}
        """Of outputs that do not go on, why."""

    def put(self, number: int, message: Message) -> None:
        """Deliver this, after what was put before for the same output. Does not wait.

        Args:
            number: in the outbox.
        """
        output = message.routing_key
        lane = self._lanes.get(output)
        if lane is None:
            lane = self._lanes[output] = _Lane()
            name = f"mycelia:flow-sink:{self._flow}:{output}"
            lane.task = asyncio.create_task(self._run(output, lane), name=name)
        lane.waiting.append((number, message))
        lane.arrived.set()
        self.waiting_bytes += len(message.body)

    def done_up_to(self) -> int:
        """The number up to which the outbox need keep nothing."""
        waiting = [lane.waiting[0][0] for lane in self._lanes.values() if lane.waiting]
        return min([self.published_up_to, *(number - 1 for number in waiting)])

    @property
    def has_room(self) -> bool:
        """Whether the partition may go on."""
        return self.waiting_bytes < self._max_bytes

    def waits_for(self, outputs: Iterable[str]) -> bool:
        """Whether the sink of one of these has not had all yet."""
        return any(name in self._lanes and self._lanes[name].waiting for name in outputs)

    async def wait(self, timeout: float) -> None:
        """Until something was delivered, or could not be; `timeout` seconds at most."""
        self._has_moved.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._has_moved.wait()
        except TimeoutError:
            return

    async def aclose(self, timeout: float = 0.0) -> None:
        """Give what waits `timeout` seconds to get there; the rest stays in the outbox, and goes with the next owner."""
        if timeout:
            loop = asyncio.get_running_loop()
            until = loop.time() + timeout
            while self.waiting_bytes and not self.standing_still and loop.time() < until:
                await self.wait(until - loop.time())
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_WAITS)

    # --- an output -------------------------------------------------------------------------------

    async def _run(self, output: str, lane: _Lane) -> None:
        try:
            while True:
                while lane.waiting:
                    _, message = lane.waiting[0]
                    await self._deliver(output, message)
                    lane.waiting.popleft()
                    self.waiting_bytes -= len(message.body)
                    self.delivered += 1
                    self._has_moved.set()
                lane.arrived.clear()
                await lane.arrived.wait()
        finally:
            self._has_moved.set()

    async def _buried(
        self, output: str, message: Message, refused: SinkRefused, done: set[str]
    ) -> bool:
        """Make dead letters of records that the sink has refused; whether all of them are."""
        if self._bury is None:
            return False
        records = self._sinks[output].told_of(message.body)
        for one in (refused, *refused.also):
            chosen = [it for it in records if one.record_id is None or it.id == one.record_id]
            if not await self._bury(chosen, output, one):
                return False
            if one.record_id is not None:
                done.add(one.record_id)
        return True

    async def _deliver(self, output: str, message: Message) -> None:
        """Until the sink has it, or it is a dead letter."""
        sink = self._sinks[output]
        place = SinkPlace(self._flow, output, number_of(message))
        loop = asyncio.get_running_loop()
        attempt, tell_at = 0, 0.0
        done: set[str] = set()
        while True:
            attempt += 1
            try:
                await sink.deliver(message.body, place, done)
                break
            except SinkRefused as exc:
                if await self._buried(output, message, exc, done):
                    if exc.record_id is None:
                        break
                    attempt = 0
                    continue
                error: Exception = exc
            except BaseException as exc:
                if is_called_off(exc):
                    raise
                error = error_of(exc)
            pause = _PAUSES.pause(attempt, self._random)
            if isinstance(error, RetryLater):
                pause = seconds_of(error.after, "RetryLater()")
            self.standing_still[output] = describe(error)
            self._has_moved.set()
            if attempt == 1 or loop.time() >= tell_at:
                tell_at = loop.time() + _TELL_EVERY
                log.log(
                    logging.ERROR if isinstance(error, SinkRefused) else logging.WARNING,
                    event(
                        "flow_sink_waiting",
                        call=self._call,
                        output=output,
                        attempt=attempt,
                        error=describe(error),
                        retry_in_s=round(pause, 3),
                    ),
                )
            await asyncio.sleep(pause)
        if self.standing_still.pop(output, None) is not None and attempt > 1:
            log.info(event("flow_sink_goes_on", call=self._call, output=output, attempts=attempt))
