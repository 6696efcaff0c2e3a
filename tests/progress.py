"""Waiting for something that takes as long as it takes: it fails for lack of progress, not for lack of speed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["STALLED_S", "until"]

STALLED_S = 30.0
"""Without any progress for so long, nothing will come any more. Well above any pause of a link that reconnects."""


async def until(
    condition: Callable[[], Any],
    progress: Callable[[], Any],
    *,
    what: str,
    stalled_s: float = STALLED_S,
    interval: float = 0.1,
) -> None:
    """Wait until the condition is true. Both are asked in a thread, so they may block.

    Args:
        condition: An `AssertionError` from it counts as "not yet".
        progress: Any value that changes while things go on.
        what: The condition in words, for the message.

    Raises:
        AssertionError: `progress` has had one value for `stalled_s` seconds.
    """
    loop = asyncio.get_running_loop()
    reached, since = await asyncio.to_thread(progress), loop.time()
    while True:
        failed: AssertionError | None = None
        try:
            if await asyncio.to_thread(condition):
                return
        except AssertionError as exc:
            failed = exc
        now = await asyncio.to_thread(progress)
        if now != reached:
            reached, since = now, loop.time()
        elif loop.time() - since > stalled_s:
            why = f": {failed}" if failed else ""
            raise AssertionError(
                f"no progress for {stalled_s:g} s, at {reached!r}: {what}{why}"
            ) from failed
        await asyncio.sleep(interval)
