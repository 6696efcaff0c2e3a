"""Nothing is begun while returns are being counted that a queue does not count itself.

A classic queue says no more of a message than that it has come back. So the message is published to it anew, with its count, and then
acknowledged. The new copy may kill this process at once, as the message has done before; and if the broker did not know by then
that the old one is done with, there would be two of it, and one more after each further death.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from mycelia.amqp import LinkConsumer
from mycelia.errors import MyceliaError, describe
from mycelia.log_event import event
from mycelia.runtime import Lane

__all__ = ["Counting"]

log = logging.getLogger("mycelia.entrypoints")

HELD_S: Final = 2.0
"""How long nothing is begun at most. Usual are milliseconds; a queue that is full may take no count, and then what is in it has to be
handled all the same."""


class Counting:
    """Of one consumer.

    Args:
        consumer: it, once it has begun: its first messages may come before.
    """

    def __init__(self, consumer: Callable[[], LinkConsumer | None]) -> None:
        self._consumer = consumer
        self._under_way = 0
        self._has_ended = asyncio.Event()
        self._lanes: set[Lane] = set()
        self._task: asyncio.Task[None] | None = None

    def begin(self, lane: Lane) -> None:
        """A message for `lane` is about to be counted; call `end()` when that is over, however."""
        self._under_way += 1
        self._has_ended.clear()
        if lane not in self._lanes:
            self._lanes.add(lane)
            lane.hold()
        if self._task is None:
            self._task = asyncio.create_task(self._go_on(), name="mycelia:count")

    def end(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._has_ended.set()

    async def _go_on(self) -> None:
        """Release the lanes when the broker knows of all that has been counted."""
        try:
            async with asyncio.timeout(HELD_S):
                while self._under_way:
                    await self._has_ended.wait()
                    consumer = self._consumer()
                    if consumer is not None:
                        await consumer.flush()
        except (MyceliaError, TimeoutError) as exc:
            log.debug(event("counting_unfinished", error=describe(exc)))
        finally:
            self._task = None
            lanes, self._lanes = self._lanes, set()
            for lane in lanes:
                lane.release()

    def stop(self) -> None:
        """Hold nothing any more. What has waited in the lanes has been given back."""
        if self._task is not None:
            self._task.cancel()
