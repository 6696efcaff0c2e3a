"""Reading what a service has dead-lettered."""

from __future__ import annotations

from mycelia.amqp import ConsumeOptions, Delivery, Link
from mycelia.entrypoints.dead_letters import dead_letter_queue, dead_letter_queue_name
from mycelia.testing import eventually

__all__ = ["read_dead_letters"]


async def read_dead_letters(
    link: Link, queue: str, count: int, timeout: float = 8.0
) -> list[Delivery]:
    """The first `count` dead letters of `queue`, as soon as there are that many; taken out of the queue."""
    found: list[Delivery] = []
    dead = dead_letter_queue_name(queue)
    await link.declare(dead_letter_queue(dead))
    consumer = await link.consume(dead, found.extend, ConsumeOptions(no_ack=True))
    try:
        await eventually(
            lambda: len(found) >= count, timeout, what=f"{count} dead letters of {queue}"
        )
    finally:
        await consumer.aclose()
    return found[:count]
