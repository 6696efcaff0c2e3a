"""How far a group is behind in the partitions that are this instance's own, looked up while somebody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from mycelia.amqp import Link
from mycelia.errors import LinkError
from mycelia.log_event import event
from mycelia.logs.layout import stream_name
from mycelia.logs.stream_ends import last_offset

__all__ = ["LagWatch"]

log = logging.getLogger("mycelia.logs")

LOOK_EVERY: Final = 10.0
"""Seconds between two looks at the ends of the partitions: a consumer each, for an instant."""

WANTED_FOR: Final = 90.0
"""Seconds after which nobody seems to ask any more; beyond what any monitoring leaves between two scrapes."""


class LagWatch:
    """Entries between what a group has written down and the end of the log.

    Args:
        offsets: of the partitions that are our own, where the group goes on.
    """

    def __init__(self, link: Link, log_name: str, offsets: Callable[[], dict[int, int]]) -> None:
        self._link = link
        self._log_name = log_name
        self._offsets = offsets
        self._ends: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._asked_at = -WANTED_FOR
        self._asked = asyncio.Event()

    def lag(self) -> dict[int, int]:
        """By partition, as far as it is known: the end is up to ten seconds old. The first answer has nothing yet."""
        self._asked_at = time.monotonic()
        self._asked.set()
        for partition, offset in (offsets := self._offsets()).items():
            if partition in self._ends:
                self._told[partition] = max(self._ends[partition] - offset, 0)
        for partition in self._told.keys() - offsets.keys():
            self._told[partition] = 0  # whoever has it now says more
        return dict(self._told)

    async def run(self) -> None:
        """Look, while somebody asks; until cancelled."""
        while True:
            await self._asked.wait()
            if time.monotonic() - self._asked_at > WANTED_FOR:
                self._asked.clear()
                self._ends.clear()
                continue
            partitions = list(self._offsets())
            for partition in partitions:
                try:
                    last = await last_offset(self._link, stream_name(self._log_name, partition))
                except LinkError as exc:
                    log.debug(event("log_lag_unknown", log=self._log_name, reason=exc))
                    self._ends.pop(partition, None)
                else:
                    self._ends[partition] = 0 if last is None else last + 1
            await asyncio.sleep(LOOK_EVERY if partitions else min(LOOK_EVERY, 1.0))
