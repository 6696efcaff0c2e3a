"""Many bodies for a queue, as no client of ours would send them."""

from __future__ import annotations

import asyncio

from mycelia.amqp import Link, Message, Properties

__all__ = ["QUORUM", "publish"]

QUORUM = {"x-queue-type": "quorum"}


async def publish(link: Link, queue: str, bodies: list[bytes]) -> None:
    """Publish them in their order, 500 at once, each with its place as its message's id."""
    for start in range(0, len(bodies), 500):
        await asyncio.gather(
            *(
                link.publish(
                    Message(
                        "",
                        queue,
                        body,
                        Properties("application/json", delivery_mode=2, message_id=f"{start + n}"),
                    )
                )
                for n, body in enumerate(bodies[start : start + 500])
            )
        )
