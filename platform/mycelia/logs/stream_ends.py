"""Where a stream begins and ends: looked up by reading there, for AMQP 0-9-1 has no other way to ask."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from mycelia.amqp import STREAM_OFFSET, ConsumeOptions, Delivery, Link
from mycelia.logs.layout import stream_name

__all__ = ["end_of", "first_offset", "last_offset"]

_SILENCE_S: Final = 0.2
"""The last chunk's messages come together; when nothing has come for as long, there are no more."""
_EMPTY_S: Final = 0.5
"""Of silence from a stream of which the broker counts no message. Its count may be some seconds old."""
_FOLLOWED_S: Final = 1.0
"""An end that moves while it is looked at is followed for so long: it is known as of then."""
_FIRST_S: Final = 10.0
"""For the first message of a stream that has some."""
_DOUBT_S: Final = 3.0
"""Of silence from a stream that should have more, until it is believed: its broker may have just been started, and busy."""


async def first_offset(link: Link, stream: str) -> int | None:
    """The offset of the first message that the stream still holds; `None`: it has none.

    Raises:
        LinkError: no such stream, or the broker does not answer.
    """
    offsets = await _offsets(link, stream, "first", prefetch=1, enough=0)
    return offsets[0] if offsets else None


async def last_offset(link: Link, stream: str, enough: int | None = None) -> int | None:
    """The offset of the last message of the stream; `None`: it has none.

    Args:
        enough: an offset that is as good as the last, if there is one as high. It has been seen: that the stream ends before it is believed
            after some seconds only.

    Raises:
        LinkError: no such stream, or the broker does not answer.
    """
    silence = _SILENCE_S if enough is None else _DOUBT_S
    offsets = await _offsets(
        link, stream, "last", prefetch=10_000, enough=enough, silence_s=silence
    )
    return offsets[-1] if offsets else None


async def end_of(link: Link, log: str, partition: int) -> int:
    """The offset behind the last entry of a partition.

    Raises:
        LinkError: no such stream, or the broker does not answer.
    """
    last = await last_offset(link, stream_name(log, partition))
    return 0 if last is None else last + 1


async def _offsets(
    link: Link,
    stream: str,
    start: str,
    *,
    prefetch: int,
    enough: int | None,
    silence_s: float = _SILENCE_S,
) -> list[int]:
    offsets: list[int] = []
    arrived = asyncio.Event()

    def take(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.offset is not None:
                offsets.append(delivery.offset)
            delivery.ack()
        arrived.set()

    count = await link.message_count(stream)
    consumer = await link.consume(
        stream,
        take,
        ConsumeOptions(prefetch=prefetch, arguments={STREAM_OFFSET: start}),
        timeout=_FIRST_S,
    )
    loop = asyncio.get_running_loop()
    try:
        until = loop.time() + (_FIRST_S if count else max(_EMPTY_S, silence_s))
        over = math.inf
        while True:
            try:
                async with asyncio.timeout_at(min(until, over)):
                    await arrived.wait()
            except TimeoutError:
                return offsets
            arrived.clear()
            if enough is not None and offsets and offsets[-1] >= enough:
                return offsets
            now = loop.time()
            until = now + silence_s
            over = min(over, now + max(_FOLLOWED_S, silence_s))
    finally:
        await consumer.aclose()
