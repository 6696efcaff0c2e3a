"""What the tests of Nameko's faults share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.nameko.processes import queue_state
from tests.nameko.raw_rpc import take

from mycelia.testing import TcpProxy, eventually

__all__ = ["Gate", "dead_letter", "proxied", "queue_becomes"]


class Gate:
    """Holds workers in a handler until the test lets them go; counts them."""

    def __init__(self) -> None:
        self.entered = 0
        self._open = threading.Event()

    def pass_through(self) -> None:
        """Call in a `def` handler."""
        self.entered += 1
        assert self._open.wait(20), "the test never opened the gate"

    def open(self) -> None:
        self._open.set()

    async def wait_for(self, count: int = 1) -> None:
        await eventually(
            lambda: self.entered >= count, timeout=10, what=f"{count} workers in the handler"
        )


@asynccontextmanager
async def proxied(uri: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A breakable network before the broker at `uri`; the proxy, and the URI that goes through it."""
    parts = urlsplit(uri)
    async with TcpProxy(parts.hostname or "", parts.port or 5672) as proxy:
        yield proxy, proxy.uri(uri)


async def queue_becomes(
    uri: str, queue: str, state: tuple[int, int] | None, timeout: float = 10
) -> None:
    """Wait until `queue` has so many ready messages and consumers."""

    async def is_so() -> bool:
        now = await asyncio.to_thread(queue_state, uri, queue)
        assert now == state
        return True

    await eventually(is_so, timeout=timeout, interval=0.05)


async def dead_letter(uri: str, queue: str, timeout: float = 10) -> tuple[bytes, dict[str, Any]]:
    """The first message in the dead-letter queue of `queue`: body and headers."""
    return await eventually(
        lambda: asyncio.to_thread(take, uri, f"{queue}.dead"),
        timeout=timeout,
        interval=0.05,
        what=f"a dead letter of {queue}",
    )
