"""Messages that are published somewhere else and then acknowledged: another attempt, a dead letter. With patience.

A message stays unacknowledged meanwhile, so a crash loses nothing, and the prefetch bounds how many wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from mycelia.amqp import Delivery
from mycelia.entrypoints.remembered import Kept
from mycelia.errors import BrokerUnavailable, DeadlinePassed

__all__ = ["Mover"]

POLL_S: Final = 0.25
LOST_PATIENCE_S: Final = 60.0
"""How long a lost message that is remembered may take to come back, before its move is given up: the broker has it."""


class Mover:
    """The messages of some consumers that are on their way somewhere else."""

    def __init__(self) -> None:
        self._tasks: dict[Delivery, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def deliveries(self) -> list[Delivery]:
        """What is on its way."""
        return list(self._tasks)

    def move(
        self,
        delivery: Delivery,
        publish: Callable[[], Awaitable[None]],
        *,
        name: str,
        after: float = 0.0,
        pauses: Iterable[float],
        on_failure: Callable[[Exception, float | None], None],
        on_given_up: Callable[[Exception], None] | None = None,
        on_moved: Callable[[], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Wait `after` seconds, `publish()`, then acknowledge. Does not wait itself, and never raises.

        Args:
            publish: returns when the message is safe in its new place; `DeadlinePassed` from it ends the tries.
            name: of the task.
            pauses: seconds before each further try when publishing fails.
            on_failure: told each time, with the seconds until the next try, `None` if there will be none.
            on_given_up: what to do with the message then, and why; it goes back to its queue by default.
            on_moved: told when it is there.
            on_end: told when it is settled, in whichever way; must not raise.
        """

        async def run() -> None:
            await asyncio.sleep(after)
            failure = await _try(delivery, publish, pauses, on_failure)
            if failure is None:
                delivery.ack()
                if on_moved is not None:
                    _tell(on_moved)
            elif on_given_up is not None and not delivery.is_lost:
                on_given_up(failure)
            else:
                delivery.nack(requeue=True)

        task = asyncio.create_task(run(), name=name)
        self._tasks[delivery] = task
        task.add_done_callback(lambda _: self._forget(delivery, task))
        if on_end is not None:
            task.add_done_callback(lambda _: on_end())

    def _forget(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before it had begun
            delivery.nack(requeue=True)
        if self._tasks.get(delivery) is task:  # another move may have followed the first
            del self._tasks[delivery]

    def give_back(self) -> None:
        """Give back at once what waits."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def finish(self, timeout: float) -> None:
        """Let what is under way arrive, for `timeout` seconds; the rest goes back."""
        tasks = list(self._tasks.values())
        if tasks:
            done, pending = await asyncio.wait(tasks, timeout=timeout)
            for task in pending:
                task.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)


async def _try(
    delivery: Delivery,
    publish: Callable[[], Awaitable[None]],
    pauses: Iterable[float],
    on_failure: Callable[[Exception, float | None], None],
) -> Exception | None:
    """Publish, once or more often. Returns why that did not work in the end; `None` if it did."""
    failure: Exception = BrokerUnavailable("the broker has taken the message back")
    for pause in (*pauses, None):
        if delivery.is_lost and not await _is_back(delivery):
            break
        try:
            await publish()
        except DeadlinePassed as exc:  # no further try brings its time back
            return exc
        except Exception as exc:  # noqa: BLE001  whatever it is, the message must not hang for it
            failure = exc
            _tell(on_failure, exc, pause)
            if pause is not None:
                await asyncio.sleep(pause)
        else:
            return None
    return failure


def _tell(callback: Callable[..., None], *args: Any) -> None:
    """What is told is a log line, mostly: one that cannot be written must not end the move."""
    with suppress(Exception):
        callback(*args)


async def _is_back(delivery: Delivery) -> bool:
    """Whether a lost message comes back to us; published meanwhile, it would be in two places for certain."""
    waited = 0.0
    while type(delivery.settler) is Kept and waited < LOST_PATIENCE_S:
        await asyncio.sleep(POLL_S)
        waited += POLL_S
    return not delivery.is_lost
