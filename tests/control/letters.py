"""Dead letters made by hand, as services make them, and what lies in a queue."""

from __future__ import annotations

import asyncio
from typing import Any

from mycelia.amqp import Link, Message, Properties, Queue
from mycelia.entrypoints.dead_letters import dead_letter_queue
from mycelia.runtime.settings import MyceliaSection

__all__ = ["AT_ONCE", "HANDLER_QUEUE", "NO_LIMIT", "bodies_in", "bury", "fate"]

AT_ONCE: dict[str, Any] = (
    {"mycelia": {"retry": False}} if "retry" in MyceliaSection.__struct_fields__ else {}
)
"""Configuration with which what fails is a dead letter at once."""

HANDLER_QUEUE = "evt-feed-departed--enrich.departed"
NO_LIMIT = Queue(f"{HANDLER_QUEUE}.dead", arguments={"x-queue-type": "quorum"})
"""A dead-letter queue as others may have declared it."""


def fate(**changes: Any) -> dict[str, Any]:
    """The headers of a dead letter."""
    return {
        "x-mycelia-reason": "handler_error",
        "x-mycelia-error-type": "KeyError",
        "x-mycelia-error": "'who'",
        "x-mycelia-traceback": "Traceback: KeyError: 'who'",
        "x-mycelia-queue": HANDLER_QUEUE,
        "x-mycelia-exchange": "feed.events",
        "x-mycelia-routing-key": "departed",
        "x-mycelia-service": "enrich",
        "x-mycelia-method": "departed",
        "x-mycelia-attempts": 5,
        "x-mycelia-first-failed-at-ms": 1_700_000_000_000,
        "x-mycelia-failed-at-ms": 1_700_000_060_000,
        **{f"x-mycelia-{name.replace('_', '-')}": value for name, value in changes.items()},
    }


async def bury(
    link: Link,
    *bodies: object,
    queue: Queue | None = None,
    headers: dict[str, Any] | None = None,
    **properties: Any,
) -> str:
    """Put one dead letter for each body into a dead-letter queue, in that order; return its name."""
    queue = queue or dead_letter_queue(f"{HANDLER_QUEUE}.dead")
    await link.declare(queue)
    made = Properties(
        "application/json", "utf-8", fate() if headers is None else headers, 2, **properties
    )
    messages = [
        Message("", queue.name, str(body).encode(), made, mandatory=True) for body in bodies
    ]
    for first in range(0, len(messages), 5000):
        await asyncio.gather(*(link.publish(one) for one in messages[first : first + 5000]))
    return queue.name


async def bodies_in(link: Link, queue: str) -> list[str]:
    """What lies in `queue`, in order; taken out."""
    found = []
    while (delivery := await link.get(queue)) is not None:
        found.append(delivery.body.decode())
        delivery.ack()
    return found
