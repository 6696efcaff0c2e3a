"""Changes of one consumer's prefetch: made in the background, one at a time; what was asked for last is what stays."""

from __future__ import annotations

import asyncio
import logging

from mycelia.amqp import LinkConsumer
from mycelia.errors import MyceliaError
from mycelia.log_event import event

__all__ = ["PrefetchChanges"]

log = logging.getLogger("mycelia.entrypoints")


class PrefetchChanges:
    """Owns the task that changes `consumer`'s prefetch."""

    def __init__(self, consumer: LinkConsumer) -> None:
        self._consumer = consumer
        self._wanted = consumer.prefetch
        self._task: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        return self._task is not None

    def ask_for(self, prefetch: int) -> None:
        """Go on with `prefetch` (0 for no bound). Does not wait; what the broker refuses is logged."""
        self._wanted = prefetch
        if self._task is None and prefetch != self._consumer.prefetch:
            self._task = asyncio.create_task(
                self._change(), name=f"mycelia:prefetch:{self._consumer.queue}"
            )

    def stop(self) -> None:
        """Change nothing more."""
        if self._task is not None:
            self._task.cancel()

    async def _change(self) -> None:
        consumer = self._consumer
        try:
            while (prefetch := self._wanted) != consumer.prefetch:
                await consumer.set_prefetch(prefetch)
                log.debug(event("prefetch_changed", queue=consumer.queue, prefetch=prefetch))
        except MyceliaError as exc:
            log.warning(
                event(
                    "prefetch_unchanged",
                    queue=consumer.queue,
                    prefetch=consumer.prefetch,
                    wanted=self._wanted,
                    error=exc,
                )
            )
        finally:
            self._task = None
