"""Links that a test opens, as many as it wants; closed at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from mycelia.amqp import Link

__all__ = ["opening_links"]

L = TypeVar("L", bound=Link)


@asynccontextmanager
async def opening_links(make: Callable[[], L]) -> AsyncIterator[Callable[[], Awaitable[L]]]:
    links: list[L] = []

    async def open_link() -> L:
        link = make()
        links.append(link)
        await link.open(timeout=15)
        return link

    try:
        yield open_link
    finally:
        for link in links:
            await link.aclose()
