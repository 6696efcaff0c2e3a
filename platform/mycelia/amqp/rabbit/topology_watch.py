"""Keeps what was declared declared: looks from time to time, and at once where something hints at a loss.

An operator deletes an exchange, a binding, a queue; a policy or a script does it by mistake. Nobody tells the services: publishers
are confirmed into nothing, calls time out. So a running link looks after its topology, all of it in one write and one answer every
few seconds (`Declarer.repair()`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from mycelia.errors import LinkError
from mycelia.log_event import event

__all__ = ["TopologyWatch"]

_log = logging.getLogger("mycelia.amqp")

_JITTER: Final = 0.25
"""Of the interval, either way: the instances of a fleet must not look in step."""
_LEAST_GAP_S: Final = 0.25
"""Between two looks, however many hints there are."""


class TopologyWatch:
    """Calls `repair` every `interval` seconds and after hints. Runs from `start()` to `aclose()`.

    Args:
        repair: looks, and declares what is missing.
        interval: seconds; 0: after hints only.
    """

    def __init__(
        self, name: str, repair: Callable[[], Awaitable[None]], interval: float, random: Random
    ) -> None:
        self._name = name
        self._repair = repair
        self._interval = interval
        self._random = random
        self._hinted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(
                self._run(), name=f"mycelia:link:{self._name}:topology"
            )

    async def aclose(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def hint(self) -> None:
        """Something may be missing: look soon."""
        self._hinted.set()

    async def looked(self) -> None:
        """Look soon, and return when that is done, whatever came of it. Many callers share one look."""
        if self._task is None:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._hinted.set()
        await waiter

    async def _run(self) -> None:
        try:
            while True:
                await self._wait()
                await self._look()
                await asyncio.sleep(_LEAST_GAP_S)
        finally:
            self._release(self._waiting)

    async def _wait(self) -> None:
        delay = self._interval * self._random.uniform(1 - _JITTER, 1 + _JITTER)
        try:
            async with asyncio.timeout(delay or None):
                await self._hinted.wait()
        except TimeoutError:
            pass

    async def _look(self) -> None:
        self._hinted.clear()
        waiting, self._waiting = self._waiting, []
        try:
            await self._repair()
        except LinkError as exc:  # the connection is on its way out: it is declared on the next
            _log.debug(event("topology_check_given_up", link=self._name, reason=exc))
        except Exception:  # noqa: BLE001  # a fault of ours must not end the watch in silence
            _log.exception(event("topology_check_raised", link=self._name))
        finally:
            self._release(waiting)

    def _release(self, waiting: list[asyncio.Future[None]]) -> None:
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        waiting.clear()
