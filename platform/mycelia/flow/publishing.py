"""Publishes what has been committed: batches of one partition of a log one after the other, all else many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from mycelia.amqp import Message

__all__ = ["publish_in_order"]

PublishesMessage = Callable[[Message], Awaitable[None]]
"""Returns when the broker has it."""

PUBLISHED_AT_ONCE: Final = 200
"""Events on their way to the broker."""


async def publish_in_order(publish: PublishesMessage, messages: Iterable[Message]) -> None:
    """Publish all of it, with confirms. Batches of one partition of a log one after the other: the order of a key holds.

    Args:
        publish: publishes one.

    Raises:
        Exception: what it raised; not all of it is confirmed.
    """
    lanes: dict[tuple[str, str], list[Message]] = {}
    for message in messages:
        lanes.setdefault((message.exchange, message.routing_key), []).append(message)
    done = await asyncio.gather(
        *(_publish_lane(publish, lane) for lane in lanes.values()), return_exceptions=True
    )
    for failed in done:
        if failed is not None:
            raise failed


async def _publish_lane(publish: PublishesMessage, messages: list[Message]) -> None:
    at_once = 1 if messages[0].mandatory else PUBLISHED_AT_ONCE
    for begin in range(0, len(messages), at_once):
        some = messages[begin : begin + at_once]
        await asyncio.gather(*map(publish, some))
